"""`torchfault harden`: what it shows and saves, and what it refuses before anything runs."""

import json

import numpy as np
import pytest
import torch

from tests.support.digits import save_digits
from torchfault.cli import hardened, main
from torchfault.hardening import InvariantBits, Ranges, guards, load_hardened
from torchfault.zoo import digits_cnn

HARDEN = ["harden", "--model", "torchfault.zoo:digits_cnn", "--data", "digits.npz", "--trials", "60"]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_digits(tmp_path, 20)
    return tmp_path


def test_the_hardened_model_is_measured_saved_and_read_again(capfd):
    status, (out, err) = main([*HARDEN, "--method", "ranges", "--method", "invariant-bits"]), capfd.readouterr()
    assert status == 0, err
    assert "weights" in out
    assert "activations" in out
    assert "accuracy" in out
    assert "load_hardened(load_model('torchfault.zoo:digits_cnn'), 'hardened.safetensors', Ranges(" in out
    again = load_hardened(digits_cnn(), "hardened.safetensors", Ranges(), InvariantBits())
    other = load_hardened(digits_cnn(), "hardened.safetensors", Ranges(), InvariantBits())
    given = torch.rand(3, 1, 8, 8)
    assert len(list(guards(again))) == 12
    assert torch.equal(again(given), other(given))


def read_again(out):
    """Run the lines that tell how the hardened model is read, and return it."""
    names = {}
    exec("\n".join(line.strip() for line in out.splitlines() if line.startswith(("  from ", "  model = "))), names)
    return names["model"]


def test_codes_are_hardened_as_they_are_stored(capfd):
    given = [*HARDEN, "--storage", "int8", "--method", "zero-space", "--method", "invariant-bits"]
    status, (out, err) = main(given), capfd.readouterr()
    assert status == 0, err
    safe = read_again(out)
    assert safe.conv1.weight.dtype == torch.int8
    image = torch.rand(1, 1, 8, 8)
    clean = safe(image)
    safe.conv1.weight.data[0, 0, 0, 0] ^= 1 << 5
    assert torch.equal(safe(image), clean)


def test_outputs_of_layers_that_checksums_part_are_struck_in_both(capfd):
    status, (out, err) = main([*HARDEN, "--method", "checksums", "--json"]), capfd.readouterr()
    assert status == 0, err
    assert [row["faults"] for row in json.loads(out)["survival"]] == ["weights", "activations"]
    assert "not struck" not in err


@pytest.mark.parametrize(("more", "executor"), [((), "hooks"), (("--executor", "graph"), "graph")])
def test_guards_on_standby_are_struck_as_they_run(more, executor, monkeypatch):
    seen = []
    monkeypatch.setattr(hardened, "build_engine", lambda settings, *_, **__: seen.append(settings.executor) or 1 / 0)
    assert main([*HARDEN, "--method", "ranges", "--method", "standby", *more]) == 1
    assert seen == [executor]


def test_figures_for_machines_are_the_table(capfd):
    status, (out, err) = main([*HARDEN, "--method", "invariant-bits", "--format", "json"]), capfd.readouterr()
    assert status == 0, err
    rows = json.loads(out)
    assert [row["faults"] for row in rows] == ["weights", "activations"]
    assert rows[0]["trials"] == 60
    assert main([*HARDEN, "--method", "invariant-bits", "--json", "--force"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert [row["before"] for row in told["survival"]] == [row["before"] for row in rows]
    assert (told["kind"], told["alarms"], told["inputs"]) == ("hardened", 0, 10)
    assert told["accuracy"][0] == told["accuracy"][1]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--method", "rangs"], "no method of hardening is called 'rangs'; did you mean 'ranges'?"),
        (["--method", "ranges:zer"], "ranges has no option 'zer'"),
        (["--method", "ranges", "--method", "ranges"], "guarded in this way already"),
        (["--method", "ranges", "--known", "1"], "--known: expected a share"),
        (["--method", "ranges", "--output", "no/such/a.safetensors"], "needs a folder that exists"),
        (["--method", "ranges", "--data", "plain.npz"], "needs labels"),
    ],
)
def test_bad_input_is_refused_in_one_line(more, message, capfd):
    np.savez("plain.npz", x=np.zeros((4, 1, 8, 8), dtype=np.float32))
    given = [one for i, one in enumerate(HARDEN) if "--data" not in more or i not in (3, 4)]
    assert main([*given, *more]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert "Traceback" not in err


def test_a_file_is_not_written_over_unless_asked(capfd, folder):
    (folder / "hardened.safetensors").write_text("mine")
    assert main([*HARDEN, "--method", "invariant-bits"]) == 2
    assert "exists" in capfd.readouterr().err
    assert (folder / "hardened.safetensors").read_text() == "mine"


def test_what_was_struck_before_an_interruption_is_kept_and_the_table_is_the_same(capfd, monkeypatch):
    asked = [*HARDEN[:-1], "700", "--method", "invariant-bits", "--format", "json"]
    assert main([*asked, "--store", "whole.sqlite"]) == 0
    whole, told = capfd.readouterr().out, []

    def stop(standing):
        told.append(standing.done)
        if len(told) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("torchfault.cli.progress.Watch.__call__", lambda _, standing: stop(standing))
        assert main([*asked, "--force"]) == 130
    assert "the same command goes on" in capfd.readouterr().err
    assert main([*asked, "--force"]) == 0
    assert capfd.readouterr().out == whole
    assert main(["show", "--format", "json"]) == 0
