"""The configuration: what is read is what was written, and what is wrong is told with its key and its line."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchfault import criteria
from torchfault.config import Override, Settings, keep, leaf_keys, read_settings, restore
from torchfault.config.build import build_campaign, build_data, build_engine, build_model
from torchfault.config.marked import parse
from torchfault.config.persistence import factories
from torchfault.config.resolvers import RESOLVERS
from torchfault.config.samplers import SAMPLERS
from torchfault.errors import ConfigError
from torchfault.faults import BitFlip, Burst, RandomWord, StuckAt, Value
from torchfault.plain_yaml import scalar
from torchfault.sampling import BitErrorRate, Effect, Exhaustive, Importance, Learned, Sensitivity, Uniform
from torchfault.statistics import HalfWidth, MaxTrials, TimeBudget

ROOT = Path(__file__).resolve().parents[2]

FULL = """\
name: first
recipe: search
model:
  factory: torchvision:resnet18
  kwargs: {num_classes: 10}
  pretrained: false
checkpoint:
  path: weights.pt
  key: state_dict
  prefix: module.
generation: {tokens: 8, end: 2, pad: 1}
storage: {"conv*": int8, "fc*": csr}
activations: {"conv*:output": q8.8}
data:
  path: images.npz
  inputs: images
  labels: labels
  mean: [0.5, 0.5, 0.5]
  std: [1, 2, 3]
  limit: 100
sites:
  - include: ["layer1.*", "re:^fc"]
    exclude: "*.bias"
    kinds: weight
  - kinds: [input]
    types: Conv2d
    bits: 23-30,sign
    steps: 3:7
fault: burst:3
lasting: 4
sampler: {kind: bit-error-rate, rate: 1e-6}
measure: my.measures:skewed
resolver: [{kind: pooled, size: 8, audit: 0.1}, monotone]
criterion: top1 & ~non-finite
verdicts: {wrong: misclassified}
metric: accuracy
inputs_per_fault: 4
stop:
  trials: 20_000
  half_width: {site: 0.01, model: 0.005}
  time: 1h30m
search: {side: 1024}
vulnerability: {share: 20%, weights: all, neurons: 3}
ra: {accelerator: flat, harden: control, buffer: [weight=4096], protect: [fc1, fc2]}
seed: 3
level: 0.9
method: jeffreys
executor: hooks
memory: 256MiB
device: cuda:0
threads: 2
workers: 4
cluster: auto
gpus_per_worker: 0.5
training: true
buffers: true
monitor: true
store: out/campaigns.db
"""
SMALL = "model: torchfault.zoo:resnet20\ndata: images.npz\n"


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Return a function that writes a configuration and reads it back."""
    monkeypatch.chdir(tmp_path)

    def read(text: str, *overrides: Override) -> Settings:
        Path("run.yaml").write_text(text, encoding="utf-8")
        return read_settings(Path("run.yaml"), overrides)

    return read


def test_every_key_is_read(written, tmp_path):
    settings = written(FULL)
    assert settings.model.factory == "torchvision:resnet18"
    assert settings.model.kwargs == {"num_classes": 10}
    assert settings.checkpoint.path == tmp_path / "weights.pt"
    assert settings.storage == {"conv*": "int8", "fc*": "csr"}
    assert settings.activations == {"conv*:output": "q8.8"}
    assert (settings.data.path, settings.data.std) == (tmp_path / "images.npz", (1.0, 2.0, 3.0))
    assert settings.sites[0].include == ("layer1.*", "re:^fc")
    assert (settings.sites[0].exclude, settings.sites[0].kinds) == (("*.bias",), ("weight",))
    assert settings.sites[1].bits == (*range(23, 31), "sign")
    assert (settings.sites[1].steps, settings.lasting) == ((3, 7), 4)
    assert (settings.sampler.rate, settings.stop.trials, settings.stop.time) == (1e-6, 20_000, 5400.0)
    assert [one.kind for one in settings.resolver] == ["pooled", "monotone"]
    assert (settings.resolver[0].size, settings.resolver[0].audit, settings.resolver[1].audit) == (8, 0.1, 0.1)
    assert settings.stop.half_width == {"site": 0.01, "model": 0.005}
    assert (settings.verdicts, settings.inputs_per_fault) == ({"wrong": "misclassified"}, 4)
    assert (settings.vulnerability.share, settings.vulnerability.weights, settings.vulnerability.neurons) == (
        0.2,
        None,
        3,
    )
    assert (settings.ra.harden, settings.ra.protect, settings.search.side) == (("control",), ("fc1", "fc2"), 1024)
    assert (settings.generation.tokens, settings.generation.end, settings.generation.pad) == (8, 2, 1)
    assert (settings.memory, settings.store) == (256 * 2**20, str(tmp_path / "out" / "campaigns.db"))
    dumped = settings.model_dump(mode="json", exclude_defaults=True)
    assert set(dumped) == set(Settings.model_fields), "FULL leaves a key at its default"


