"""Bad input: one clear line, exit status 2, and nothing written."""

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from torchfault.cli import header, main

GOOD = """\
model: torchfault.zoo:digits_cnn
data: data.npz
sites:
  kinds: weight
stop: 100
executor: hooks
"""
MODULE = """\
import torch
from torch import nn

def fails(): raise RuntimeError("out of luck")
def text(): return "no model"
def wide(): return nn.Linear(7, 2)
def running(): return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(), nn.Linear(64, 10)).train()
def empty(): return torch.zeros(0, 1, 8, 8)
def uneven(): return torch.zeros(3, 1, 8, 8), torch.zeros(4)
def words(): return "no data"
def shapeless(golden, faulty, labels): return torch.tensor(True)
def broken(golden, faulty, labels): raise KeyError("logits")
def wordy(outputs, labels): return "good"
class NoFault: pass
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Make a folder of good and of malformed files, in which every case runs."""
    import torch

    from torchfault.zoo import digits_cnn, resnet20

    here = tmp_path_factory.mktemp("bad")
    rng = np.random.default_rng(0)
    images, labels = rng.random((20, 1, 8, 8), dtype=np.float32), rng.integers(0, 10, 20)
    np.savez(here / "data.npz", images=images, labels=labels)
    np.savez(here / "unlabelled.npz", images=images)
    np.savez(here / "uneven.npz", images=images, labels=labels[:7])
    np.savez(here / "objects.npz", images=np.array([{}], dtype=object))
    np.savez(here / "texts.npz", images=np.array(["a", "b"]))
    np.savez(here / "other.npz", pictures=images)
    np.savez(here / "large.npz", images=rng.random((4, 3, 32, 32), dtype=np.float32))
    np.save(here / "data.npy", images)
    (here / "cut.npz").write_bytes((here / "data.npz").read_bytes()[:300])
    (here / "text.npz").write_text("no archive\n")
    (here / "folder" / "class").mkdir(parents=True)
    (here / "folder" / "class" / "a.png").write_text("no picture\n")
    (here / "nothing").mkdir()
    state = digits_cnn().state_dict()
    torch.save(state, here / "good.pt")
    torch.save(resnet20().state_dict(), here / "resnet20.pt")
    torch.save(digits_cnn(), here / "model.pt")
    torch.save([1, 2, 3], here / "list.pt")
    torch.save({"best": {"epoch": 3}}, here / "bare.pt")
    torch.save({name: value.to(torch.int8) for name, value in state.items()}, here / "integers.pt")
    (here / "cut.pt").write_bytes((here / "good.pt").read_bytes()[:2000])
    (here / "empty.pt").write_bytes(b"")
    (here / "text.pt").write_text("no checkpoint\n" * 20)
    (here / "evil.pt").write_bytes(pickle.dumps({"weights": os.getcwd}))
    (here / "text.safetensors").write_text("no tensors\n")
    (here / "text.db").write_text("no store\n" * 400)
    (here / "own_bad_things.py").write_text(MODULE)
    (here / "mine.png").write_text("my own")
    (here / "latin.yaml").write_bytes("model: a:b # \xe9\n".encode("latin-1"))
    return here


def config(**lines: str) -> str:
    """Return GOOD with the top-level keys of *lines* replaced, added, or (empty) left out."""
    import yaml

    value = yaml.safe_load(GOOD)
    text = ""
    for key in dict.fromkeys((*value, *lines)):
        line = lines.get(key, json.dumps(value.get(key)))
        text += f"{key}: {line}\n" if line else ""
    return text


FLAGS = ["run", "--model", "torchfault.zoo:digits_cnn", "--data", "data.npz", "--trials", "100", "--executor", "hooks"]

