"""`torchfault init` and `torchfault doctor`: a file that runs as it stands, and checks that can fail."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.digits import save_digits
from torchfault.cli import doctor, main
from torchfault.config import read_settings
from torchfault.engine import Engine

DEMO = ["--model", "torchfault.demo:model", "--data", "torchfault.demo:data", "--limit", "20"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Run every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_file_runs_as_it_stands(capfd):
    assert main(["init", *DEMO]) == 0
    text = Path("torchfault.yaml").read_text()
    assert "13,706 parameters" in text
    assert "float32 (1, 8, 8) from 0 to 1" in text
    assert "#   weight   4 sites, 13,584 elements, 434,688 faults" in text
    settings = read_settings(Path("torchfault.yaml"))
    assert (settings.name, settings.criterion, settings.stop.trials) == ("torchfault", "top1", 10_000)
    assert [choice.kinds for choice in settings.sites] == [("weight",), ("input",)]
    capfd.readouterr()
    assert main(["run", "torchfault.yaml", "--trials", "50"]) == 0
    assert "of 50 trials fail" in capfd.readouterr().out


def test_what_flags_set_stands_in_the_file(folder):
    (folder / "my data").mkdir()
    save_digits(folder / "my data", 12)
    flags = [
        "--data",
        "my data/digits.npz",
        "--kinds",
        "bias",
        "--half-width",
        "site=0.05",
        "--sampler",
        "adaptive:deviations",
    ]
    flags += ["--sampler", "adaptive:deviations", "--resolver", "pooled:32,audit=0.02"]
    flags += ["--criterion", "margin:0.5", "--seed", "7", "--executor", "hooks", "--name", "yes", "--level", "0.9"]
    (folder / "sub").mkdir()
    assert main(["init", "--model", "torchfault.zoo:digits_cnn", *flags, "-o", "sub/my net.yaml"]) == 0
    settings = read_settings(Path("sub/my net.yaml"))
    assert settings.data.path == folder / "my data" / "digits.npz"
    assert 'path: "../my data/digits.npz"' in Path("sub/my net.yaml").read_text()
    assert [choice.kinds for choice in settings.sites] == [("bias",)]
    assert (settings.criterion, settings.seed, settings.executor) == ("margin:0.5", 7, "hooks")
    assert (settings.name, settings.level, settings.sampler.strata) == ("yes", 0.9, "deviations")
    assert [(one.kind, one.size, one.audit) for one in settings.resolver] == [("pooled", 32, 0.02)]
    assert (settings.stop.half_width, settings.stop.trials) == ({"site": 0.05}, None)


def test_a_model_that_cannot_be_captured_is_told_with_its_reason():
    Path("stubborn_init.py").write_text(
        "from torchfault.zoo import DigitsCNN\n"
        "class Stubborn(DigitsCNN):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) if x.sum().item() < 1e9 else super().forward(-x)\n"
        "def make(): return Stubborn().eval()\n"
    )
    assert main(["init", "--model", "stubborn_init:make", "--shape", "1,8,8"]) == 0
    line = next(line for line in Path("torchfault.yaml").read_text().splitlines() if line.startswith("executor:"))
    assert line.startswith("executor: auto # here hooks: ")


def test_a_file_that_exists_is_kept(capfd):
    Path("torchfault.yaml").write_text("mine")
    assert main(["init", *DEMO]) == 2
    assert "--force" in capfd.readouterr().err
    assert Path("torchfault.yaml").read_text() == "mine"
    assert main(["init", *DEMO, "--force"]) == 0
    assert Path("torchfault.yaml").read_text() != "mine"


def test_nothing_is_written_for_a_model_that_fails(capfd, folder):
    assert main(["init", "--model", "no.such:thing", "--shape", "3"]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert list(folder.iterdir()) == []


def test_init_as_json(capfd):
    assert main(["init", *DEMO, "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["file"], told["parameters"], told["inputs"]) == ("torchfault.yaml", 13706, 20)
    assert (told["criterion"], told["kinds"][-1]["faults"]) == ("top1", 672384)


def test_doctor_finds_this_installation_in_order(capfd):
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["versions"]["torch"] == torch.__version__ or torch.__version__.startswith(told["versions"]["torch"])
    assert [check["name"] for check in told["checks"]][:3] == ["graph on cpu", "hooks on cpu", "outcomes on cpu"]
    assert all(check["right"] for check in told["checks"])
    assert main(["doctor"]) == 0
    out, err = capfd.readouterr()
    assert "graph on cpu     ok: 120 faults" in out
    assert "torchfault demo" in err


@pytest.mark.parametrize("executor", ["graph", "hooks"])
def test_doctor_notices_an_engine_that_is_wrong(executor, monkeypatch, capfd):
    right = Engine.run

    def wrong(self, trials, **options):
        for lanes in right(self, trials, **options):
            if self.executor == executor:
                lanes.outputs.mul_(1.5)
            yield lanes

    monkeypatch.setattr(Engine, "run", wrong)
    assert main(["doctor"]) == doctor.CHECK_FAILED
    out, _ = capfd.readouterr()
    assert f"{executor} on cpu" in next(line for line in out.splitlines() if "FAILED" in line)


def test_doctor_notices_executors_with_other_outcomes(monkeypatch, capfd):
    monkeypatch.setattr(doctor, "_TIES", -1)
    assert main(["doctor", "--json"]) == doctor.CHECK_FAILED
    told = json.loads(capfd.readouterr().out)
    assert not told["right"]
    assert "differ in 0 of 600" in told["checks"][2]["found"]