def test_settings_come_back_from_a_store_but_for_its_place(written):
    for text in (FULL, SMALL, SMALL + "inputs_per_fault: all\n"):
        settings = written(text)
        kept = json.loads(json.dumps(keep(settings)))
        places = {"store": "torchfault.db", "workers": 0, "cluster": None, "gpus_per_worker": 0.0}
        assert not set(places) & set(kept)
        assert restore(kept) == settings.model_copy(update=places)


SECRETS = """\
model: {factory: "my.nets:make", kwargs: {api_key: k-12345, url: "https://me:pa55word@host/weights", size: 3}}
data: {factory: "my.data:make", kwargs: {database: {password: [a, "s3cret"]}, tokens: 4, Token: t0ken}}
store: postgresql+psycopg://me:pa55word@host/name
"""


def test_no_password_is_kept(written):
    settings = written(SECRETS)
    kept = json.dumps(keep(settings))
    for secret in ("12345", "pa55word", "s3cret", "t0ken"):
        assert secret in SECRETS
        assert secret not in kept
    assert "https://me:***@host/weights" in kept
    assert '"tokens": 4' in kept, "a number of tokens is no secret"
    with pytest.raises(ConfigError, match=r"keeps no passwords, and 'model.kwargs.api_key' is one; give --set"):
        restore(json.loads(kept))
    given = [
        Override(("model", "kwargs", "api_key"), "k-12345", "--set"),
        Override(("model", "kwargs", "url"), "https://me:pa55word@host/weights", "--set"),
        Override(("data", "kwargs", "database", "password"), ["a", "s3cret"], "--set"),
        Override(("data", "kwargs", "Token"), "t0ken", "--set"),
        Override(("store",), settings.store, "--store"),
    ]
    assert restore(json.loads(kept), given) == settings


