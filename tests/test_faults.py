"""Fault models against a pure-Python reference of bits, and trials against faults applied one after the other."""

import copy
import math
import pickle
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchfault.errors import FaultError, SpaceError, first_line
from torchfault.faults import BitFlip, Burst, Lasting, RandomWord, StuckAt, Value
from torchfault.space import Fault, FaultSpace, Locations, Site
from torchfault.trials import Trials, pack, strike
from torchfault.words import WORDS, decode, edit, held_in, masks_to_words, word
from torchfault.words.emulated import affine, fixed_point, minifloat, narrow_integer

INF, NAN = math.inf, math.nan


def bits_of(pattern, width):
    """Return the bits of a word as a list, lowest first."""
    return [pattern >> place & 1 for place in range(width)]


def by_hand(model, stored, bit, width):
    """Change a word bit by bit, as the docstring of the model says."""
    bits = bits_of(stored, width)
    if isinstance(model, BitFlip):
        bits[bit] = 1 - bits[bit]
    elif isinstance(model, StuckAt):
        bits[bit] = model.level
    elif isinstance(model, Burst):
        for place in range(bit, min(bit + model.length, width)):
            bits[place] = 1 - bits[place]
    return sum(value << place for place, value in enumerate(bits))


def masks(model, fmt, bit, seed=0):
    """Return the masks of one or more struck bits as Python numbers."""
    keep, toggle = model.masks(fmt, np.atleast_1d(bit), rng=np.random.default_rng(seed))
    assert keep.dtype == toggle.dtype == np.uint64
    return keep.tolist(), toggle.tolist()


MODELS = st.sampled_from([BitFlip(), StuckAt(0), StuckAt(1)]) | st.integers(1, 64).map(Burst)


@given(st.sampled_from(sorted(WORDS)), MODELS, st.data())
def test_masks_change_words_as_bit_arithmetic_by_hand(name, model, data):
    fmt = word(name)
    row = st.tuples(st.integers(0, (1 << fmt.width) - 1), st.integers(0, fmt.width - 1))
    rows = data.draw(st.lists(row, min_size=1, max_size=10))
    keep, toggle = masks(model, fmt, [bit for _, bit in rows])
    for (stored, bit), k, t in zip(rows, keep, toggle, strict=True):
        assert (stored & k) ^ t == by_hand(model, stored, bit, fmt.width)


@pytest.mark.parametrize("name", WORDS)
def test_a_random_word_is_uniform_and_ignores_what_was_stored(name):
    fmt = word(name)
    keep, toggle = masks(RandomWord(), fmt, np.zeros(4000, dtype=int))
    assert set(keep) == {0}
    assert max(toggle) < 1 << fmt.width
    ones = np.array([bits_of(t, fmt.width) for t in toggle]).mean(0)
    assert np.abs(ones - 0.5).max() < 5 * 0.5 / math.sqrt(4000)
    assert toggle == masks(RandomWord(), fmt, np.zeros(4000, dtype=int))[1]
    assert toggle != masks(RandomWord(), fmt, np.zeros(4000, dtype=int), seed=1)[1]


FITS = [
    ("float32", 1.0, 1.0),
    ("float32", 0.1, float(np.float32(0.1))),
    ("float32", -0.0, -0.0),
    ("float32", 1e-45, float(np.float32(1e-45))),
    ("float32", 1e-60, 0.0),
    ("float32", INF, INF),
    ("float32", -INF, -INF),
    ("float32", NAN, NAN),
    ("float64", 1e300, 1e300),
    ("float16", 65504.0, 65504.0),
    ("float16", 1 / 3, float(np.float16(1 / 3))),
    ("bfloat16", 3e38, float(torch.tensor(3e38, dtype=torch.bfloat16))),
    ("float8_e4m3fn", 448.0, 448.0),
    ("float8_e4m3fn", NAN, NAN),
    ("float8_e5m2", -INF, -INF),
    ("int8", -128.0, -128),
    ("int8", 127, 127),
    ("uint8", 255.0, 255),
    ("int32", -(2**31), -(2**31)),
    ("int64", 2**63 - 1, 2**63 - 1),
    ("int64", 2**53 + 1, 2**53 + 1),
    ("bool", 1.0, 1),
    ("bool", 0, 0),
]


