"""The fault space: numbers to faults and back, also where nobody could list them, filters, unions, refusals."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchfault.errors import SpaceError
from torchfault.faults import StuckAt
from torchfault.space import Fault, FaultSpace, Locations, Site, as_space

WORDS = {"float32": 32, "float16": 16, "int8": 8, "float64": 64, "bool": 1}


@st.composite
def sites(draw, name="s", most=6):
    """Draw a site of any word, some of its bits, and up to three axes, empty ones and scalars included."""
    word = draw(st.sampled_from(sorted(WORDS)))
    shape = tuple(draw(st.lists(st.integers(0, most), max_size=3)))
    bits = tuple(draw(st.sets(st.integers(0, WORDS[word] - 1), max_size=5)))
    channel = draw(st.one_of(st.none(), st.integers(0, len(shape) - 1))) if shape else None
    return Site(name, shape, word=word, width=WORDS[word], bits=bits, channel=channel)


@st.composite
def spaces(draw, most=6):
    """Draw a space of one to four sites."""
    several = [draw(sites(f"s{i}", most)) for i in range(draw(st.integers(0, 3)))]
    return FaultSpace((*several, draw(sites("last", most).filter(lambda site: site.size))))


def enumerated(space):
    """List a space by three loops, the definition that the arithmetic has to meet."""
    return [(s, e, b) for s, site in enumerate(space.sites) for e in range(site.elements) for b in site.bits]


# Numbers.


@given(spaces(most=3))
def test_the_numbering_is_that_of_three_nested_loops(space):
    listed = enumerated(space)
    assert len(space) == len(listed) == space.sizes.sum() == sum(site.size for site in space.sites)
    where = space.locate(np.arange(len(space)))
    assert list(zip(*(column.tolist() for column in where), strict=True)) == listed
    assert space.number(*where).tolist() == list(range(len(space)))
    assert [space.index(fault) for fault in space] == list(range(len(space)))


@given(st.lists(st.integers(1, 2**14), min_size=3, max_size=3), st.integers(1, 40), st.data())
def test_numbers_make_the_way_back_beyond_two_to_the_forty(shape, copies, data):
    big = tuple(Site(f"big{i}", tuple(shape), bits=(0, 30, 31)) for i in range(copies))
    space = FaultSpace((Site("front", (3,), word="int8", width=8), *big, Site("back", (2, 2), word="float64")))
    index = data.draw(st.lists(st.integers(0, len(space) - 1), min_size=1, max_size=20))
    index += [0, 23, 24, len(space) - 257, len(space) - 256, len(space) - 1]
    where = space.locate(index)
    assert space.number(*where).tolist() == index
    for number, s, e, b in zip(index, *(column.tolist() for column in where), strict=True):
        site = space.sites[s]
        before = sum(one.size for one in space.sites[:s])
        assert number == before + e * len(site.bits) + site.bits.index(b)
        assert space.index(space[number]) == number
        at = tuple(int(i) for i in np.unravel_index(e, site.shape))
        assert space.index(Fault(site.name, at, b)) == number


def test_a_space_may_hold_every_number_of_63_bits_and_no_more():
    largest = FaultSpace((Site("a", (2**57 - 1,), word="float64", width=64), Site("b", (63,), word="bool")))
    assert len(largest) == 2**63 - 1
    assert largest.index(largest[2**63 - 2]) == 2**63 - 2
    assert largest[2**63 - 2] == Fault("b", 62, 0)
    with pytest.raises(SpaceError, match=r"at most 2\^63 - 1 faults, got 9223372036854775808"):
        FaultSpace((*largest.sites, Site("c", (), word="bool")))


def test_a_million_numbers_of_a_space_of_trillions_take_no_time(rng):
    space = FaultSpace(tuple(Site(f"layer{i}.weight", (4096, 4096)) for i in range(3000)))
    assert len(space) == 3000 * 2**29 > 2**40
    index = rng.integers(0, len(space), 1_000_000)
    began = time.process_time()
    where = space.locate(index)
    back = space.number(*where)
    assert time.process_time() - began < 5
    assert np.array_equal(back, index)


def test_sites_without_elements_take_no_number():
    space = FaultSpace((Site("a", (0, 3)), Site("b", (2,)), Site("c", (0,)), Site("d", ()), Site("e", (5, 0))))
    assert len(space) == 96
    assert {fault.site for fault in space} == {"b", "d"}
    assert space[63].site == "b"
    assert space[64] == Fault("d", 0, 0)
    assert space.index(Fault("d", (), 31)) == 95
    with pytest.raises(SpaceError, match="element 0 is outside 'a'"):
        space.index(Fault("a", 0, 0))


def test_a_fault_is_found_by_its_place_alone():
    space = FaultSpace((Site("w", (3, 4)),))
    plain = space.index(Fault("w", (1, 2), 7))
    assert space.index(Fault("w", 6, 7, StuckAt(1), sample=3)) == plain == 6 * 32 + 7
    assert space.index(Fault("w", np.int64(6), np.int16(7))) == plain


SPACE = FaultSpace(
    (
        Site("conv1.weight", (8, 1, 3, 3), module="conv1", module_type="Conv2d", channel=0),
        Site("conv1.bias", (8,), kind="bias", module="conv1", module_type="Conv2d"),
        Site("bn1.weight", (8,), kind="norm", module="bn1", module_type="BatchNorm2d"),
        Site("layer1.0.conv1.weight", (8, 8, 3, 3), module="layer1.0.conv1", module_type="Conv2d", channel=0),
        Site("conv1:input", (1, 8, 8), kind="input", module="conv1", module_type="Conv2d", channel=0),
        Site("conv1:output", (8, 8, 8), kind="output", module="conv1", module_type="Conv2d", channel=0),
        Site("fc.weight", (10, 8), word="int8", module="fc", module_type="Linear"),
        Site("fc.bias", (10,), kind="bias", module="fc", module_type="Linear", bits=(30, 31)),
    )
)


@pytest.mark.parametrize("wrong", [-1, len(SPACE), 2**63, -(2**70), 1.0, 0.5, "3", None, slice(0, 3), [1, 2], (0,)])
def test_a_number_that_is_none_of_the_space_is_refused(wrong):
    with pytest.raises(SpaceError, match=rf"a whole number from 0 to {len(SPACE) - 1}, got"):
        SPACE[wrong]


def test_a_number_may_be_of_any_integer_type():
    assert SPACE[np.uint8(9)] == SPACE[np.int64(9)] == SPACE[np.asarray(9)] == SPACE[9]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([0, -1], r"run from 0 to \d+, got -1 to 0"),
        ([len(SPACE)], r"run from 0 to \d+, got"),
        ([0.0, 1.0], r"whole numbers below 2\^63, got float64"),
        ([True, False], r"whole numbers below 2\^63, got bool"),
        ([2**70], r"whole numbers below 2\^63, got object"),
        (np.array([2**63 + 1], dtype=np.uint64), r"run from 0 to"),
    ],
)
def test_numbers_that_are_none_of_the_space_are_refused(wrong, message):
    with pytest.raises(SpaceError, match=message):
        SPACE.locate(wrong)


def test_no_numbers_have_no_places():
    assert [column.shape for column in SPACE.locate([])] == [(0,)] * 3
    assert SPACE.number([], [], []).shape == (0,)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("conv1.weight", 72, 0), r"element 72 is outside 'conv1.weight' of shape \(8, 1, 3, 3\); use 0 to 71 or"),
        (Fault("conv1.weight", -1, 0), r"element -1 is outside"),
        (Fault("conv1.weight", (0, 0, 0, -1), 0), r"element \(0, 0, 0, -1\) is outside"),
        (Fault("conv1.weight", (0, 0, 0), 0), r"one index per axis"),
        (Fault("conv1.weight", (0, 1, 0, 0), 0), r"is outside"),
        (Fault("conv1.weight", 0, 32), r"bit 32 is outside 'conv1.weight' \(float32 words\); use 0 to 31"),
        (Fault("conv1.weight", 0, -1), r"bit -1 is outside"),
        (Fault("fc.weight", 0, 9), r"bit 9 is outside 'fc.weight' \(int8 words\); use 0 to 7"),
        (Fault("fc.bias", 0, 29), r"bit 29 is outside 'fc.bias' \(float32 words\); use one of \[30, 31\]"),
        (Fault("conv1.weigth", 0, 0), r"no site is called 'conv1.weigth'; did you mean 'conv1.weight'"),
        (Fault("conv1.weight", 0, 1.0), r"bits are whole numbers"),
    ],
)
def test_a_fault_outside_the_space_is_refused(fault, message):
    with pytest.raises(SpaceError, match=message):
        SPACE.index(fault)
    assert fault not in SPACE


def test_membership_does_not_walk_through_the_space():
    huge = FaultSpace((Site("w", (2**40,)),))
    assert Fault("w", 2**39, 31) in huge
    assert Fault("w", 2**40, 31) not in huge
    assert 3 not in huge


def test_site_positions_outside_the_space_are_refused():
    with pytest.raises(SpaceError, match="site positions run from 0 to 7, got -1 to 8"):
        SPACE.number([-1, 8], [0, 0], [0, 0])


def test_one_site_position_may_stand_for_many():
    assert SPACE.number([6], [0, 1, 2], [7]).tolist() == [SPACE.index(Fault("fc.weight", e, 7)) for e in range(3)]


def test_channels_are_the_indices_along_their_axis(rng):
    space = FaultSpace(
        (
            Site("first", (4, 2, 3), channel=0),
            Site("middle", (4, 2, 3), channel=1),
            Site("last", (4, 2, 3), channel=2),
            Site("none", (4, 2, 3)),
            Site("scalar", ()),
        )
    )
    where = space.locate(rng.integers(0, len(space), 3000))
    for s, element, channel in zip(where.site, where.element, space.channels(where), strict=True):
        site = space.sites[s]
        at = np.unravel_index(element, site.shape)
        assert channel == (-1 if site.channel is None else at[site.channel])


# Sites.


# Cells and groups.


@given(spaces(most=4))
def test_cells_take_the_space_apart_and_numbers_come_back(space):
    cells, every = space.cells, np.arange(len(space))
    cell, place, where = space.cell_of(every), space.place_of(every), space.locate(every)
    pairs = [(s, bit) for s, site in enumerate(space.sites) for bit in site.bits]
    assert list(zip(cells.group.tolist(), cells.bit.tolist(), strict=True)) == pairs
    assert cells.sizes.tolist() == [space.sites[s].elements for s, _ in pairs]
    assert [pairs[c] for c in cell] == list(zip(where.site.tolist(), where.bit.tolist(), strict=True))
    assert place.tolist() == where.element.tolist()
    assert np.bincount(cell, minlength=len(cells)).tolist() == cells.sizes.tolist()
    assert space.number_of(cell, place).tolist() == every.tolist()


@given(spaces(most=3), st.data())
def test_flips_are_all_faults_of_the_same_words(space, data):
    index = np.array(data.draw(st.lists(st.integers(0, len(space) - 1), min_size=1, max_size=12)))
    row, faults, bit = space.flips(index)
    listed = enumerated(space)
    words = [[i for i, (s, e, _) in enumerate(listed) if (s, e) == listed[one][:2]] for one in index]
    assert row.tolist() == [r for r, word in enumerate(words) for _ in word]
    assert faults.tolist() == [i for word in words for i in word]
    assert bit.tolist() == [listed[i][2] for i in faults]


STEPPED = FaultSpace(
    (
        Site("conv.weight", (3, 2), module="conv", channel=0, bits=(3, 30)),
        Site("lif:state.v", (4, 2, 3), kind="state", steps=(2, 6), module="lif", channel=1, word="int8", width=8),
        Site("none", (0, 2), bits=(1,)),
        Site("conv.bias", (3,), kind="bias", module="conv", word="int8", width=8, bits=(7,)),
        Site("add:output", (2,), kind="output", bits=(30,)),
    )
)


@pytest.mark.parametrize("by", STEPPED.groupings)
def test_every_grouping_is_that_of_labels_fault_by_fault(by):
    axis, every = STEPPED.axis(by), np.arange(len(STEPPED))
    where = STEPPED.locate(every)
    sites = [STEPPED.sites[s] for s in where.site]
    channel, step = STEPPED.channels(where).tolist(), STEPPED.steps(where)[0].tolist()
    labels = {
        "model": ["model"] * len(every),
        "site": [site.name for site in sites],
        "layer": [site.module or "(model)" for site in sites],
        "kind": [site.kind for site in sites],
        "bit": where.bit.tolist(),
        "channel": [s.name if c < 0 else f"{s.name}[{c}]" for s, c in zip(sites, channel, strict=True)],
        "step": step,
    }[by]
    assert [axis.keys[code] for code in axis.code(every)] == labels
    assert axis.faults.tolist() == [labels.count(key) for key in axis.keys]
    assert len(axis) == len(axis.keys) == len(set(axis.keys))
    if axis.of_cell is not None:
        assert axis.code(every).tolist() == axis.of_cell[STEPPED.cell_of(every)].tolist()
    assert (axis.of_cell is None) == (by in ("channel", "step"))


def test_an_unknown_grouping_is_refused_with_a_suggestion():
    with pytest.raises(SpaceError, match=r"faults are grouped by model, .*, step, got 'sites'; did you mean 'site'"):
        STEPPED.axis("sites")


def test_a_space_comes_back_from_plain_values_alone():
    import json

    back = as_space(json.loads(json.dumps(STEPPED.plain())))
    assert back == STEPPED
    assert back.digest() == STEPPED.digest()
    for broken in ({}, {"sites": [{}]}, {"sites": [3]}, {"sites": "x"}):
        with pytest.raises(SpaceError, match="a fault space is written as a list of sites, got"):
            as_space(broken)


def test_what_an_export_shows_of_a_fault_says_where_it_is():
    shown = STEPPED.columns(np.arange(len(STEPPED)))
    assert list(shown) == ["site", "kind", "layer", "element", "bit", "channel", "step"]
    last = {name: column[-5] for name, column in shown.items()}
    assert last == {
        "site": "conv.bias",
        "kind": "bias",
        "layer": "conv",
        "element": 0,
        "bit": 7,
        "channel": -1,
        "step": -1,
    }
    first = [STEPPED[int(i)] for i in range(len(STEPPED))]
    assert shown["element"].tolist() == [fault.element for fault in first]
    assert "step" not in STEPPED.select(exclude="lif*").columns([0])


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: Site("a", (3, -1)), r"site 'a' needs a positive width and sizes, got 32 and \(3, -1\)"),
        (lambda: Site("a", (3,), width=-1, bits=(0,)), "positive width"),
        (lambda: Site("a", (3,), word="fp8"), "words of an unknown format, 'fp8'"),
        (lambda: Site("a", (3,), word="q3.4", width=32), "q3.4 words have 8 bits, got 32"),
        (
            lambda: Site("a", (3,), word="int8", bits=(3, 8)),
            r"bit 8 is outside 'a' \(int8 words\); use 0 to 7",
        ),
        (lambda: Site("a", (3,), bits=(-1,)), "bit -1 is outside"),
        (lambda: Site("a", (3,), channel=1), "the channel axis of 'a' is one of its 1, got 1"),
        (lambda: Site("a", (3,), channel=-1), "the channel axis of 'a' is one of its 1, got -1"),
        (lambda: FaultSpace(()), "at least one fault, got none; widen the filter"),
        (lambda: FaultSpace((Site("a", (0,)),)), "at least one fault, got none"),
        (lambda: FaultSpace((Site("a", (1,)), Site("b", (1,)), Site("a", (2,)))), r"once, got \['a'\] repeatedly"),
    ],
)
def test_a_site_or_space_that_makes_no_sense_is_refused(attempt, message):
    with pytest.raises(SpaceError, match=message):
        attempt()


def test_bits_are_sorted_and_counted_once():
    site = Site("a", (5,), bits=(31, 0, 31, 7))
    assert site.bits == (0, 7, 31)
    assert site.size == 15
    assert Site("a", [np.int64(2), 3]).shape == (2, 3)


def test_activations_are_what_is_computed_anew():
    assert {site.name for site in SPACE.sites if site.is_activation} == {"conv1:input", "conv1:output"}


# Filters.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"names": "conv1.weight"}, [0]),  # and not layer1.0.conv1.weight, which ends alike
        ({"names": "conv1*"}, [0, 1, 4, 5]),
        ({"names": "*conv1.weight"}, [0, 3]),
        ({"names": ["fc.*", "bn1.weight"]}, [2, 6, 7]),
        ({"names": ("fc.?eight", "fc.[bx]ias")}, [6, 7]),
        ({"names": "re:conv1"}, [0, 1, 3, 4, 5]),
        ({"names": r"re:^conv1\.(weight|bias)$"}, [0, 1]),
        ({"exclude": "*:*"}, [0, 1, 2, 3, 6, 7]),
        ({"exclude": ["re:bias$", "conv1*"]}, [2, 3, 6]),
        ({"kinds": "weight"}, [0, 3, 6]),
        ({"kinds": ["input", "output"]}, [4, 5]),
        ({"types": "Conv*"}, [0, 1, 3, 4, 5]),
        ({"types": "re:^(Linear|BatchNorm2d)$"}, [2, 6, 7]),
        ({"types": "Conv2d", "kinds": ["bias", "weight"], "exclude": "layer1*"}, [0, 1]),
        ({"bits": [31]}, [0, 1, 2, 3, 4, 5, 7]),
        ({"bits": [7]}, [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_filters(options, expected):
    chosen = SPACE.select(**options)
    assert chosen.names == tuple(SPACE.sites[i].name for i in expected)
    if "bits" not in options:
        assert chosen.sites == tuple(SPACE.sites[i] for i in expected)
    else:
        assert {bit for site in chosen.sites for bit in site.bits} == set(options["bits"])


@given(spaces(), st.sets(st.integers(0, 63), max_size=4))
def test_a_filter_of_bits_keeps_those_faults_and_no_others(space, wanted):
    kept = [(space.names[s], e, b) for s, e, b in enumerated(space) if not wanted or b in wanted]
    held = {bit for site in space.sites for bit in site.bits}
    if wanted <= held and kept:
        got = space.select(bits=wanted)
        assert [(got.names[s], e, b) for s, e, b in enumerated(got)] == kept
    else:
        with pytest.raises(SpaceError, match=r"no chosen site has the bits|at least one fault"):
            space.select(bits=wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": "convl*"}, r"no site matches 'convl\*'; did you mean 'conv1\*'"),
        ({"names": ["conv1*", "fc.wieght"]}, r"no site matches 'fc.wieght'; did you mean 'fc.weight'"),
        ({"names": "Conv1.weight"}, r"no site matches 'Conv1.weight'; did you mean 'conv1.weight'"),
        ({"names": ""}, "no site matches ''"),
        ({"names": "zzz"}, r"no site matches 'zzz'$"),
        ({"names": "*\n"}, "no site matches"),
        ({"names": "re:(unclosed"}, r"'re:\(unclosed' is not a regular expression .*; use re:<expression>"),
        ({"names": []}, "no site passes all the filters together"),
        ({"exclude": "conv9*"}, r"no site matches 'conv9\*'; did you mean 'conv1\*'"),
        ({"exclude": "*"}, "no site passes all the filters together"),
        ({"kinds": "weights"}, r"no site of kind matches 'weights'; did you mean 'weight'"),
        ({"types": "Conv3d"}, r"no site of module type matches 'Conv3d'; did you mean 'Conv2d'"),
        ({"names": "fc*", "kinds": "norm"}, "loosen one of names, exclude, kinds or types"),
        ({"bits": [30, 99]}, r"no chosen site has the bits \[99\]; the highest is 31"),
        ({"names": "fc.weight", "bits": [31]}, r"no chosen site has the bits \[31\]; the highest is 7"),
        ({"bits": [-1]}, r"no chosen site has the bits \[-1\]"),
    ],
)
def test_a_filter_that_matches_nothing_is_an_error(options, message):
    with pytest.raises(SpaceError, match=message):
        SPACE.select(**options)


# Unions.


@given(spaces(most=3), st.data())
def test_a_union_of_parts_holds_exactly_their_faults(space, data):
    parts = []
    for _ in range(2):
        chosen = data.draw(st.sets(st.sampled_from(range(len(space.sites))), min_size=1))
        bits = [data.draw(st.sets(st.sampled_from(space.sites[i].bits), min_size=1)) for i in sorted(chosen)]
        some = [
            Site(s.name, s.shape, word=s.word, width=s.width, channel=s.channel, bits=tuple(b))
            for s, b in zip([space.sites[i] for i in sorted(chosen)], bits, strict=True)
        ]
        if not any(site.size for site in some):
            return
        parts.append(FaultSpace(tuple(some)))
    union = parts[0] | parts[1]
    faults = lambda one: {(one.names[s], e, b) for s, e, b in enumerated(one)}  # noqa: E731
    assert faults(union) == faults(parts[0]) | faults(parts[1])
    assert len(union) == len(faults(union))
    assert union.names[: len(parts[0].names)] == parts[0].names
    assert union | parts[1] == union


def test_filters_and_unions_undo_each_other():
    assert SPACE.select(exclude="*:*") | SPACE.select("*:*") == FaultSpace(
        tuple(sorted(SPACE.sites, key=lambda site: site.is_activation))
    )
    low, high = SPACE.select("conv1.weight", bits=range(16)), SPACE.select("conv1.weight", bits=range(16, 32))
    assert low | high == high | low == SPACE.select("conv1.weight")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Site("fc.weight", (10, 9), word="int8"), r"shape \(10, 8\) and \(10, 9\)"),
        (Site("fc.weight", (10, 8), module="fc", module_type="Linear"), "word int8 and float32"),
        (Site("fc.weight", (10, 8), word="int8"), "module fc and"),
    ],
)
def test_a_union_of_unlike_sites_is_refused(other, message):
    with pytest.raises(SpaceError, match=f"'fc.weight' alike in both, got {message}"):
        SPACE | FaultSpace((other,))


# The table and the digest.


def test_the_table_has_a_row_per_site():
    table = SPACE.table()
    assert table.columns.tolist() == ["site", "kind", "type", "shape", "word", "bits", "elements", "faults"]
    assert table["faults"].sum() == len(SPACE)
    assert table.set_index("site").loc["fc.bias"].tolist() == ["bias", "Linear", "10", "float32", 2, 10, 20]
    assert FaultSpace((Site("s", ()),)).table()["shape"].tolist() == ["scalar"]


def test_the_digest_changes_with_what_a_number_means():
    base = Site("a", (2, 3), channel=0)
    others = [
        Site("b", (2, 3)),
        Site("a", (3, 2)),
        Site("a", (6,)),
        Site("a", (2, 3), word="int32"),
        Site("a", (2, 3), bits=(1,)),
        Site("a", (2, 3), kind="bias"),
    ]
    digests = [FaultSpace((site,)).digest() for site in (base, *others)]
    assert len(set(digests)) == len(digests)
    assert FaultSpace((Site("a", (2, 3)),)).digest() == digests[0]  # how results are grouped is no matter
    two = Site("a", (1,)), Site("b", (1,))
    assert FaultSpace(two).digest() != FaultSpace(two[::-1]).digest()


def test_spaces_are_values():
    twin = FaultSpace(tuple(SPACE.sites))
    assert twin == SPACE
    assert hash(twin) == hash(SPACE)
    assert SPACE.select("fc*") != SPACE
    assert SPACE.site("fc.weight") == SPACE.sites[SPACE.position("fc.weight")]


def test_locations_unpack_in_the_order_of_their_names():
    assert Locations._fields == ("site", "element", "bit")
    where = SPACE.locate([0])
    assert [column.dtype.itemsize for column in where] == [4, 8, 2]


# Figures that others have published.


@pytest.mark.parametrize(
    ("blocks", "weights", "activations"),
    [((2, 2, 2, 2), 357_341_184, 69_844_992), ((3, 4, 6, 3), 680_564_736, 109_985_792)],
)
def test_resnets_have_the_number_of_faults_of_the_papers(blocks, weights, activations):
    """ResNet-18 and -34 at 224 x 224: weights, and inputs, of all convolutions, 32 bits each."""
    convolutions = [(3, 64, 7, 224)]
    channels, size = 64, 56
    for stage, count in enumerate(blocks):
        wide = 64 * 2**stage
        for block in range(count):
            stride = 2 if stage and not block else 1
            convolutions += [(channels, wide, 3, size), (wide, wide, 3, size // stride)]
            if stride == 2:
                convolutions.append((channels, wide, 1, size))
            channels, size = wide, size // stride
    space = FaultSpace(
        tuple(
            site
            for i, (inside, outside, kernel, side) in enumerate(convolutions)
            for site in (
                Site(f"conv{i}.weight", (outside, inside, kernel, kernel)),
                Site(f"conv{i}:input", (inside, side, side), kind="input"),
            )
        )
    )
    assert len(space.select(kinds="weight")) == weights
    assert len(space.select(kinds="input")) == activations