def test_what_a_campaign_imports_of_the_users_own_is_known(written):
    assert factories(written(SMALL)) == []
    text = "model: my.nets:make\ndata: my.data:load\nfault: my.faults:Odd\ncriterion: top1 & ~my.criteria:bad\n"
    text += "verdicts: {odd: 'my.criteria:odd | topk:3'}\nsampler: my.samplers:Best\nresolver: my.resolvers:r\n"
    text += "measure: my.measures:m\n"
    found = ["my.nets:make", "my.data:load", "my.samplers:Best", "my.resolvers:r", "my.measures:m", "my.faults:Odd"]
    assert factories(written(text)) == [*found, "my.criteria:bad", "my.criteria:odd"]
    assert factories(written(SMALL + "metric: my.metrics:f\n")) == ["my.metrics:f"]
    assert factories(written(SMALL + "criterion: top1:output=logits,axis=-1\nsampler: importance:GBIN\n")) == []


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("stop: 500", "stop: {trials: 500}"),
        ("sampler: exhaustive", "sampler: {kind: exhaustive}"),
        ("sampler: {faults: 3}", "sampler: {kind: uniform, faults: 3}"),
        ("sampler: uniform:3", "sampler: {kind: uniform, faults: 3}"),
        ("sampler: 'importance:GBIN,floor=0.2'", "sampler: {kind: importance, score: GBIN, floor: 0.2}"),
        (
            "sampler: adaptive:strata=deviations\nstop: {half_width: 0.1}",
            "sampler: {kind: adaptive, strata: deviations}\nstop: {half_width: {model: 0.1}}",
        ),
        ("sampler: my.own:Sampler", "sampler: {kind: import, path: 'my.own:Sampler'}"),
        ("resolver: pooled:32", "resolver: [{kind: pooled, size: 32}]"),
        ("resolver: [pooled, monotone]", "resolver: [{kind: pooled}, {kind: monotone}]"),
        ("stop: {half_width: 0.01}", "stop: {half_width: {model: 0.01}}"),
        ("stop: {half_width: 'site=0.01,bit=0.1'}", "stop: {half_width: {site: 0.01, bit: 0.1}}"),
        ("stop: {half_width: [site=0.01, 0.1]}", "stop: {half_width: {site: 0.01, model: 0.1}}"),
        ("checkpoint: a.pt", "checkpoint: {path: a.pt}"),
        ("generation: 8", "generation: {tokens: 8}"),
        ("sites: {kinds: weight}", "sites: [{kinds: [weight]}]"),
        ("sites: {bits: 30}", "sites: [{bits: [30]}]"),
        ("stop: {time: 2m}", "stop: {time: 120}"),
    ],
)
def test_short_forms_mean_the_long_ones(written, short, long):
    assert written(SMALL + short) == written(SMALL + long)


def test_a_short_data_source_is_a_factory_or_a_path(written, tmp_path):
    assert written("model: a:b\ndata: package.module:make").data.factory == "package.module:make"
    assert written("model: a:b\ndata: folder/of:images").data.path == tmp_path / "folder/of:images"


def test_paths_are_relative_to_the_file_and_flags_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "run.yaml").write_text("model: a:b\ndata: ../images.npz\ncheckpoint: a.pt\n")
    monkeypatch.chdir(tmp_path)
    settings = read_settings(Path("configs/run.yaml"), [Override(("checkpoint",), "b.pt", "--checkpoint")])
    assert settings.data.path == tmp_path / "images.npz"
    assert settings.checkpoint.path == tmp_path / "b.pt"


def test_a_campaign_is_called_after_its_file_or_its_model(written):
    assert written(SMALL).name == "run"
    flags = [Override(("model",), "timm:resnet18.a1", "--model"), Override(("data",), "a.npz", "--data")]
    assert read_settings(None, flags).name == "resnet18.a1"
    assert written(SMALL + "name: mine").name == "mine"