@pytest.mark.parametrize(("name", "value", "stored"), FITS)
def test_a_value_is_stored_rounded(name, value, stored):
    fmt = word(name)
    keep, toggle = masks(Value(value), fmt, [0, fmt.width - 1])
    assert keep == [0, 0]
    held = decode(masks_to_words(np.array(toggle, dtype=np.uint64), fmt), fmt)
    got = (held.double() if fmt.dtype.is_floating_point else held.long()).tolist()
    assert got == [stored] * 2 or all(math.isnan(g) and math.isnan(stored) for g in got)
    if stored == 0:
        assert math.copysign(1, got[0]) == math.copysign(1, stored)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("int8", 128),
        ("int8", -129),
        ("int8", 0.5),
        ("uint8", -1),
        ("int64", 2.0**63),
        ("int32", NAN),
        ("int32", INF),
        ("int16", -INF),
        ("bool", 2),
        ("bool", 0.5),
        ("float32", 1e300),
        ("float16", 65536.0),
        ("bfloat16", -1e39),
        ("float8_e4m3fn", INF),
        ("float8_e4m3fn", 1000.0),
        ("float8_e5m2", 1e6),
    ],
)
def test_a_value_that_does_not_fit_is_refused(name, value):
    with pytest.raises(FaultError, match=re.escape(f"{name} words cannot hold {value}; choose a value that fits")):
        masks(Value(value), word(name), [0])


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: StuckAt(2), "stuck at 0 or 1, got 2; use"),
        (lambda: StuckAt(-1), "stuck at 0 or 1, got -1"),
        (lambda: Burst(0), "1 to 64 bits long, got 0"),
        (lambda: Burst(65), "1 to 64 bits long, got 65"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(attempt, message):
    with pytest.raises(FaultError, match=message):
        attempt()


# Trials.

SPACE = FaultSpace(
    (
        Site("a", (2, 2)),
        Site("b", (3,), word="int8"),
        Site("c", (2,), kind="output", word="float64"),
        Site("d", (2,), word="bool"),
    )
)


def plainly(space, faults, memory, seed):
    """Apply *faults* to *memory*, a dictionary of words, one after the other."""
    rng = np.random.default_rng(seed)
    for place, element, bit, model in faults:
        fmt = word(space.sites[place].word)
        keep, toggle = model.masks(fmt, np.array([bit]), rng=rng)
        memory[place, element] = (memory[place, element] & int(keep[0])) ^ int(toggle[0])
    return memory


def memory_of(space, rng):
    """Return a random word for every element of a space."""
    return {
        (place, element): int(rng.integers(0, (1 << site.width) - 1, dtype=np.uint64, endpoint=True))
        for place, site in enumerate(space.sites)
        for element in range(site.elements)
    }


def applied(trials, number, memory):
    """Apply one trial to *memory* as an engine does: each row once, in any order."""
    rows = range(trials.offsets[number], trials.offsets[number + 1])
    for row in reversed(rows):
        at = int(trials.site[row]), int(trials.element[row])
        memory[at] = (memory[at] & int(trials.keep[row])) ^ int(trials.toggle[row])
    return memory


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.integers(0, len(SPACE) - 1), min_size=1, max_size=12), min_size=1, max_size=6),
    MODELS,
    st.integers(0, 2**32 - 1),
)
def test_a_trial_is_its_faults_one_after_the_other(groups, model, seed):
    where = SPACE.locate([index for group in groups for index in group])
    counts = np.array([len(group) for group in groups])
    inputs = np.arange(len(groups))[::-1].copy()
    trials = strike(SPACE, where, model=model, rng=np.random.default_rng(0), counts=counts, inputs=inputs)
    assert len(trials) == len(groups)
    assert trials.inputs.tolist() == inputs.tolist()
    assert trials.offsets[0] == 0
    assert trials.offsets[-1] == len(trials.site) == len(trials.owner)
    for number, group in enumerate(groups):
        one = SPACE.locate(group)
        rows = slice(trials.offsets[number], trials.offsets[number + 1])
        touched = list(zip(trials.site[rows].tolist(), trials.element[rows].tolist(), strict=True))
        assert touched == sorted({(s, e) for s, e, _ in zip(*(c.tolist() for c in one), strict=True)})
        assert (trials.owner[rows] == number).all()
        start = memory_of(SPACE, np.random.default_rng(seed))
        faults = [(s, e, b, model) for s, e, b in zip(*(column.tolist() for column in one), strict=True)]
        assert applied(trials, number, dict(start)) == plainly(SPACE, faults, dict(start), seed)


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, len(SPACE) - 1), MODELS), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_a_pack_of_different_models_is_its_faults_one_after_the_other(chosen, seed):
    where = [SPACE.locate([index]) for index, _ in chosen]
    order = [(int(w.site[0]), int(w.element[0]), int(w.bit[0]), m) for w, (_, m) in zip(where, chosen, strict=True)]
    faults = [Fault(SPACE.names[s], e, b, model) for s, e, b, model in order]
    trials = pack(SPACE, faults, rng=np.random.default_rng(0))
    start = memory_of(SPACE, np.random.default_rng(seed))
    assert len(trials) == 1
    assert applied(trials, 0, dict(start)) == plainly(SPACE, order, dict(start), seed)


