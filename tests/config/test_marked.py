"""Configurations from anywhere: read up to a size and a depth, and nothing in them stands for anything else."""

import os

import pytest

from torchfault.config import Override, read_settings
from torchfault.config.marked import parse, read
from torchfault.config.merge import put
from torchfault.errors import ConfigError, HardwareError
from torchfault.plain_yaml import scalar

GOOD = "model: a:b\ndata: a.npz\n"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/dev/zero", "the configuration '/dev/zero' is a device, a pipe or another special file; give a YAML file"),
        ("/proc/self/mem", "the configuration '/proc/self/mem' cannot be read"),
        ("/proc/kcore", "the configuration '/proc/kcore' (cannot be read|has more than 1 MiB|is a device)|there is no"),
        ("/", "the configuration '/' is a folder"),
        ("a\0b.yaml", "has a name that no file can have"),
        ("\ud800.yaml", "has a name that no file can have"),
        ("~nosuch/a.yaml", "there is no configuration file '~nosuch/a.yaml'"),
    ],
)
def test_only_plain_files_are_read(path, message):
    with pytest.raises(ConfigError, match=message):
        read_settings(path)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match="special file"):
        read(tmp_path / "a.yaml")


def test_a_large_file_is_not_read_to_its_end(tmp_path):
    with (tmp_path / "a.yaml").open("wb") as file:
        file.truncate(1 << 40)  # sparse: it takes no space
    with pytest.raises(ConfigError, match="has more than 1 MiB; give a YAML file of settings"):
        read(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text(GOOD + "#" * 1_000_000)
    assert read(tmp_path / "a.yaml").value["model"] == "a:b"


@pytest.mark.parametrize("levels", [51, 900, 20_000])
@pytest.mark.parametrize(
    "nested",
    [lambda n: "[" * n + "]" * n, lambda n: "{a: " * n + "1" + "}" * n, lambda n: "- " * n + "1", lambda n: "? " * n],
)
def test_depth_is_bounded(nested, levels):
    text = f"model: a:b\ndata:\n  {nested(levels)}\n"
    with pytest.raises(ConfigError, match=r"run.yaml:3: values nest more than 50 deep|not valid YAML"):
        parse(text, "run.yaml")
    assert scalar(nested(levels)) == nested(levels)


def test_some_depth_is_read():
    assert parse("a: " + "[" * 40 + "]" * 40, "x").value
    assert parse("".join(f"{' ' * i}a:\n" for i in range(40)), "x").value


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)


@pytest.mark.parametrize("text", [LAUGHS, "a: &x {b: 1}\nc: {<<: *x}\n", "a: &x [*x]\n"])
def test_nothing_stands_for_another_thing(text):
    with pytest.raises(ConfigError, match=r"run.yaml:\d+: YAML aliases are not supported; write the value out"):
        parse(text, "run.yaml")


@pytest.mark.parametrize("text", ["[&a [1, 1], &b [*a, *a], *b]", "*x", "&a *a"])
def test_a_flag_does_not_grow_either(text):
    assert scalar(text) == text


@pytest.mark.parametrize("number", ["9" * 5000, "0x" + "f" * 5000, "-" + "1_" * 500 + "1"])
def test_numbers_have_an_end(number):
    with pytest.raises(ConfigError, match=r"run.yaml: not valid YAML: a number of .* digits"):
        parse(f"a: {number}\n", "run.yaml")
    assert scalar(number) == number


@pytest.mark.parametrize(
    ("key", "path", "message"),
    [
        (("checkpoint", "path"), "~nosuch/a.pt", "checkpoint.path: nobody is called 'nosuch' here; write the path out"),
        (("data",), "~nosuch", "data.path: nobody is called 'nosuch' here"),
        (("store",), "a\0b.db", "store: no file can have the name 'a"),
        (("checkpoint",), "\ud800.pt", "checkpoint.path: no file can have the name"),
    ],
)
def test_paths_that_cannot_be_are_told(key, path, message):
    with pytest.raises(ConfigError, match=message):
        put({"model": {"factory": "a:b"}}, Override(key, path, "--flag"))


def test_a_key_has_only_so_many_parts():
    with pytest.raises(ConfigError, match=r"^--set a.*\.\.\.: a key has at most 20 parts, got 900$"):
        put({}, Override(("a",) * 900, 1, "--set " + ".".join("a" * 900)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("types: " + "[" * 900 + "]" * 900, "on line 1: values nest more than 50 deep"),
        ("name: &a x\ntypes: [*a]\n", "on line 2: YAML aliases are not supported"),
        ("name: !!python/name:os.system\n", "YAML tags such as .* on line 1"),
        ("name: [", "is not valid YAML on line 1"),
        ("name: a\x00b", "is not valid YAML"),
        ("share: " + "9" * 5000, "a number of 5,000 digits"),
        ("#" * 2_000_000, "has more than 1 MiB"),
    ],
)
def test_accelerators_are_read_with_the_same_care(text, message, tmp_path):
    from torchfault.hardware.accelerator import read_accelerator

    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(HardwareError, match=f"cannot read an accelerator from '.*a.yaml': .*{message}"):
        read_accelerator(tmp_path / "a.yaml")


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "/", "no.yaml", "a\0b"])
def test_accelerators_come_from_plain_files(path):
    from torchfault.hardware.accelerator import read_accelerator

    with pytest.raises(HardwareError, match="cannot read an accelerator from"):
        read_accelerator(path)
