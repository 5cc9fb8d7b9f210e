"""Mutated configurations, combinations of flags, names of every kind: told in one line, or done, and never nonsense."""

import random
import re

import numpy as np
import pytest
import yaml

from torchfault.cli import main
from torchfault.cli.flags import flags_of
from torchfault.config import Settings

CONFIGURATION = """\
name: fuzzed
model: {factory: "torchfault.zoo:digits_cnn", kwargs: {}}
data: {path: data.npz, limit: 6, mean: [0.5], std: [0.5]}
sites:
  - include: ["conv*", fc1.weight]
    exclude: "*.bias"
    kinds: weight
    bits: 20-30,sign
fault: flip
sampler: {kind: uniform, faults: 1}
criterion: top1 | margin:5
stop: {trials: 20}
seed: 3
level: 0.9
method: wilson
executor: hooks
memory: 64MiB
"""
NASTY = [
    "", "~", "null", "true", "no", "-1", "0", "1", "2", "1e308", "1e-300", ".inf", "-.inf", ".nan", "0.5", "1e9",
    "9" * 30, "9" * 500, "[]", "{}", "[[]]", "[1, [2]]", "{a: 1}", "'*'", "'re:(a+)+$'", "'re:('", "~nosuch/x",
    "/dev/zero", "/proc/self/mem", "'/'", "'[bold]x[/x]'", "'\\x1b[2J'", '"\\x1b[2J"', '"a\\0b"', '"\\ud800"',
    "x" * 3000, "'%s %d {}'", "a:b", "os:system", "torch:nn", "float32", "uniform", "exhaustive", "search", "top1",
    "topk:99", "~~top1", "'(top1'", "error:1e-300", "burst:64", "value:.inf", "0-63", "sign", "magnitude", "99", "3:2",
    "end", "cpu", "meta", "cuda", "1MiB", "1e30GiB", "10m", "0s", "hooks", "graph",
]  # fmt: skip
# Values that make sense somewhere, or nearly.
PLAUSIBLE = {
    "include": ["'*'", "'conv?.*'", "['re:^fc', conv1.weight]", "'*:output'", "'fc2.bias'"],
    "exclude": ["'*.bias'", "conv1.*", "'*'"],
    "kinds": ["weight", "bias", "output", "[input, data]", "norm", "buffer"],
    "types": ["Linear", "[Conv2d, ReLU]"],
    "bits": ["30", "0-31", "sign", "'exponent,3'", "[1, 2]"],
    "steps": ["'0:3'", "5"],
    "fault": ["stuck-at-0", "random-word", "burst:3", "'value:.inf'", "value:1e300", "dead"],
    "kind": [
        "exhaustive",
        "layer-wise",
        "network-wise",
        "data-aware",
        "adaptive",
        "importance",
        "learned",
        "deviation",
        "search",
        "bit-error-rate",
    ],
    "faults": ["3", "40", "1000000000000000000000"],
    "rate": ["1e-6", "0.9", "1e-300"],
    "margin": ["0.2", "1e-300", "0.999"],
    "sampler": [
        "adaptive",
        "adaptive:strata=deviations",
        "'importance:score=GBIN,floor=0.2'",
        "'importance:floor=1e-300,inputs=99'",
        "learned:rising",
        "layer-wise:0.2",
        "bit-error-rate:1e-6",
        "uniform:3",
        "uniform:1000000000000",
        "data-aware",
        "no.module:Sampler",
        "exhaustive:1",
    ],
    "resolver": ["pooled:8", "monotone", "[pooled:4, monotone]", "pooled:audit=1.0", "[monotone, monotone]", "os:path"],
    "measure": ["os:path", "no.module:m"],
    "verdicts": ["{wrong: misclassified}", "{failed: top1}", "{'[x]': top1}", "{odd: 'topk:99'}"],
    "inputs_per_fault": ["all", "2", "99"],
    "recipe": ["run", "search", "vulnerability"],
    "side": ["16", "1000000000"],
    "share": ["100%", "1e-300", "all"],
    "weights": ["all", "log2", "2"],
    "neurons": ["all", "log2", "2"],
    "criterion": [
        "topk:3",
        "misclassified",
        "error:0.1",
        "threshold",
        "tokens",
        "boxes:0.5",
        "'~non-finite & top1'",
        "spike-count",
        "top1:axis=1",
        "perplexity:1.1,shift=1",
        "null",
    ],
    "metric": ["accuracy", "mean-iou:10", "perplexity", "accuracy:threshold=0"],
    "trials": ["1", "3", "1e3", "100000000000000000000000000"],
    "half_width": ["0.2", "1e-300", "0.4999", "site=0.2", "{site: 0.2, bit: 0.3}", "bit=1e-12", "size=0.2"],
    "time": ["1s", "1e-300", "0.5", "1e300"],
    "limit": ["1", "8", "9", "100000000000000000000"],
    "mean": ["[0.5, 0.5]", "[1e308]", "[]"],
    "std": ["[1e-300]", "[1e308]", "[1e-45]"],
    "path": ["data.npz", "fuzzed.yaml", "."],
    "seed": ["9223372036854775807", "9223372036854775808"],
    "level": ["0.5", "0.9999999999999999", "1e-300"],
    "method": ["jeffreys", "clopper-pearson"],
    "executor": ["auto", "graph"],
    "memory": ["1MiB", "1e300GiB", "4KiB", "9999999TiB"],
    "kwargs": ["{classes: 3}", "{width: -1}", "{x: [1, {y: 2}]}"],
    "name": ["a", "'[x]'", "-x"],
    "threads": ["2"],
    "device": ["meta", "cpu:7", "cuda", "mps"],
    "training": ["true"],
    "buffers": ["true"],
    "storage": ["int8", "csr", "{'conv1.*': 'q3.4'}", "bfp8:16", "'int4:99999999999999999999'"],
    "activations": ["q7.8", "int8", "{'*:output': e4m3}"],
    "store": ["other.db", "'/nowhere/a.db'", "'postgresql://u:p@127.0.0.1:1/x'", "'sqlite:///x.db'", "':memory:'"],
    "lasting": ["end", "3"],
    "shape": ["[1, 8, 8]", "[3]", "[100000000, 100000000]"],
    "grey": ["true"],
    "size": ["[8, 8]", "[100000000, 100000000]"],
    "pretrained": ["true"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("fuzz")
    rng = np.random.default_rng(0)
    np.savez(here / "data.npz", images=rng.random((8, 1, 8, 8), dtype=np.float32), labels=rng.integers(0, 10, 8))
    return here


@pytest.fixture
def inside(folder, monkeypatch):
    import torch

    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    yield folder
    torch.set_num_threads(threads)


def check(arguments, capfd, tried, attack):
    """Run a command: it does what it says, or tells in one line why not; return whether it did."""
    with tried(attack) as found:
        status = main(arguments)
        out, err = capfd.readouterr()
        last = err.splitlines()[-1] if err else ""
        unsafe = not all(line.isprintable() for line in (out + err).split("\n"))
        untold = status == 2 and not (last.startswith("error: ") and len(last) < 2000)
        # the harmless changes of a vulnerability analysis may have no end
        absurd = status == 0 and arguments[0] != "vulnerability" and re.search(r"\b(nan|inf)\b", out) is not None
        found.said(status, err, nonsense=unsafe or untold or absurd or status == 130, what=(arguments, out[-2000:]))
    return status == 0


def keys(tree, above=()):
    """Yield the way to every value of a configuration."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*above, key)
        yield from keys(value, (*above, key))


def mutated(rng):
    """Return a configuration with one to three things changed, as text or as values."""
    if rng.random() < 0.35:
        text = CONFIGURATION
        for _ in range(rng.randint(1, 3)):
            at, other = rng.randrange(len(text)), rng.randrange(len(text))
            text = rng.choice([
                text[:at] + text[at + rng.randint(1, 20) :],
                text[:at] + rng.choice("\t\n:{}[]&*!|>'\"#%@`-?,\x00\x1b\ud800é") + text[at:],
                text[:at] + text[min(at, other) : max(at, other)] + text[at:],
                text[:at] + chr(ord(text[at]) ^ (1 << rng.randrange(7))) + text[at + 1 :],
            ])  # fmt: skip
        return text
    tree, values = yaml.safe_load(CONFIGURATION), []
    for _ in range(rng.choice([1, 1, 2, 3])):
        *above, last = rng.choice([*keys(tree), *((key,) for key in PLAUSIBLE if key in Settings.model_fields)])
        inner = tree
        for key in above:
            inner = inner[key]
        choice = rng.random()
        if choice < 0.05 and (isinstance(inner, list) or last in inner):
            del inner[last]
        elif choice < 0.1 and isinstance(inner, dict) and last in inner:
            inner[str(last)[:-1] + rng.choice("aez_")] = inner.pop(last)
        else:
            values.append(rng.choice(PLAUSIBLE.get(last, NASTY) if rng.random() < 0.7 else NASTY))
            inner[last] = f"<{len(values) - 1}>"
    return re.sub(r"'?<(\d+)>'?", lambda found: values[int(found[1])], yaml.safe_dump(tree))


def fuzz_configuration(seed, folder, capfd, tried):
    rng = random.Random(seed)
    text = mutated(rng)
    (folder / "fuzzed.yaml").write_bytes(text.encode("utf-8", "surrogatepass"))
    (folder / "fuzzed.db").unlink(missing_ok=True)
    command = rng.choice([["run", "fuzzed.yaml", "--trials", "20", "--store", "fuzzed.db"], ["sites", "fuzzed.yaml"]])
    return check(command, capfd, tried, "a mutated configuration")


def random_flags(rng, command):
    """Return flags of a command with values that are sensible or not."""
    flags = [flag for panel in flags_of(command).values() for flag in panel]
    arguments = []
    for flag in rng.sample(flags, rng.choice([1, 1, 2, 3])):
        known = PLAUSIBLE.get(flag.key.rpartition(".")[2], NASTY)
        value = rng.choice(known if rng.random() < 0.75 else NASTY).strip("'\"[]")
        arguments += [flag.name, value]
    return arguments


def fuzz_flags(seed, capfd, tried):
    rng = random.Random(seed)
    command = rng.choice(["sites", "plan", "run", "ra", "vulnerability", "search", "show", "export", "resume"])
    if command in ("show", "export", "resume"):
        nasty = [rng.choice(NASTY).strip("'\"") for _ in range(4)]
        options = {
            "show": ["--by", "--format", "--top", "--plot", "--level", "--method", "--flag", "--store"],
            "export": ["--output", "--flag", "--store"],
            "resume": ["--trials", "--half-width", "--time", "--device", "--threads", "--memory", "--data", "--store"],
        }[command]
        arguments = [word for flag in rng.sample(options, 2) for word in (flag, nasty.pop())]
        return check([command, *arguments], capfd, tried, "a combination of flags")
    base = ["--model", "torchfault.zoo:digits_cnn", "--data", "data.npz", "--limit", "4", "--executor", "hooks"]
    kept = ["--trials", "20", "--store", "fuzzed.db"]
    own = {
        "sites": [],
        "plan": ["--speed", rng.choice(["100", "1e308", "inf", "nan", "-1", "0", "1e-300"])],
        "vulnerability": ["--share", "5%", "--weights", "1", "--neurons", "1", *kept],
    }.get(command, kept)
    form = ["--format", rng.choice(["table", "csv", "json", "markdown"])]
    flags = [*base, *random_flags(rng, command), *own, *form]
    return check([command, *flags], capfd, tried, "a combination of flags")


@pytest.mark.parametrize("seed", range(40))
def test_mutated_configurations(seed, inside, capfd, tried):
    fuzz_configuration(seed, inside, capfd, tried)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(39))
def test_many_mutated_configurations(block, inside, capfd, tried):
    done = sum(fuzz_configuration(40 + 20 * block + i, inside, capfd, tried) for i in range(20))
    assert done < 20


@pytest.mark.parametrize("seed", range(25))
def test_combinations_of_flags(seed, inside, capfd, tried):
    fresh(inside)
    fuzz_flags(seed, capfd, tried)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(38))
def test_many_combinations_of_flags(block, inside, capfd, tried):
    for i in range(10):
        fresh(inside)
        fuzz_flags(25 + 10 * block + i, capfd, tried)


def fresh(folder):
    for path in folder.glob("fuzzed.*"):
        path.unlink()