def test_stuck_at_after_a_flip_wins_and_before_it_does_not():
    flip, stuck = Fault("a", 0, 3), Fault("a", 0, 3, StuckAt(1))
    for faults, expected in (((flip, stuck), 8), ((stuck, flip), 0)):
        trials = pack(SPACE, faults)
        assert (trials.keep.tolist(), trials.toggle.tolist()) == ([0xFFFFFFF7], [expected])


def test_a_value_written_over_other_faults_is_what_stays():
    trials = pack(SPACE, [Fault("a", (1, 1), 30), Fault("a", 3, 2, StuckAt(1)), Fault("a", 3, 0, Value(NAN))])
    assert (trials.keep.tolist(), trials.toggle.tolist()) == ([0], [0x7FC00000])
    struck = edit(
        torch.ones(1),
        *(masks_to_words(mask, word("float32")) for mask in (trials.keep, trials.toggle)),
        word("float32"),
    )
    assert struck.isnan().all()


def test_every_value_of_a_pack_is_written_even_where_values_are_no_equals():
    faults = [Fault("a", element, 0, Value(float("nan"))) for element in range(4)]
    assert faults[0].model != faults[1].model
    assert pack(SPACE, faults).toggle.tolist() == [0x7FC00000] * 4


def test_a_pack_flips_where_no_model_is_given():
    assert pack(SPACE, [Fault("b", 2, 7)]).toggle.tolist() == [128]


@dataclass(frozen=True)
class Remember:
    """A bit flip that remembers what it was asked."""

    asked: list

    def masks(self, word, bit, *, rng):
        """Flip, and take one random number."""
        self.asked.append((word.name, bit.tolist(), rng.random()))
        return BitFlip().masks(word, bit, rng=rng)


def test_a_model_is_asked_once_per_format_in_the_order_of_the_sites():
    model = Remember([])
    shuffled = np.random.default_rng(1).permutation(len(SPACE))
    strike(SPACE, SPACE.locate(shuffled), model=model, rng=np.random.default_rng(0))
    assert [name for name, _, _ in model.asked] == ["float32", "int8", "float64", "bool"]
    bits = SPACE.locate(shuffled).bit[np.isin(SPACE.locate(shuffled).site, [1])]
    assert model.asked[1][1] == bits.tolist()


def test_trials_depend_on_the_generator_alone(rng):
    where = SPACE.locate(rng.integers(0, len(SPACE), 50))
    one, two, other = (
        strike(SPACE, where, model=RandomWord(), rng=np.random.default_rng(seed)).toggle.tolist() for seed in (5, 5, 6)
    )
    assert one == two != other


def trials_of(groups):
    """Return trials of flips, trial i on input i."""
    counts = np.array([len(group) for group in groups])
    where = SPACE.locate([index for group in groups for index in group])
    inputs = np.arange(len(groups))
    return strike(SPACE, where, model=BitFlip(), rng=np.random.default_rng(0), counts=counts, inputs=inputs)


