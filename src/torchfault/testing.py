"""Conformance suites for samplers, word formats, fault models, criteria, executors and accelerators.

Each names the broken rule. Call them in a test; the table of built-ins in ``tests/test_conformance.py`` shows how.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchfault.criteria import Criterion
from torchfault.criteria.compose import verdict
from torchfault.criteria.outputs import count
from torchfault.engine import Executor
from torchfault.errors import FaultError
from torchfault.faults import BitFlip, FaultModel, Trials, strike
from torchfault.hardware.conformance import check_accelerator
from torchfault.measures import Measure, uniform
from torchfault.model.data import Data, Tree, call, leaves, map_tensors, rows
from torchfault.sampling import Draws, Sampler
from torchfault.space import FaultSpace, Site
from torchfault.words import WORDS, WordFormat, decode, encode, masks_to_words

__all__ = [
    "check_accelerator",
    "check_criterion",
    "check_executor",
    "check_fault_model",
    "check_sampler",
    "check_word_format",
]

_MOST = 40_000  # draws of a sampler, words of a format
_COLUMNS = ("index", "weight", "stratum", "counts")
_SIGMAS = 5.0  # with fixed seeds a good sampler passes always, and would fail one seed in millions
_SPACES = (
    FaultSpace(
        (
            Site("conv.weight", (4, 2, 3, 3), channel=0),
            Site("conv:output", (4, 5, 5), kind="output", channel=0),
            Site("fc.weight", (10, 8), word="int8", width=8),
            Site("fc.bias", (10,), kind="bias", bits=(23, 30, 31)),
        )
    ),
    FaultSpace((Site("one", (), bits=(31,)),)),
)


class _Seen(Exception):
    """What was seen instead of what the rule says."""


@contextmanager
def _rule(who: object, text: str) -> Iterator[None]:
    """Turn whatever goes wrong inside into an AssertionError that names the rule."""
    try:
        yield
    except Exception as error:
        seen = str(error) if isinstance(error, _Seen) else f"{type(error).__name__}: {error}"
        raise AssertionError(f"{who} breaks the rule that {text}: {seen}") from error


def _hold(holds: object, seen: str) -> None:
    if not holds:
        raise _Seen(seen)


def check_sampler(sampler: Sampler, space: FaultSpace | None = None, *, target: Measure | None = None) -> None:
    """Raise AssertionError, naming the rule, where *sampler* is none; on *space*, or on two small ones.

    *target* is the measure that the weights aim at, uniform unless told. The rules: a block of at least one trial; as
    many trials as asked for, from the space, with finite weights from 0 up; the same trials from the same random
    stream, whatever was drawn before; and weights p/q under which every site and bit has its probability.

    >>> from torchfault.sampling import Uniform
    >>> check_sampler(Uniform(faults=3))
    """
    for one in _SPACES if space is None else (space,):
        with _rule(sampler, "it has a block of one trial or more, total(space) and draw(space, n, rng=, start=)"):
            _hold(isinstance(sampler, Sampler), f"got {type(sampler).__name__}")
            block, total = sampler.block, sampler.total(one)
            for what, number in (("block", block), ("total", block if total is None else total)):
                _hold(isinstance(number, int) and number >= 1, f"got a {what} of {number!r}")  # type: ignore[redundant-expr]
        blocks = _blocks(sampler, one)
        for start, draws in blocks:
            _check_draws(sampler, one, draws, n=min(sampler.block, (total or math.inf) - start))
        with _rule(sampler, "trials depend on the random stream and their number alone"):
            for start, first in reversed(blocks[:3]):
                again = _draw(sampler, one, start)
                same = all(np.array_equal(getattr(first, part), getattr(again, part)) for part in _COLUMNS)
                _hold(same, f"trials from {start} on differ when drawn again")
        if total is None or total <= _MOST:
            _check_weights(sampler, one, [draws for _, draws in blocks], target or uniform(one))


def _draw(sampler: Sampler, space: FaultSpace, start: int) -> Draws:
    total = sampler.total(space)
    n = sampler.block if total is None else min(sampler.block, total - start)
    return sampler.draw(space, n, rng=np.random.default_rng([20261121, start]), start=start)


def _blocks(sampler: Sampler, space: FaultSpace) -> list[tuple[int, Draws]]:
    """Draw block after block, up to the end of the sampler or enough to judge it by."""
    with _rule(sampler, "draw returns Draws, also at the end of the sequence"):
        most, faults = min(sampler.total(space) or _MOST, _MOST), 0
        blocks: list[tuple[int, Draws]] = []
        while (start := len(blocks) * sampler.block) < most and faults < 5 * _MOST:
            draws = _draw(sampler, space, start)
            _hold(isinstance(draws, Draws), f"got {type(draws).__name__}")
            blocks.append((start, draws))
            faults += len(draws.index)
        return blocks


def _check_draws(sampler: Sampler, space: FaultSpace, draws: Draws, *, n: float) -> None:
    with _rule(sampler, "draw returns as many trials as asked for, each of a fault or more"):
        _hold(len(draws) == n, f"asked for {n}, got {len(draws)}")
        _hold(draws.counts is None or (draws.counts >= 1).all(), "got a trial without a fault")
    with _rule(sampler, "faults are whole numbers inside the space"):
        _hold(np.issubdtype(draws.index.dtype, np.integer), f"got {draws.index.dtype}")
        inside = (draws.index >= 0) & (draws.index < len(space))
        _hold(inside.all(), f"got {draws.index[~inside][:3]} in a space of {len(space)}")
    with _rule(sampler, "weights are finite numbers from 0 up, and strata whole numbers from 0 up"):
        _hold(np.isfinite(draws.weight).all() and (draws.weight >= 0).all(), f"got weights like {draws.weight[:3]}")
        whole = np.issubdtype(draws.stratum.dtype, np.integer)
        _hold(whole and (draws.stratum >= 0).all(), f"got strata like {draws.stratum[:3]}")


def _check_weights(sampler: Sampler, space: FaultSpace, blocks: Sequence[Draws], target: Measure) -> None:
    """Compare the weighted share of every group of faults with its probability."""
    weight = np.concatenate([draws.weight for draws in blocks])
    counts = [np.ones(len(draws), dtype=np.int64) if draws.counts is None else draws.counts for draws in blocks]
    faults = np.concatenate(counts)
    owner, root = np.repeat(np.arange(len(weight)), faults), math.sqrt(len(weight))
    with _rule(sampler, "weights are p/q, so that every site, element and bit has its probability on average"):
        off, error = abs(weight.mean() - 1), weight.std() / root
        _hold(off <= _SIGMAS * error + 1e-9, f"the mean weight is {weight.mean():.4g} and not 1")
        for what, here, p in _groups(space, np.concatenate([draws.index for draws in blocks]), target):
            mine = np.bincount(owner, weights=here, minlength=len(weight))
            excess = weight * (mine - p * faults)
            # The spread of a group that was never drawn is that of weights of 1.
            error = max(float(excess.std()), math.sqrt(p * faults.mean())) / root
            share = (weight * mine).sum() / (weight * faults).sum()
            _hold(abs(excess.mean()) <= _SIGMAS * error + 1e-9, f"{what} has {p:.4g}, got {share:.4g}")


def _groups(
    space: FaultSpace, index: NDArray[np.int64], target: Measure
) -> Iterator[tuple[str, NDArray[np.bool_], float]]:
    """Yield sites, the bits of each and eighths of its elements: a name, which faults belong to it, its probability."""
    site, element, bit = space.locate(index)
    for at, one in enumerate(space.sites):
        here, p = site == at, float(target.sites[at])
        yield f"site '{one.name}'", here, p
        by_bit = (target.bits or {}).get(one.name, np.full(len(one.bits), 1 / len(one.bits)))
        for b, p_bit in zip(one.bits, by_bit, strict=True):
            yield f"bit {b} of '{one.name}'", here & (bit == b), p * float(p_bit)
        by_element = (target.elements or {}).get(one.name)
        edges = np.linspace(0, one.elements, min(8, one.elements) + 1).astype(int)
        for low, high in pairwise(edges):
            p_part = (high - low) / one.elements if by_element is None else by_element[low:high].sum()
            inside = here & (element >= low) & (element < high)
            yield f"elements {low} to {high - 1} of '{one.name}'", inside, p * float(p_part)


def check_word_format(fmt: WordFormat) -> None:
    """Raise AssertionError, naming the rule, where *fmt* is no word format.

    The rules: 1 to 64 bits in an integer type wide enough; fields of different bits inside the word, lowest first;
    every word survives the way to a value and back, in tensors of any shape and layout; no conversion alters its
    argument.

    >>> check_word_format(WORDS["bfloat16"])
    """
    name = fmt.name
    with _rule(name, "a word has 1 to 64 bits, held in an integer type that is wide enough"):
        held = torch.iinfo(fmt.integer).bits
        _hold(1 <= fmt.width <= min(64, held), f"got {fmt.width} bits in {fmt.integer}")
    with _rule(name, "fields are disjoint bits of the word, lowest first"):
        bits = [bit for field in fmt.fields.values() for bit in field]
        _hold(len(set(bits)) == len(bits) and all(0 <= bit < fmt.width for bit in bits), f"got {fmt.fields}")
        _hold(all(list(field) == sorted(field) for field in fmt.fields.values()), f"got {fmt.fields}")
    words = masks_to_words(_patterns(fmt.width), fmt)
    with _rule(name, "every word comes back from its value, bit for bit"):
        _same_words(words, fmt)
    with _rule(name, "shape and layout of a tensor do not matter"):
        even = words[: len(words) // 2 * 2]
        for tensor in (words[:1].reshape(()), words[:0], even.reshape(2, -1), even.reshape(2, -1).T, even[::2]):
            _same_words(tensor, fmt)


def _patterns(width: int) -> NDArray[np.uint64]:
    """Return every word of a short format; of a long one the extremes, all words near a single bit, and random ones."""
    if width <= 16:
        return np.arange(1 << width, dtype=np.uint64)
    full = (1 << width) - 1
    near = {(1 << bit) + step & full for bit in range(width + 1) for step in (-1, 0, 1)}
    edges = np.array(sorted(near | {full ^ word for word in near}), dtype=np.uint64)
    drawn = np.random.default_rng(20261121).integers(0, full, _MOST, dtype=np.uint64, endpoint=True)
    return np.concatenate((edges, drawn))


def _same_words(words: Tensor, fmt: WordFormat) -> None:
    given = words.clone()
    values = decode(words, fmt)
    _hold(values.dtype == fmt.dtype and values.shape == words.shape, f"got {values.dtype} of shape {values.shape}")
    kept = values.clone()
    back = encode(values, fmt)
    _hold(back.dtype == fmt.integer and back.shape == words.shape, f"got {back.dtype} of shape {back.shape} back")
    wrong = back != given
    _hold(not wrong.any(), f"{given[wrong][:3].tolist()} became {back[wrong][:3].tolist()}")
    _hold(torch.equal(words, given) and _equal(values, kept), "the argument of a conversion was altered")


def check_fault_model(model: FaultModel) -> None:
    """Raise AssertionError, naming the rule, where *model* is no fault model.

    The rules: a hashable value, equal to its copy; for one word format at least (others may raise FaultError), two
    uint64 masks per struck bit, inside the word, that can change a word; randomness from ``rng`` alone; without
    randomness, each row depends on its own bit alone; the given bits stay as they are.

    >>> from torchfault.faults import Burst
    >>> check_fault_model(Burst(3))
    """
    with _rule(model, "it is a hashable value, equal to its copy"):
        _hold(hash(model) == hash(copy.copy(model)) and model == copy.copy(model), "got a copy that differs")
    fitting = 0
    for fmt in WORDS.values():
        bits = np.random.default_rng(20261121).permutation(np.tile(np.arange(fmt.width), 3))
        try:
            model.masks(fmt, bits.copy(), rng=np.random.default_rng(0))
        except FaultError:
            continue
        except Exception as error:
            raise AssertionError(f"{model} breaks the rule that a misfit raises FaultError: {error!r}") from error
        fitting += 1
        _check_masks(model, fmt, bits)
    with _rule(model, "it fits one word format at least"):
        _hold(fitting, "got FaultError from all")


def _check_masks(model: FaultModel, fmt: WordFormat, bits: NDArray[Any]) -> None:
    def ask(which: NDArray[Any]) -> tuple[Any, Any, bool]:
        rng, still = np.random.default_rng(7), np.random.default_rng(7)
        keep, toggle = model.masks(fmt, which, rng=rng)
        return keep, toggle, bool(rng.random() != still.random())

    who, given, full = f"{model} on {fmt.name}", bits.copy(), np.uint64((1 << fmt.width) - 1)
    with _rule(who, "masks returns two uint64 arrays, one row per struck bit"):
        keep, toggle, random = ask(bits)
        for mask, rows_ in ((keep, len(bits)), (toggle, len(bits)), *((mask, 0) for mask in ask(bits[:0])[:2])):
            _hold(isinstance(mask, np.ndarray) and mask.dtype == np.uint64, f"got {getattr(mask, 'dtype', type(mask))}")
            _hold(mask.shape == (rows_,), f"got shape {mask.shape} for {rows_} bits")
    with _rule(who, "masks stay inside the word"):
        _hold(not ((keep | toggle) & ~full).any(), f"got more than {fmt.width} bits")
    with _rule(who, "every row can change a word"):
        idle = (keep == full) & (toggle == 0)
        _hold(not idle.any(), f"nothing changes for bit {bits[idle][:1]}")
    with _rule(who, "randomness comes from rng alone, and bits are read, not written"):
        _hold(np.array_equal(bits, given), "the given bits were altered")
        second = ask(bits.astype(np.int16))
        _hold(np.array_equal(keep, second[0]) and np.array_equal(toggle, second[1]), "asked twice, the masks differ")
    if not random:
        with _rule(who, "without randomness, a row depends on its own bit alone"):
            turned = ask(bits[::-1].copy())
            _hold(np.array_equal(keep[::-1], turned[0]) and np.array_equal(toggle[::-1], turned[1]), "order matters")


def check_criterion(
    criterion: Criterion, *, golden: Tree | None = None, faulty: Tree | None = None, labels: Tree | None = None
) -> None:
    """Raise AssertionError, naming the rule, where *criterion* is none; on the trees given, or on five-class scores.

    The rules: one bool per lane, also for no lanes; on the lanes given some fail and some do not; the verdict on a lane
    depends on that lane alone, not on its place or on the others; and no argument is altered.

    >>> from torchfault.criteria import MarginDrop
    >>> check_criterion(MarginDrop(0.5))
    """
    if golden is None or faulty is None:
        golden, faulty, labels = _examples()
    trees = golden, faulty, labels
    kept = [map_tensors(torch.clone, tree) for tree in trees]
    with _rule(criterion, "it returns one bool per lane, also for no lanes"):
        said = verdict(criterion, *trees)
        _ask(criterion, trees, slice(0, 0))
    with _rule(criterion, "it leaves its arguments as they are"):
        _hold(all(map(_equal, leaves(list(trees)), leaves(kept))), "a tensor was altered")
    with _rule(criterion, "of the lanes given, some fail and some do not"):
        _hold(said.any() and not said.all(), f"got {said.tolist()}")
    with _rule(criterion, "the verdict on a lane depends on that lane alone"):
        alone = torch.cat([_ask(criterion, trees, slice(lane, lane + 1)) for lane in range(count(golden))])
        _hold(torch.equal(alone, said), f"all together {said.tolist()}, one by one {alone.tolist()}")


def _ask(criterion: Criterion, trees: tuple[Tree, Tree, Tree], lanes: slice) -> Tensor:
    golden, faulty, labels = (rows(tree, lanes) for tree in trees)
    return verdict(criterion, golden, faulty, labels)


def _examples() -> tuple[Tensor, Tensor, Tensor]:
    """Return scores of eight lanes and five classes: masked, touched, swapped, reversed, tied and not finite ones."""
    golden = torch.tensor([[0.0, 1.0, 2.0, 3.0, 5.0]]).repeat(8, 1)
    faulty = golden.clone()
    faulty[1] += 1e-3
    faulty[2] = torch.tensor([0.0, 1.0, 2.0, 5.0, 3.0])
    faulty[3] = torch.tensor([5.0, 3.0, 2.0, 1.0, 0.0])
    faulty[4] = 1.0
    faulty[5, 4], faulty[6, 0], faulty[7, 1] = math.nan, math.inf, -math.inf
    return golden, faulty, torch.tensor([4, 4, 3, 4, 0, 4, 4, 2])


def check_executor(executor: Executor, model: nn.Module, data: Data, *, trials: int = 120) -> None:
    """Raise AssertionError, naming the rule, where *executor* does not run faults in *model* on *data* as promised.

    The rules: golden outputs are those of the model; every trial comes out once, on its own input, beside its golden
    row; a fault in a parameter has the outcome of editing the stored word and running the model; the same trials have
    the same outcome again; and the model is left as it was.

    >>> from torchfault.engine.hooks import HooksExecutor
    >>> model, data = nn.Linear(3, 2).eval(), Data(torch.randn(4, 3))
    >>> check_executor(HooksExecutor(model, data), model, data)
    """
    before = [tensor.clone() for tensor in model.state_dict().values()]
    with torch.no_grad():
        plain = leaves(call(model, data.inputs))
    with _rule(executor, "golden outputs are those of the model, one row per input"):
        golden = leaves(executor.golden())
        _hold(all(_close(a, b) for a, b in zip(golden, plain, strict=True)), "they differ")
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, len(data), trials)
    where = executor.space.locate(rng.integers(0, len(executor.space), trials))
    drawn = strike(executor.space, where, model=BitFlip(), rng=rng, inputs=inputs)
    with _rule(executor, "every trial comes out once, on its own input, beside its golden row"):
        first = _outcomes(executor, drawn, golden)
    with _rule(executor, "the same trials have the same outcome again"):
        again = _outcomes(executor, drawn, golden)
        _hold(all(_close(a, b) for a, b in zip(first, again, strict=True)), "they differ")
    with _rule(executor, "a fault in a parameter has the outcome of editing the stored word"):
        for trial in np.flatnonzero(~np.isin(drawn.site, [i for i, s in enumerate(drawn.sites) if s.is_activation])):
            expected = leaves(_edited_in_place(model, data, drawn, int(trial)))
            mine = [leaf[trial : trial + 1] for leaf in first]
            _hold(all(_close(a, b) for a, b in zip(mine, expected, strict=True)), f"trial {trial} differs")
    with _rule(executor, "the model is left as it was"):
        _hold(all(map(_equal, before, model.state_dict().values())), "a stored tensor has changed")


def _outcomes(executor: Executor, trials: Trials, golden: Sequence[Tensor]) -> list[Tensor]:
    """Return the faulty outputs in the order of the trials."""
    found: list[list[Tensor] | None] = [None] * len(trials)
    for lanes in executor.run(trials):
        _hold((trials.inputs[lanes.trial] == lanes.inputs).all(), "a trial ran on another input")
        rows_of = [leaf[torch.from_numpy(lanes.inputs)] for leaf in golden]
        _hold(all(_close(a, b) for a, b in zip(leaves(lanes.golden), rows_of, strict=True)), "golden rows differ")
        for row, trial in enumerate(lanes.trial.tolist()):
            _hold(found[trial] is None, f"trial {trial} came out twice")
            found[trial] = [leaf[row] for leaf in leaves(lanes.faulty)]
    missing = [trial for trial, outputs in enumerate(found) if outputs is None]
    _hold(not missing, f"trials {missing[:3]} never came out")
    return [torch.stack(column) for column in zip(*(o for o in found if o is not None), strict=True)]


def _edited_in_place(model: nn.Module, data: Data, trials: Trials, trial: int) -> Tree:
    """Return the output for one trial's input, with the word of a parameter edited and put back by hand."""
    stored = model.state_dict()[trials.sites[trials.site[trial]].name].view(-1)
    fmt = WORDS[trials.sites[trials.site[trial]].word]
    place = slice(int(trials.element[trial]), int(trials.element[trial]) + 1)
    keep, toggle = (masks_to_words(m[trial : trial + 1], fmt) for m in (trials.keep, trials.toggle))
    saved = stored[place].clone()
    with torch.no_grad():
        stored[place] = decode((encode(saved, fmt) & keep) ^ toggle, fmt)
        outputs = call(model, rows(data.inputs, slice(int(trials.inputs[trial]), int(trials.inputs[trial]) + 1)))
        stored[place] = saved
    return outputs


def _close(one: Tensor, two: Tensor) -> bool:
    """Whether two computations agree up to the order of additions, in proportion to the largest value of each lane."""
    a, b = (x.double().reshape(len(x), -1) for x in (one, two))
    scale = torch.where(b.isfinite(), b, 0).abs().amax(1, keepdim=True)
    near = ((a - b).abs() <= 1e-4 * scale + 1e-6) | (a == b) | (a.isnan() & b.isnan())
    # Near the end of the range a sum overflows in one order of additions and not in another.
    return bool((near | (scale > 1e30) | ~a.isfinite() & ~b.isfinite()).all())


def _equal(one: Tensor, two: Tensor) -> bool:
    """Compare byte by byte, so that NaN equals itself and -0 differs from 0."""
    return torch.equal(one.reshape(-1).contiguous().view(torch.uint8), two.reshape(-1).contiguous().view(torch.uint8))