# What is wrong, and what the line must say. A text is a configuration for `run`, a list is a command line.
CASES: dict[str, tuple[str | list[str], str]] = {
    # the file as such
    "no such file": (["run", "missing.yaml"], "there is no configuration file 'missing.yaml'"),
    "a folder for a file": (["run", "nothing"], "the configuration 'nothing' is a folder; give a YAML file"),
    "not UTF-8": (["run", "latin.yaml"], "latin.yaml' is no UTF-8 text, with a byte 0xe9"),
    "empty file": ("", "the configuration is empty"),
    "a list": ("- a\n- b\n", "run.yaml:1: expected 'key: value' lines, got a list"),
    "broken YAML": ("model: [a\n", "run.yaml:2: not valid YAML"),
    "tab": ("model:\n\tfactory: a:b\n", "run.yaml:2: not valid YAML: found character"),
    "two documents": ("model: a:b\n---\nmodel: a:b\n", "run.yaml:2: not valid YAML: but found another document"),
    "python tag": ("model: !!python/name:os.system\n", "run.yaml:1: YAML tags such as"),
    "alias": ("model: &m a:b\ncheckpoint: *m\n", "run.yaml:2: YAML aliases are not supported"),
    "key twice": (GOOD + "stop: 5\n", "run.yaml:7: key 'stop' is already given on line 5"),
    "key that is a number": (GOOD + "5: stop\n", "run.yaml:7: a key is a word, got '5'"),
    "control character": (GOOD + "name: a\x00b\n", "not valid YAML: .*special characters are not allowed"),
    # keys
    "misspelt key": (config(sede="1"), "run.yaml:6: sede: no such key; did you mean 'seed'?"),
    "misspelt inner key": (
        config(data="{path: data.npz, lables: y}"),
        "data.lables: no such key; did you mean 'labels'?",
    ),
    "key of another section": (config(trials="5"), "run.yaml:6: trials: no such key; did you mean 'stop.trials'?"),
    "no model": (config(model=""), "model: missing; add it to the configuration, or give --model"),
    "no data": (config(data=""), "data: missing; add it to the configuration, or give --data"),
    # values
    "seed a text": (config(seed="many"), "run.yaml:6: seed: expected a whole number, got 'many'"),
    "seed a fraction": (config(seed="1.5"), "seed: expected a whole number, got 1.5"),
    "seed below 0": (config(seed="-1"), "seed: expected a number of at least 0, got -1"),
    "seed true": (config(seed="true"), "seed: expected a whole number, got true"),
    "level in percent": (
        config(level="95"),
        "level: expected a confidence level between 0 and 1, got 95; did you mean 0.95",
    ),
    "level NaN": (config(level=".nan"), "level: expected a finite number, got nan"),
    "unknown method": (config(method="wison"), "method: expected .*, got 'wison'; did you mean 'wilson'?"),
    "unknown executor": (
        config(executor="grap"),
        "executor: expected auto, graph or hooks, got 'grap'; did you mean 'graph'",
    ),
    "memory without sense": (config(memory="1 elephant"), "memory: expected a number of bytes such as 256MiB"),
    "memory too small": (config(memory="10"), "memory: the memory budget starts at 1MiB, got '10'"),
    "time without sense": (config(stop="{time: soon}"), "stop.time: expected a time above 0 such as 90s"),
    "no trials": (config(stop="0"), "run.yaml:4: stop.trials: expected a number of at least 1, got 0"),
    "half-width of a half": (
        config(stop="{half_width: 0.5}"),
        "stop.half_width.model: expected a number of less than 0.5",
    ),
    "stop a list": (config(stop="[5]"), "stop: expected a mapping of keys to values, got \\[5\\]"),
    "name with a slash": (config(name="a/b"), "name: expected letters, digits and . _ \\+ - only, got 'a/b'"),
    "threads 0": (config(threads="0"), "threads: expected a number of at least 1, got 0"),
    "training a text": (config(training="maybe"), "training: expected true or false, got 'maybe'"),
    "unknown device": (config(device="gpu"), "device 'gpu' cannot be used here"),
    "unknown fault": (config(fault="flop"), "fault: no fault model is called 'flop'; did you mean 'flip'?"),
    "burst of nothing": (config(fault="burst:0"), "fault: 'burst' needs a number of bits from 1 to 64"),
    "value of nothing": (config(fault="'value:'"), "fault: 'value' needs a number, as in value:0, got 'value:'"),
    "flip with an argument": (config(fault="flip:3"), "fault: 'flip' takes no argument, got 'flip:3'"),
    "unknown criterion": (config(criterion="top2"), "criterion: no criterion is called 'top2'; did you mean 'topk'"),
    "unfinished criterion": (config(criterion="top1 &"), "criterion: expected a criterion before the end in 'top1 &'"),
    "open parenthesis": (config(criterion="(top1"), "criterion: a parenthesis is not closed"),
    "rate missing": (config(sampler="bit-error-rate"), "sampler.rate: missing; add it to the configuration"),
    "rate too much": (
        config(sampler="{rate: 1e-6}"),
        "sampler.rate: no such key of uniform; rate goes with bit-error-rate",
    ),
    "rate above 1": (config(sampler="{kind: bit-error-rate, rate: 2}"), "sampler.rate: expected a number of at most 1"),
    "faults of all faults": (
        config(sampler="{kind: exhaustive, faults: 2}"),
        "sampler.faults: no such key of exhaustive; faults goes with uniform",
    ),
    "unknown sampler": (config(sampler="unifrom"), "sampler: no sampler is called 'unifrom'; did you mean 'uniform'?"),
    "sampler with two values": (config(sampler="'uniform:3,4'"), "only the first value stands without its name"),
    "sampler with a value too many": (config(sampler="'exhaustive:3'"), "'exhaustive' takes no argument"),
    "value given twice": (config(sampler="'uniform:3,faults=4'"), "'uniform' is given faults twice"),
    "resolver of one": (config(resolver="'pooled:1'"), "resolver.size: expected a number of at least 2, got 1"),
    "unknown resolver": (config(resolver="poled"), "resolver: no resolver is called 'poled'; did you mean 'pooled'"),
    "option of another section": (config(sampler="adaptive:block=7"), "no such key; adaptive takes "),
    "adaptive without a goal": (config(sampler="adaptive"), "adaptive draws towards half-widths, got none"),
    "half-width by nothing": (config(stop="{half_width: {sight: 0.1}}"), "got 'sight'; did you mean 'site'"),
    "half-width twice": (config(stop="{half_width: [0.1, 0.2]}"), "the half-width of 'model' is given twice"),
    "tiny half-width": (config(stop="{half_width: 1e-300}"), "half_width.model: expected a number of at least 1e-07"),
    "no inputs for a fault": (config(inputs_per_fault="0"), "inputs_per_fault: expected a number of at least 1"),
    "too many inputs for a fault": (config(inputs_per_fault="99"), "a fault runs on 1 to 20 inputs"),
    "verdict of its own": (config(verdicts="{failed: top1}"), "every campaign has a verdict 'failed' of its own"),
    "verdict of nothing": (config(verdicts="{odd: top2}"), "verdicts.odd: no criterion is called 'top2'"),
    "verdicts amid pools": (
        config(verdicts="{wrong: misclassified}", resolver="pooled"),
        "Pooled leaves lanes out, so that wrong stay unknown",
    ),
    "criterion beside a metric": (
        config(metric="accuracy", criterion="top1"),
        "criterion beside it would have no say; leave out the metric or that",
    ),
    "pools of a metric": (config(metric="accuracy", resolver="pooled"), "Pooled finds failures, not a metric"),
    "side of no whole blocks": (config(recipe="search", search="{side: 100}"), "a side sample is whole blocks"),
    "unknown recipe": (config(recipe="serch"), "recipe: expected run, .*, got 'serch'; did you mean 'search'"),
    "share of nothing": (config(vulnerability="{share: 0}"), "vulnerability.share: expected a share such as 10%"),
    "words of nothing": (config(vulnerability="{weights: 0}"), "vulnerability.weights: expected a number from 1, log2"),
    "huge shape": (config(data="{shape: [100000, 100000], limit: 100000}"), "do not fit into memory; give fewer"),
    "huge limit": (
        config(data="{path: data.npz, limit: 99999999999999999999}"),
        "data.limit: expected a number of at most",
    ),
    "many criteria": (config(criterion="'" + " & ".join(["top1"] * 5000) + "'"), "a criterion has at most 1,000 parts"),
    "deep criteria": (config(criterion="'" + "(" * 900 + "top1" + ")" * 900 + "'"), "parentheses nest at most 50 deep"),
    "meta device": (config(device="meta"), "device 'meta' cannot be used here"),
    "home of nobody": (
        config(checkpoint="~nosuchuser/a.pt"),
        "checkpoint.path: nobody is called 'nosuchuser' here; write the path out",
    ),
    "measure without a mass": (config(measure="'own_bad_things:NoFault'"), "has no method 'mass'"),
    "sampler without draws": (config(sampler="'own_bad_things:NoFault'"), "has no method 'draw'"),
    "mean without std": (config(data="{path: data.npz, mean: [0.5]}"), "data: mean and std belong together"),
    "std of 0": (config(data="{path: data.npz, mean: [0.5], std: [0]}"), "data: std needs numbers above 0, got 0"),
    "two sources": (
        config(data="{path: data.npz, shape: [1, 8, 8]}"),
        "data: expected exactly one of path, factory and",
    ),
    "limit 0": (config(data="{path: data.npz, limit: 0}"), "data.limit: expected a number of at least 1, got 0"),
    # models
    "a model without a module": (config(model="resnet20"), "a model is named as package.module:factory"),
    "no such module": (config(model="no_such_module:net"), "there is no module 'no_such_module'"),
    "no such factory": (config(model="torchfault.zoo:digit_cnn"), "has no 'digit_cnn'; did you mean 'digits_cnn'"),
    "a factory that fails": (config(model="own_bad_things:fails"), "failed: RuntimeError: out of luck"),
    "a factory of texts": (
        config(model="own_bad_things:text"),
        "should return a torch.nn.Module, got an object of type str",
    ),
    "unknown argument": (
        config(model="{factory: 'torchfault.zoo:resnet20', kwargs: {depth: 3}}"),
        "got an unexpected keyword",
    ),
    "pretrained without a library": (
        config(model="{factory: 'a:b', pretrained: true}"),
        "pretrained goes with torchvision:",
    ),
    "model that does not fit": (
        config(model="own_bad_things:wide"),
        "the model cannot run on the data, inputs of \\(1, 8, 8\\)",
    ),
    # checkpoints
    "no such checkpoint": (config(checkpoint="missing.pt"), "the checkpoint '.*missing.pt' does not exist"),
    "checkpoint a folder": (config(checkpoint="nothing"), "the checkpoint '.*nothing' is a folder"),
    "checkpoint empty": (config(checkpoint="empty.pt"), "'empty.pt' is not a checkpoint that torch.save wrote"),
    "checkpoint cut short": (
        config(checkpoint="cut.pt"),
        "'cut.pt' is not a checkpoint that torch.save wrote, or it is cut",
    ),
    "checkpoint a text": (config(checkpoint="text.pt"), "'text.pt' is not a checkpoint that torch.save wrote"),
    "checkpoint that runs code": (
        config(checkpoint="evil.pt"),
        "'evil.pt' is a plain pickle, and loading it could run code",
    ),
    "checkpoint a model": (
        config(checkpoint="model.pt"),
        "'model.pt' holds more than tensors, .* save model.state_dict",
    ),
    "checkpoint a list": (config(checkpoint="list.pt"), "'list.pt' holds an object of type list"),
    "checkpoint without weights": (config(checkpoint="bare.pt"), "no weights are found in 'bare.pt'"),
    "checkpoint of another model": (
        config(checkpoint="resnet20.pt"),
        "does not fit the model: 7 missing: conv1.bias, ",
    ),
    "checkpoint of integers": (config(checkpoint="integers.pt"), "of another type: conv1.weight torch.int8 instead of"),
    "checkpoint key": (config(checkpoint="{path: bare.pt, key: bset}"), "nothing under 'bset'; did you mean 'best'"),
    "checkpoint prefix": (
        config(checkpoint="{path: good.pt, prefix: net.}"),
        "no name in 'good.pt' begins with 'net.'",
    ),
    "safetensors broken": (
        config(checkpoint="text.safetensors"),
        "'text.safetensors' is not a readable safetensors file",
    ),
    # data
    "no such data": (config(data="missing.npz"), "there are no data at '.*missing.npz'"),
    "data cut short": (config(data="cut.npz"), "'cut.npz' is not an .npz file, or it is cut short"),
    "data a text": (config(data="text.npz"), "'text.npz' is not an .npz file"),
    "data .npy": (config(data="data.npy"), "data are an .npz file or a folder of images, got 'data.npy'"),
    "data of objects": (config(data="objects.npz"), "array 'images' in 'objects.npz' holds Python objects"),
    "data of texts": (config(data="texts.npz"), "array 'images' in 'texts.npz' holds <U1; numbers are needed"),
    "data without inputs": (config(data="other.npz"), "'other.npz' holds pictures; say which array are the inputs"),
    "array that is not there": (
        config(data="{path: data.npz, inputs: image}"),
        "no array 'image'; did you mean 'images'",
    ),
    "labels uneven": (config(data="uneven.npz"), "holds 20 inputs but 7 labels"),
    "limit too high": (
        config(data="{path: data.npz, limit: 21}"),
        "a limit of 21 inputs is more than the 20 there are",
    ),
    "channels": (
        config(data="{path: data.npz, mean: [0, 0, 0], std: [1, 1, 1]}"),
        "one number per channel, got 3 for 1",
    ),
    "data of another model": (
        config(data="large.npz"),
        "the model cannot run on the data, inputs of \\(3, 32, 32\\) float32",
    ),
    "folder without classes": (
        config(data="nothing"),
        "has no sub-folders; it needs one sub-folder of images per class",
    ),
    "folder of no images": (config(data="folder"), "a.png' is not a readable image"),
    "data factory empty": (
        config(data="own_bad_things:empty"),
        "inputs and labels need the same first axis, of 1 or more",
    ),
    "data factory uneven": (config(data="own_bad_things:uneven"), "inputs and labels need the same first axis"),
    "data factory of texts": (config(data="own_bad_things:words"), "returned an object of type str"),
    "data factory missing": (config(data="own_bad_things:wrds"), "has no 'wrds'; did you mean 'words'"),
    # sites
    "no such site": (
        config(sites="{include: convl.weight}"),
        "no site matches 'convl.weight'; did you mean 'conv..weight'",
    ),
    "no such exclusion": (config(sites="{exclude: bn*}"), "no site matches 'bn\\*'"),
    "no such kind": (config(sites="{kinds: weights}"), "no site of kind matches 'weights'; did you mean 'weight'"),
    "no such type": (config(sites="{types: Conv3d}"), "no site of module type matches 'Conv3d'; did you mean 'Conv2d'"),
    "broken expression": (config(sites="{include: 're:conv('}"), "'re:conv\\(' is not a regular expression"),
    "filters that exclude all": (
        config(sites="{include: conv1.*, types: Linear}"),
        "no site passes all the filters together",
    ),
    "bit beyond the word": (config(sites="{bits: 40}"), "no (chosen )?site has .*40"),
    "bits backwards": (config(sites="{bits: 9-3}"), "sites.bits: bit positions run upwards from 0 to 63, got '9-3'"),
    "field that is not there": (config(sites="{bits: magnitude}"), "no chosen site has a bit field 'magnitude'"),
    "no choice": (config(sites="[]"), "sites: expected 1 or more values, got \\[\\]"),
    # what does not go together
    "labels needed": (config(data="unlabelled.npz", criterion="misclassified"), "label"),
    "metric needs labels": (config(data="unlabelled.npz", metric="accuracy"), "label"),
    "criterion of another shape": (config(criterion="own_bad_things:shapeless"), "return one truth value per lane"),
    "criterion that fails": (
        config(criterion="own_bad_things:broken"),
        "the criterion fails on the golden outputs: KeyError",
    ),
    "criterion missing": (config(criterion="own_bad_things:brken"), "has no 'brken'; did you mean 'broken'"),
    "metric of texts": (
        config(metric="own_bad_things:wordy"),
        "the metric fails on the golden outputs|a metric returns one",
    ),
    "fault model without masks": (
        config(fault="own_bad_things:NoFault"),
        "'own_bad_things:NoFault' has no method 'masks'",
    ),
    "more classes than there are": (config(criterion="topk:11"), "11"),
    # flags
    "no such command": (["rnu"], "no such command 'rnu'"),
    "no such flag": (["run", "--tirals", "5"], "no such option: --tirals"),
    "flag without a value": (["run", "--model"], "'--model' requires an argument"),
    "two configurations": (["run", "a.yaml", "b.yaml"], "unexpected extra argument"),
    "flag of a wrong type": ([*FLAGS, "--seed", "x"], "--seed: expected a whole number, got 'x'"),
    "flag with a wrong bit": (
        [*FLAGS, "--bits", "a"],
        "--bits: expected a bit position, a range such as 23-30 or one of",
    ),
    "flag with a wrong pattern": ([*FLAGS, "--include", "conv9*"], "no site matches 'conv9\\*'; did you mean 'conv"),
    "set without a value": ([*FLAGS, "--set", "seed"], "--set seed: expected KEY=VALUE"),
    "set of an unknown key": (
        [*FLAGS, "--set", "stop.trails=5"],
        "--set stop.trails=5: no such key; did you mean 'trials'",
    ),
    "set below a value": ([*FLAGS, "--set", "seed.x=5"], "seed"),
    "two sources by flags": ([*FLAGS, "--shape", "1,8,8"], "--data and --shape both say where inputs come from"),
    "sites of nothing": (["sites"], "model: missing; .* give --model"),
    "sites in another format": (["sites", *FLAGS[1:5], "--format", "xml"], "--format: expected table, .*, got 'xml'"),
    "demo without trials": (["demo", "--trials", "5"], "trials"),
    "demo with another plot": (["demo", "--plot", "plot.doc"], "a plot is a .png, .pdf or .svg file, got 'plot.doc'"),
    "demo into no folder": (["demo", "--plot", "no/where.png"], "needs a folder that exists"),
    "former flag": ([*FLAGS, "--interval", "wilson"], "no such option: --interval; it is --method now"),
    "former flag of a sampler": ([*FLAGS, "--rate", "1e-6"], "it is --sampler bit-error-rate:RATE now"),
    "plot over a file": ([*FLAGS, "--plot", "mine.png"], "the plot 'mine.png' exists; .* --force"),
    "unknown table": ([*FLAGS, "--format", "tabel"], "--format: expected table, .*; did you mean 'table'"),
    "endless speed": (["plan", *FLAGS[1:5], "--speed", "inf"], "--speed: expected a number from 1e-06 to"),
    "tiny margin": (["plan", *FLAGS[1:5], "--margin", "1e-300"], "--margin: expected a number from 1e-06 to"),
    "search of a metric": (["search", *FLAGS[1:5], "--metric", "accuracy"], "no such option: --metric"),
    "a device for a configuration": (["run", "/dev/zero"], "is a device, a pipe or another special file"),
    # stores
    "no store": (["show"], "there is no store at torchfault.db"),
    "store that is none": (["show", "--store", "text.db"], "text.db"),
    "run into what is no store": ([*FLAGS, "--store", "text.db"], "text.db"),
    "store in no folder": ([*FLAGS, "--store", "no/where.db"], "the folder .* of the store does not exist"),
    "store a folder": ([*FLAGS, "--store", "nothing"], "nothing"),
    "store of an endless name": (["show", "--store", "x" * 3000], r"the store x{200}\.\.\.x{100} cannot be read"),
    "model of an endless name": (
        ["sites", "--model", f"a:{'b' * 3000}", *FLAGS[3:5]],
        r"b{150,200}\.\.\.|no module 'a'",
    ),
    "resume of nothing": (["resume", "--store", "missing.db"], "there is no store at missing.db"),
    "export of nothing": (["export", "--store", "missing.db"], "there is no store at missing.db"),
}