def rows_of(trials):
    """Return trials as lists of input and edits."""
    columns = (trials.site, trials.element, trials.keep, trials.toggle)
    return [
        (int(trials.inputs[i]), [tuple(int(c[row]) for c in columns) for row in range(*trials.offsets[i : i + 2])])
        for i in range(len(trials))
    ]


@given(st.lists(st.lists(st.integers(0, len(SPACE) - 1), min_size=1, max_size=5), min_size=1, max_size=8), st.data())
def test_taking_trials_takes_their_rows(groups, data):
    trials, listed = trials_of(groups), rows_of(trials_of(groups))
    order = data.draw(st.lists(st.integers(0, len(groups) - 1), max_size=10))
    taken = trials.take(np.array(order, dtype=np.int64))
    assert rows_of(taken) == [listed[i] for i in order]
    assert taken.sites is trials.sites
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(groups), max_size=len(groups))))
    assert rows_of(trials.take(mask)) == [row for row, kept in zip(listed, mask, strict=True) if kept]
    assert rows_of(taken.on(np.array([7, 3]))) == [(i, rows) for _, rows in rows_of(taken) for i in (7, 3)]


def test_no_trials_at_all():
    none = strike(SPACE, SPACE.locate([]), model=BitFlip(), rng=np.random.default_rng(0))
    assert len(none) == 0
    assert none.offsets.tolist() == [0]
    assert len(none.on(np.arange(3))) == 0