def test_flags_override_the_file(written):
    flags = [
        Override(("seed",), 9, "--seed"),
        Override(("stop", "trials"), 7, "--trials"),
        Override(("sites",), [{"kinds": ["bias"]}], "--kinds"),
        Override(("data",), "pack.age:make", "--data"),
        Override(("sampler",), "uniform", "--sampler"),
    ]
    settings = written(FULL.replace("sampler: {kind: bit-error-rate, rate: 1e-6}\n", ""), *flags)
    assert (settings.seed, settings.stop.trials) == (9, 7)
    assert settings.stop.half_width == {"site": 0.01, "model": 0.005}
    assert [one.kinds for one in settings.sites] == [("bias",)]
    assert (settings.data.factory, settings.data.path, settings.data.limit) == ("pack.age:make", None, 100)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "model: a:b\ndata:\n  path: a.npz\n  limti: 4\n",
            "run.yaml:4: data.limti: no such key; did you mean 'limit'?",
        ),
        ("model: a:b\ndata: a.npz\n\nseed: many\n", "run.yaml:4: seed: expected a whole number, got 'many'"),
        ("model: a:b\ndata: a.npz\ntrials: 3\n", "run.yaml:3: trials: no such key; did you mean 'stop.trials'?"),
        ("model: a:b\ndata: a.npz\nsites:\n  - kinds: weight\n  - bits: 99\n", "run.yaml:5: sites[1].bits: bit"),
        ("model: a:b\ndata: a.npz\nsites:\n  kinds: weight\n  bits: 99\n", "run.yaml:5: sites.bits: bit"),
        ("model: a:b\ndata: a.npz\nseed: 1\nseed: 2\n", "run.yaml:4: key 'seed' is already given on line 3"),
        ("model: a:b\ndata:\n  limit: 3\n", "run.yaml:2: data: expected exactly one of path, factory and shape"),
        ("model: a:b\n", "run.yaml: data: missing; add it to the configuration, or give --data"),
        ("model: a:b\ndata: [\n", "run.yaml:3: not valid YAML"),
        (
            "model: a:b\ndata: a.npz\nsampler:\n  kind: uniform\n  rate: 1\n",
            "run.yaml:5: sampler.rate: no such key of uniform; rate goes with bit-error-rate",
        ),
        (
            "model: a:b\ndata: a.npz\nresolver:\n  - pooled\n  - {kind: monotone, size: 3}\n",
            "run.yaml:5: resolver[1].size: no such key of monotone; size goes with pooled",
        ),
        (
            "model: a:b\ndata: a.npz\nsampler: {kind: importance, score: X}\n",
            "run.yaml:3: sampler.score: expected effect",
        ),
        (
            "model: a:b\ndata: a.npz\nstop: {half_width: {site: 2}}\n",
            "run.yaml:3: stop.half_width.site: expected a number",
        ),
    ],
)
def test_errors_name_the_key_and_the_line(written, text, expected):
    with pytest.raises(ConfigError, match="^" + re.escape(expected)):
        written(text)


FORMER = {
    "shortcuts: {pool: 8}": "shortcuts: no such key; it is resolver, as in resolver: [pooled:64, monotone]",
    "interval: wilson": "interval: no such key; it is method",
    "sampler: {kind: adaptive, whole: 0.01}": "sampler.whole: no such key; it is stop.half_width",
    "sampler: {kind: adaptive, site: 0.01}": "sampler.site: no such key; it is stop.half_width",
    "sampler: {kind: adaptive, bit: 0.01}": "sampler.bit: no such key; it is stop.half_width",
    "sampler: {kind: importance, images: 8}": "sampler.images: no such key; it is sampler.inputs",
    "sampler: deviation": "sampler: no sampler is called 'deviation'; it is adaptive:deviations now",
    "sampler: {kind: search}": "sampler: no sampler is called 'search'; it is a recipe now",
}


@pytest.mark.parametrize("text", FORMER)
def test_former_keys_are_told_what_they_are_now(written, text):
    with pytest.raises(ConfigError, match="^" + re.escape(f"run.yaml:3: {FORMER[text]}")):
        written(SMALL + text + "\n")


def test_errors_name_the_flag(written):
    with pytest.raises(ConfigError, match=r"^--seed: expected a whole number, got 'x'$"):
        written(SMALL + "seed: 4\n", Override(("seed",), "x", "--seed"))


def test_all_problems_are_told_in_one_line(written):
    with pytest.raises(ConfigError, match=r"run.yaml:3: seed: .* \(and 1 more: run.yaml:4: level: .*0.95\?\)$"):
        written(SMALL + "seed: -1\nlevel: 95\n")


def test_yaml_words_stay_words_and_numbers_are_numbers():
    value = parse("a: on\nb: 1:30\nc: 2026-11-21\nd: 1e-6\ne: 0x10\nf: 08\ng: ~\nh: true\ni: -.5\n", "x").value
    assert list(value.values()) == ["on", "1:30", "2026-11-21", 1e-6, 16, 8, None, True, -0.5]


@given(st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.booleans())
def test_plain_numbers_survive_yaml(value):
    text = {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value).replace("inf", ".inf")
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


@pytest.fixture(scope="module")
def engine():
    """Return an engine for a small model with weights of two word formats and labelled inputs."""
    import torch

    from torchfault.data import Data
    from torchfault.engine import Engine
    from torchfault.zoo import digits_cnn

    model = digits_cnn()
    model.register_parameter("scale", torch.nn.Parameter(torch.ones(3, dtype=torch.float64)))
    return Engine(model, Data(torch.rand(12, 1, 8, 8), torch.arange(12) % 10), executor="hooks")