def test_there_are_enough_cases():
    assert len(CASES) >= 60


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Return every file below *folder* with its size and time, save for caches of bytecode."""
    files = (path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files if path.is_file()}


def command(wrong: str | list[str]) -> list[str]:
    """Return the command line of a case, with its configuration written where there is one."""
    if isinstance(wrong, list):
        return wrong
    Path("run.yaml").write_text(wrong, encoding="utf-8")
    return ["run", "run.yaml"]


def check(said: str, status: int, out: str, err: str) -> None:
    assert status == 2, err
    assert out == ""
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    assert re.search(said, err), err


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Let no busy machine have the header told before what is wrong."""
    monkeypatch.setattr(header, "_PATIENCE", 600.0)


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_in_one_line(case, folder, capfd):
    wrong, said = CASES[case]
    arguments = command(wrong)
    before = listing(folder)
    status = main(arguments)
    out, err = capfd.readouterr()
    check(said, status, out, err)
    assert listing(folder) == before


@pytest.mark.usefixtures("inside")
@pytest.mark.parametrize("case", ["misspelt key", "checkpoint of another model", "no such site", "no such flag"])
def test_bad_input_ends_a_process_with_status_2(case, folder):
    wrong, said = CASES[case]
    arguments = command(wrong)
    before = listing(folder)
    done = subprocess.run([sys.executable, "-m", "torchfault", *arguments], capture_output=True, text=True, check=False)
    facts, last = done.stderr.splitlines(keepends=True)[:-1], done.stderr.splitlines(keepends=True)[-1]
    assert all(line.startswith(("run\n", "  ")) for line in facts), "a busy machine may have told the header by then"
    check(said, done.returncode, done.stdout, last)
    assert listing(folder) == before