def test_a_hundred_thousand_faults_in_one_trial(rng):
    space = FaultSpace((Site("w", (1000, 1000)),))
    index = rng.integers(0, len(space), 100_000)
    counts = np.array([len(index)])
    trials = strike(space, space.locate(index), model=BitFlip(), rng=rng, counts=counts)
    words = np.zeros(10**6, dtype=np.uint64)
    np.bitwise_xor.at(words, index // 32, np.uint64(1) << (index % 32).astype(np.uint64))
    struck = np.zeros_like(words)
    struck[trials.element] = trials.toggle
    assert np.array_equal(struck, words)
    assert isinstance(trials, Trials)


@pytest.mark.parametrize(
    ("attempt", "error", "message"),
    [
        (lambda: pack(SPACE, []), FaultError, "a trial needs at least one fault, got none"),
        (lambda: pack(SPACE, [Fault("a", 0, 32)]), SpaceError, "bit 32 is outside 'a'"),
        (lambda: pack(SPACE, [Fault("b", 0, 0, Value(0.5))]), FaultError, "int8 words cannot hold 0.5"),
        (lambda: strike_some([1, 1]), FaultError, "all together 3, the number of locations; got 2 counts with a sum"),
        (lambda: strike_some([3, 0]), FaultError, "at least one fault"),
        (lambda: strike_some([]), FaultError, "got 0 counts with a sum of 0"),
        (lambda: strike_some([2, 1], [0]), FaultError, "one input, got 1 inputs for 2 trials"),
    ],
)
def test_trials_that_make_no_sense_are_refused(attempt, error, message):
    with pytest.raises(error, match=message):
        attempt()


def strike_some(counts, inputs=None):
    """Strike three places in trials of *counts* faults."""
    where = Locations(np.zeros(3, dtype=np.int32), np.arange(3), np.zeros(3, dtype=np.int16))
    given_inputs = None if inputs is None else np.array(inputs)
    rng = np.random.default_rng(0)
    return strike(SPACE, where, model=BitFlip(), rng=rng, counts=np.array(counts, dtype=int), inputs=given_inputs)


def timed(name: str = "lif:state.v") -> Site:
    return Site(name, (6, 3), kind="state", steps=(0, 6))


def test_a_fault_with_a_step_is_a_number_like_any_other():
    space = FaultSpace((Site("fc.weight", (4,)), timed())).select(steps=(2, 5))
    assert space.site("lif:state.v").shape == (3, 3)
    assert len(space) == 32 * (4 + 9)
    for number in range(0, len(space), 37):
        assert space.index(space[number]) == number
    fault = Fault("lif:state.v", (1,), bit=3, step=4)
    assert space[space.index(fault)] == Fault("lif:state.v", 1, bit=3, step=4)
    assert space.steps(space.locate([5, space.index(fault)]))[0].tolist() == [-1, 4]
    for wrong, said in (
        (Fault("lif:state.v", 1, 3, step=5), "step 5 is outside 'lif:state.v'; use 2 to 4"),
        (Fault("lif:state.v", 3, 3, step=4), "element 3 is outside"),
        (Fault("fc.weight", 1, 3, step=4), "'fc.weight' has no time steps, got step 4"),
    ):
        with pytest.raises(SpaceError, match=said):
            space.index(wrong)
    with pytest.raises(SpaceError, match="time steps are a range such as 0:5, got 4:9"):
        space.select(steps=(4, 9))


def test_a_lasting_fault_strikes_every_later_step_also_beyond_the_steps_it_was_drawn_from():
    space = FaultSpace((Site("fc.weight", (4,)), timed())).select(steps=(2, 4))
    faults = [Fault("lif:state.v", 1, 31, step=3), Fault("fc.weight", 2, 31)]
    where, rng = space.locate([space.index(fault) for fault in faults]), np.random.default_rng(0)
    trials = strike(space, where, model=Lasting(StuckAt(1)), rng=rng)
    assert trials.offsets.tolist() == [0, 3, 4]  # steps 3, 4 and 5 of the six; a weight stays by itself
    assert trials.element.tolist() == [4, 7, 10, 2]
    brief = strike(space, where, model=Lasting(RandomWord(), steps=2), rng=rng, counts=np.array([2]))
    assert brief.element.tolist() == [2, 4, 7]
    assert brief.toggle[1] == brief.toggle[2] != brief.toggle[0]
    packed = pack(space, [replace(fault, model=Lasting(StuckAt(1))) for fault in faults])
    assert sorted(packed.element.tolist()) == [2, 4, 7, 10]
    for wrong in (lambda: Lasting(Lasting(BitFlip())), lambda: Lasting(BitFlip(), steps=0)):
        with pytest.raises(FaultError, match="a lasting fault has a model"):
            wrong()


# Values.


@pytest.mark.parametrize(
    "make",
    [
        lambda: fixed_point(3, 4),
        lambda: minifloat(3, 2, finite=True),
        lambda: affine(0.02, 128),
        lambda: narrow_integer(4, signed=True),
        lambda: held_in(word("bfloat16"), torch.float32),
        lambda: word("float8_e5m2"),
    ],
)
def test_equal_formats_are_equal_values(make):
    word.cache_clear()
    one, other = make(), make()
    assert one == other
    assert hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    assert Site("a", (1,), word=one.name).width == one.width


def test_formats_that_convert_otherwise_are_not_equal():
    assert fixed_point(3, 4) != fixed_point(4, 3)
    assert affine(0.02, 128) != affine(0.02, 127)
    assert held_in(word("bfloat16"), torch.float32) != word("bfloat16")
    assert replace(word("int8"), coding=word("bool").coding) != word("int8")


@pytest.mark.parametrize("name", [*WORDS, "q3.4", "e3m2fn", "int4", "uint8[0.02:128]"])
def test_a_site_is_as_wide_as_its_words(name):
    assert Site("a", (3,), word=name).width == word(name).width
    assert Site("a", (3,), word=name).size == 3 * word(name).width


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError(), "ValueError"),
        (ValueError("  \n"), "ValueError"),
        (KeyError(""), "''"),
        (RuntimeError("\n\nlast"), "last"),
    ],
)
def test_an_error_is_told_in_one_line(error, said):
    assert first_line(error) == said


def test_two_faults_on_one_bit_are_composed_in_their_order():
    space = FaultSpace((Site("a", (2,), word="int8"),))
    flip, stuck = Fault("a", 1, 3), Fault("a", 1, 3, StuckAt(1))
    for faults, (keep, toggle) in [
        ([flip, flip], (255, 0)),
        ([flip, flip, flip], (255, 8)),
        ([flip, stuck], (247, 8)),
        ([stuck, flip], (247, 0)),
    ]:
        trial = pack(space, faults)
        assert (trial.keep.tolist(), trial.toggle.tolist()) == ([keep], [toggle])


def test_scripts_find_trials_where_they_were():
    from torchfault import faults, trials

    assert (faults.strike, faults.pack, faults.Trials) == (trials.strike, trials.pack, trials.Trials)
    with pytest.raises(AttributeError, match="no attribute 'merged'"):
        _ = faults.merged