@pytest.fixture
def built(written, engine):
    """Return a function that builds the campaign of SMALL with further lines."""
    return lambda more="": build_campaign(written(SMALL + more), engine)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("flip", BitFlip()),
        ("stuck-at-0", StuckAt(0)),
        ("stuck-at-1", StuckAt(1)),
        ("random-word", RandomWord()),
        ("burst:3", Burst(3)),
        ("value:-0.5", Value(-0.5)),
        ("torchfault.faults:BitFlip", BitFlip()),
    ],
)
def test_fault_models_are_built(built, text, expected):
    assert built(f"fault: {text}").fault == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("top1", criteria.Top1Change()),
        ("topk:3", criteria.TopK(3)),
        ("misclassified", criteria.Misclassified()),
        ("margin:0.5", criteria.MarginDrop(0.5)),
        ("error:0.01", criteria.OutputError(0.01)),
        ("non-finite", criteria.NonFinite()),
        ("masks:0.75", criteria.MaskChange(iou=0.75)),
        ("perplexity:1.1", criteria.PerplexityRise(1.1)),
        ("top1 & ~non-finite", criteria.AllOf((criteria.Top1Change(), criteria.Not(criteria.NonFinite())))),
        ("(top1|topk:2)", criteria.AnyOf((criteria.Top1Change(), criteria.TopK(2)))),
        ("torchfault.criteria:NonFinite", criteria.NonFinite()),
        ("top1:axis=-1,output=0", criteria.Top1Change(axis=-1, output=0)),
    ],
)
def test_criteria_are_built(built, text, expected):
    assert built(f"criterion: '{text}'").criterion == expected


def test_metrics_are_built(built):
    assert built("metric: accuracy").metric == criteria.Accuracy()
    assert built("metric: accuracy:axis=1").metric == criteria.Accuracy(axis=1)
    assert built("metric: torchfault.criteria:accuracy").metric is criteria.accuracy
    assert built().metric is None


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ("criterion: top1", "criterion"),
        ("verdicts: {wrong: misclassified}", "verdicts"),
        ("inputs_per_fault: 3", "inputs_per_fault"),
        ("criterion: topk:2\ninputs_per_fault: 2", "criterion and inputs_per_fault"),
    ],
)
def test_what_a_metric_would_leave_without_a_say_is_refused(written, beside, named):
    with pytest.raises(ConfigError, match=f"data set, and {named} beside it would have no say; leave out the metric"):
        written(f"{SMALL}metric: accuracy\n{beside}\n")
    assert written(f"{SMALL}metric: accuracy\ninputs_per_fault: all\n").metric == "accuracy"


def test_a_mean_iou_knows_its_classes(written):
    import torch

    from torchfault.data import Data
    from torchfault.engine import Engine

    model, images = torch.nn.Conv2d(1, 3, 1).eval(), torch.rand(4, 1, 2, 2)
    engine = Engine(model, Data(images, torch.zeros(4, 2, 2, dtype=torch.long)), executor="hooks")
    metric = build_campaign(written(SMALL + "metric: mean-iou:3"), engine).metric
    outputs = engine.golden()
    assert metric(outputs, engine.data.labels) == criteria.mean_iou(outputs, engine.data.labels, classes=3)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", MaxTrials(10_000)),
        ("stop: 5", MaxTrials(5)),
        ("stop: {time: 1m}", TimeBudget(60.0)),
        ("stop: {half_width: 0.01}\nlevel: 0.9\nmethod: jeffreys", HalfWidth(0.01, method="jeffreys", level=0.9)),
        ("stop: {half_width: {site: 0.1, bit: 0.2}}", HalfWidth(0.1, by="site") & HalfWidth(0.2, by="bit")),
        ("stop: {half_width: 0.1, trials: 9}", HalfWidth(0.1) | MaxTrials(9)),
        ("stop: {trials: 5, time: 2}", MaxTrials(5) | TimeBudget(2.0)),
        ("sampler: exhaustive", None),
    ],
)
def test_stopping_rules_are_built(built, text, expected):
    assert built(text).stop == expected