@pytest.mark.usefixtures("inside")
def test_the_good_configuration_is_good(folder, capfd, tmp_path):
    """The cases differ from this one in one thing each, so this one must pass."""
    (folder / "run.yaml").write_text(config(store=str(tmp_path / "good.db")))
    assert main(["run", "run.yaml"]) == 0, capfd.readouterr().err
    assert (tmp_path / "good.db").is_file()


@pytest.mark.usefixtures("inside")
def test_a_campaign_that_is_there_is_not_run_over(capfd, tmp_path):
    arguments = [*FLAGS, "--store", str(tmp_path / "twice.db"), "--kinds", "bias"]
    assert main(arguments) == 0
    before = listing(tmp_path)
    for more, said in (
        (["--seed", "1"], "begun with another .*seed"),
        (["--criterion", "topk:2"], "another criterion"),
    ):
        capfd.readouterr()
        check(
            f"campaign 'digits_cnn' was .*{said}.*choose another name", main([*arguments, *more]), *capfd.readouterr()
        )
    check("has 100 trials already", main([*arguments[:-4], "--trials", "50", *arguments[-4:]]), *capfd.readouterr())
    assert listing(tmp_path) == before


STORED = {
    "unknown campaign": (["show", "digit_cnn"], "has no campaign 'digit_cnn', it holds digits_cnn; did you mean"),
    "unknown grouping": (
        ["show", "--by", "layr"],
        "--by: 'digits_cnn' has the tables .*, got 'layr'; did you mean 'layer'",
    ),
    "unknown outcome": (["show", "--flag", "fialed"], "recorded .*, got 'fialed'; did you mean 'failed'"),
    "unknown outcome of an export": (
        ["export", "--flag", "fialed"],
        "recorded .*, got 'fialed'; did you mean 'failed'",
    ),
    "table of another recipe": (["show", "--by", "what-if"], "has the tables .*, got 'what-if'"),
    "plot over a file": (["show", "--plot", "mine.png"], "the plot 'mine.png' exists; .* --force"),
    "plot into a folder": (["show", "--plot", "folder.png"], "the plot 'folder.png' is a folder"),
    "export through a link": (["export", "--output", "link.csv"], "the file 'link.csv' exists"),
    "unknown format": (["show", "--format", "tabel"], "--format: expected .*, got 'tabel'; did you mean 'table'"),
    "unknown method": (["show", "--method", "wald"], "an interval method is one of wilson, "),
    "level in percent": (["show", "--level", "95"], "a confidence level lies strictly between 0 and 1, got 95"),
    "no rows": (["show", "--top", "0"], "--top"),
    "plot of no kind": (["show", "--plot", "a.doc"], "a plot is a .png, .pdf or .svg file, got 'a.doc'"),
    "export to no kind": (["export", "--output", "a.xls"], "an export is a .parquet or a .csv file, got 'a.xls'"),
    "export over a file": (["export", "--output", "data.csv"], "the file 'data.csv' exists; .* --force"),
    "report over a file": (["report", "--output", "data.csv"], "the report 'data.csv' exists; .* --force"),
    "report to nowhere": (["report", "-o", "no/where.html"], "no/where.html"),
    "report of nothing": (["report", "unheard"], "has no campaign 'unheard', it holds digits_cnn"),
    "evidence of rates of nothing": (
        ["evidence", "--fit-per-mbit", "wieght=7"],
        "'wieght' is no kind or glob",
    ),
    "evidence of too much": (
        ["evidence", "--fit-per-mbit", "1e308"],
        "expected 1e-09 to .* FIT .*, got 1e\\+308",
    ),
    "evidence to check, and of one": (["evidence", "unheard", "--check", "folder"], "leave 'unheard' out"),
    "export to nowhere": (["export", "--output", "no/where.csv"], "no/where.csv"),
    "resume of another": (["resume", "resnet20"], "has no campaign 'resnet20', it holds digits_cnn"),
    "resume with other data": (["resume", "--trials", "200", "--data", "unlabelled.npz"], "begun with another .*data"),
    "resume with other weights": (["resume", "--trials", "200", "--checkpoint", "good.pt"], "begun with another model"),
    "resume without sense": (["resume", "--trials", "0"], "--trials: expected a number of at least 1, got 0"),
    "resume with less": (["resume", "--trials", "50"], "has 100 trials already, more than --trials 50"),
    "resume of another seed": (["resume", "--trials", "200", "--set", "seed=4"], "begun with another model"),
    "resume by nothing": (["resume", "--half-width", "sight=0.1"], "got 'sight'; did you mean 'site'"),
}


@pytest.fixture(scope="module")
def stored(folder):
    """Return a store with one finished campaign."""
    where = folder.parent / "stored"
    where.mkdir()
    here = Path.cwd()
    os.chdir(folder)
    try:
        assert main([*FLAGS, "--store", str(where / "torchfault.db"), "--kinds", "bias"]) == 0
    finally:
        os.chdir(here)
    for name in ("unlabelled.npz", "good.pt"):
        (where / name).write_bytes((folder / name).read_bytes())
    (where / "data.csv").write_text("mine\n")
    (where / "mine.png").write_text("mine")
    (where / "folder.png").mkdir()
    (where / "link.csv").symlink_to(where / "data.csv")
    return where


@pytest.mark.parametrize("case", STORED)
def test_bad_questions_to_a_store_are_told_in_one_line(case, stored, monkeypatch, capfd):
    monkeypatch.chdir(stored)
    arguments, said = STORED[case]
    before = listing(stored)
    status = main(arguments)
    check(said, status, *capfd.readouterr())
    assert listing(stored) == before
