"""Names of sites taken apart and put together, and patterns over them that no expression can hang."""

import re
import time

import numpy as np
import pytest

from torchfault.errors import SpaceError
from torchfault.names import SiteName, matching, site_name
from torchfault.names.expressions import searcher

PARTS = {
    "conv1.weight": SiteName("conv1.weight"),
    "fc.weight:indices": SiteName("fc.weight", "indices"),
    "rnn.weight_ih_l0:zero_point": SiteName("rnn.weight_ih_l0", "zero_point"),
    "0:input": SiteName("0", "input"),
    "layer1.0.add@1:input2": SiteName("layer1.0.add@1", "input", 2),
    "conv@3:output1": SiteName("conv@3", "output", 1),
    "conv1:output.exponent": SiteName("conv1", "output", part="exponent"),
    "args.0:data": SiteName("args.0", "data"),
    "lif1:state.mem#3": SiteName("lif1", "state", part="mem", step=3),
    "rnn:state.c_l0_reverse": SiteName("rnn", "state", part="c_l0_reverse"),
    "lif1:input1#0": SiteName("lif1", "input", 1, step=0),
    "lif1:constant.p.tau": SiteName("lif1", "constant", part="p.tau"),
}


@pytest.mark.parametrize("text", PARTS)
def test_a_name_comes_apart_and_together_again(text: str) -> None:
    assert site_name(text) == PARTS[text]
    assert str(site_name(text)) == text


@pytest.mark.parametrize(
    ("text", "path", "owner", "caller", "last"),
    [
        ("layer1@1.0.add@2:input", "layer1.0.add", "layer1.0", "layer1@1.0", "add"),
        ("relu:output", "relu", "", "", "relu"),
        ("conv1.weight", "conv1.weight", "conv1", "conv1", "weight"),
    ],
)
def test_a_name_tells_where_it_belongs(text: str, path: str, owner: str, caller: str, last: str) -> None:
    name = site_name(text)
    assert (name.path, name.owner, name.caller, name.last) == (path, owner, caller, last)


def test_blocks_and_steps_lead_back_to_the_whole_tensor() -> None:
    assert str(site_name("conv1@1:input.exponent").whole) == "conv1@1:input"
    assert str(site_name("lif:state.mem#2").whole) == "lif:state.mem#2"
    assert str(site_name("lif:state.mem#2").over_time) == "lif:state.mem"
    assert str(site_name("block@1.add@2:output1").over_time) == "block.add:output1"
    assert str(site_name("fc.weight").over_time) == "fc.weight"


EXPRESSIONS = (
    "conv", "^conv", r"weight$", r"^layer[1-3]\.\d+\.conv", r"(conv|fc)\d*\.(weight|bias)$", "a.c", "[^a-c]", r"\bfc\b",
    r"\Bc", r"x?y+z*", "(ab)+", "(ab|b)*c", "(a|ab)(c|bcd)", "a{2,3}b", "(a{1,2}){2}b", "(?:ab)?c", "a*?b", r"\w+\.\w+",
    r"[\d_]x", r"\Aab\Z", "", "(a*)*b", "((a?)+b)*c", r"\D\S\W", "a{0}b",
)  # fmt: skip


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_an_expression_finds_what_pythons_own_engine_finds(expression: str, rng: np.random.Generator) -> None:
    found, known = searcher(expression), re.compile(expression)
    texts = ["".join(rng.choice(list("abcdfxyz.12_"), rng.integers(0, 9))) for _ in range(400)]
    texts += ["conv1.weight", "layer2.0.conv1.weight", "fc.bias", "layer4.fc", "abab", "aab", "aaaab", "bbc", "a b"]
    assert [found(text) for text in texts] == [known.search(text) is not None for text in texts]


@pytest.mark.parametrize(
    "expression", ["(a+)+$", "(a|a)+$", "(a|aa)+$", ".*.*.*.*.*.*.*.*=$", "(a*)*b", "(a{1,99}){1,99}$"]
)
def test_no_expression_takes_more_time_than_the_length_allows(expression: str) -> None:
    begin = time.process_time()
    with pytest.raises(SpaceError, match="no site matches"):
        matching(["a" * 200 + "!"] * 3, f"re:{expression}", what="site")
    assert time.process_time() - begin < 5


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        (r"(a)\1", "groupref is not known here"),
        ("a(?=b)", "assert is not known here"),
        ("(?i)conv", "flags are not known here"),
        ("((((a*)*)*)*)*", "more than 3 repeats inside each other"),
        ("(", "missing"),
        ("a" * 2000, "at most 1000 characters"),
    ],
)
def test_what_cannot_be_followed_is_refused_in_one_sentence(expression: str, reason: str) -> None:
    with pytest.raises(SpaceError, match=re.escape(reason)) as error:
        matching(["conv1"], f"re:{expression}", what="site")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("conv1", "; did you mean 'conv1*'?"),
        ("layer1.0.conv1.wieght", "; did you mean 'layer1.0.conv1.weight'"),
        ("convl*", "; did you mean 'conv1*'"),
        ("*.wieght", "; did you mean '*.weight'"),
        ("*dwonsample*", "; did you mean '*downsample*'"),
        ("zzz*", "'zzz*'"),
    ],
)
def test_a_pattern_that_fits_nothing_is_answered_with_one_of_its_kind(pattern: str, hint: str) -> None:
    known = ["conv1.weight", "conv1:output", "layer1.0.conv1.weight", "layer1.0.downsample.0.weight", "fc.bias"]
    with pytest.raises(SpaceError, match=re.escape(hint)):
        matching(known, pattern, what="site")