def test_samplers_and_seeds_are_built(built):
    assert built("sampler: {faults: 4}").sampler == Uniform(4)
    assert built("sampler: exhaustive").sampler == Exhaustive()
    assert built("sampler: {kind: bit-error-rate, rate: 1e-3}\nseed: 8").sampler == BitErrorRate(1e-3)
    assert built("seed: 8").seed == 8


@pytest.mark.parametrize("score", ["effect", "joint", "rising", "GBIN", "RBRN"])
def test_importance_samplers_are_built(built, score):
    text = f"sampler: {{kind: importance, score: {score}, floor: 0.2, inputs: 2}}\nsites: {{kinds: weight}}"
    sampler = built(text).sampler
    assert isinstance(sampler, Importance)
    assert sampler.floor == 0.2
    assert isinstance(sampler.score, Effect if score == "effect" else Sensitivity)
    assert isinstance(built(text.replace("importance", "learned")).sampler, Learned)


def test_choices_of_sites_are_united(built, engine):
    space = built("sites: [{kinds: bias, bits: 31}, {include: conv1.*, bits: 0-3}]").space
    assert space == engine.space.select(kinds="bias", bits=[31]) | engine.space.select("conv1.*", bits=range(4))
    assert space.site("conv1.bias").bits == (0, 1, 2, 3, 31)
    assert built().space == engine.space


def test_fields_are_those_of_each_word(built):
    space = built("sites: {include: [scale, fc2.bias], bits: 'sign,exponent,0'}").space
    assert space.site("scale").bits == (0, *range(52, 64))
    assert space.site("fc2.bias").bits == (0, *range(23, 32))


def test_threads_are_set_and_devices_are_looked_at(written):
    import torch

    threads = torch.get_num_threads()
    try:
        flags = "model: torchfault.zoo:digits_cnn\ndata: {shape: [1, 8, 8], limit: 3}\nexecutor: hooks\n"
        settings = written(flags + "threads: 1\ndevice: cpu\n")
        engine = build_engine(settings, build_model(settings), build_data(settings.data, seed=0))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    assert engine.data.inputs.shape == (3, 1, 8, 8)
    assert engine.data.labels is None
    with pytest.raises(ConfigError, match="device 'cuda:99' cannot be used here"):
        build_model(written(flags + "device: cuda:99\n"))


def test_every_key_is_documented():
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| .* \| (.*) \|$", text, re.MULTILINE))
    plain = [key for key in leaf_keys() if not key.startswith(("sampler.", "resolver."))]
    assert [key for key in rows if key not in ("sampler", "resolver")] == plain, "the same keys in the same order"
    for key, said in rows.items():
        section, name = leaf_keys().get(key, (Settings, key))
        assert said == " ".join(section.model_fields[name].description.split()).replace("|", "\\|"), key


@pytest.mark.parametrize(("what", "kinds"), [("samplers", SAMPLERS), ("resolvers", RESOLVERS)])
def test_every_kind_and_its_keys_are_documented(what, kinds):
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    section = re.search(rf"^### Kinds of {what}$(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)[1]
    rows = dict(re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", section, re.MULTILINE))
    assert list(rows) == list(kinds)
    for name, kind in kinds.items():
        keys = [f"`{key}`: {kind.model_fields[key].description}" for key in kind.options()]
        assert rows[name] == " ".join(" ".join([kind.__doc__, *keys]).split()).replace("|", "\\|"), name


def test_the_documented_configurations_are_valid(tmp_path):
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "configuration.md").read_text(), re.M | re.S)
    assert blocks
    for block in blocks:
        (tmp_path / "run.yaml").write_text(block)
        read_settings(tmp_path / "run.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_the_examples_are_valid(path):
    assert read_settings(path).name == path.stem
