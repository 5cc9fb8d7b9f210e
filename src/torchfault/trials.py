"""Trials: which words of which sites change how, all at once, on which input."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from torchfault.errors import FaultError
from torchfault.faults import BitFlip, FaultModel, Lasting
from torchfault.names import site_name
from torchfault.space import Fault, FaultSpace, Locations, Site
from torchfault.words import Edits, word

__all__ = ["Runs", "Trials", "all_at_once", "edits_by_site", "equal_trials", "merge", "pack", "rank_in_run", "strike"]

Masks = NDArray[np.uint64]


class Runs(Protocol):
    """What runs in lanes, one each: :class:`Trials`, or what becomes trials only where it runs."""

    def __len__(self) -> int: ...
    @property
    def inputs(self) -> NDArray[np.int64]:
        """The input of each, shape (lanes,)."""
        ...

    def take(self, order: NDArray[np.int64]) -> Self:
        """Return those at positions *order*, in that order."""
        ...

    def parts(self) -> "Iterator[tuple[Trials, NDArray[np.int64]]]":
        """Yield them as trials, with the positions of theirs, a part after the one before has run."""
        ...


@dataclass(frozen=True, eq=False)
class Trials:
    """Trials in columns: trial i strikes rows ``offsets[i]:offsets[i + 1]`` and runs on input ``inputs[i]``.

    A row edits one word: ``(w & keep) ^ toggle`` at flat *element* of ``sites[site]``; no trial edits a word twice,
    since :func:`merge` composes such faults. In a site with some of the time steps alone, an element past its end lies
    in a later step, which a :class:`Lasting` fault has reached. *offsets* has shape (n + 1,), *inputs* (n,), the other
    columns (m,).

    >>> space = FaultSpace((Site("fc.weight", (4,)),))
    >>> trials = strike(space, space.locate([3, 65]), model=BitFlip(), rng=np.random.default_rng(0))
    >>> len(trials), trials.element.tolist(), trials.toggle.tolist()
    (2, [0, 2], [8, 2])
    """

    sites: tuple[Site, ...]
    offsets: NDArray[np.int64]
    inputs: NDArray[np.int64]
    site: NDArray[np.int32]
    element: NDArray[np.int64]
    keep: Masks
    toggle: Masks

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def owner(self) -> NDArray[np.int64]:
        """The trial of each row, shape (m,)."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def take(self, order: NDArray[np.int64]) -> "Trials":
        """Return the trials at positions *order*, in that order."""
        counts = np.diff(self.offsets)[order]
        offsets = np.concatenate(([0], np.cumsum(counts)))
        rows = np.repeat(self.offsets[:-1][order] - offsets[:-1], counts) + np.arange(offsets[-1])
        columns = (self.site[rows], self.element[rows], self.keep[rows], self.toggle[rows])
        return Trials(self.sites, offsets, self.inputs[order], *columns)

    def parts(self) -> "Iterator[tuple[Trials, NDArray[np.int64]]]":
        """Yield the trials, which need nothing to run, and their positions."""
        yield self, np.arange(len(self))

    @classmethod
    def join(cls, parts: Sequence["Trials"]) -> "Trials":
        """Return the trials of all *parts*, which have the same sites, one after the other."""
        if len(parts) == 1:
            return parts[0]
        before = np.cumsum([0, *(part.offsets[-1] for part in parts[:-1])])
        offsets = [part.offsets[1:] + base for part, base in zip(parts, before, strict=True)]
        names = ("inputs", "site", "element", "keep", "toggle")
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(sites=parts[0].sites, offsets=np.concatenate(([0], *offsets)), **columns)

    def on(self, inputs: NDArray[np.int64]) -> "Trials":
        """Return every trial once on each of *inputs*, trial by trial."""
        repeated = self.take(np.repeat(np.arange(len(self)), len(inputs)))
        return replace(repeated, inputs=np.tile(np.asarray(inputs, dtype=np.int64), len(self)))

    def where(self, kept: NDArray[np.bool_]) -> "Trials":
        """Return the same trials with only those rows that are *kept*, shape (m,); a trial may be left with none."""
        offsets = np.concatenate(([0], np.cumsum(kept)))[self.offsets]
        columns = (self.site[kept], self.element[kept], self.keep[kept], self.toggle[kept])
        return Trials(self.sites, offsets, self.inputs, *columns)


def all_at_once(runs: Runs) -> Trials:
    """Return the trials that *runs*, one or more, become."""
    if isinstance(runs, Trials):
        return runs
    parts, positions = zip(*runs.parts(), strict=True)
    return Trials.join(parts).take(np.argsort(np.concatenate(positions)))


def strike(
    space: FaultSpace,
    locations: Locations,
    *,
    model: FaultModel,
    rng: np.random.Generator,
    counts: NDArray[np.int64] | None = None,
    inputs: NDArray[np.int64] | None = None,
) -> Trials:
    """Return the trials that strike *locations*, each changed by *model*.

    Faults of a trial that land in one word are composed in their order (:func:`merge`): two flips of the same bit leave
    it as it was. A sampler that wants k bits changed draws k distinct ones.

    *counts* gives the faults of each trial (one each unless told) and *inputs* the input of each trial (0 unless
    told), both of shape (trials,). Raises :class:`FaultError` where the counts do not add up or the inputs do not
    match them.

    >>> space = FaultSpace((Site("fc.weight", (4,)),))
    >>> both = strike(space, space.locate([3, 3]), model=BitFlip(), rng=np.random.default_rng(0), counts=np.array([2]))
    >>> both.toggle.tolist()  # the same bit flipped twice is as it was
    [0]
    """
    keep, toggle = _masks(space.sites, locations, model, rng)
    counts = np.ones(len(keep), dtype=np.int64) if counts is None else np.asarray(counts, dtype=np.int64)
    if counts.sum() != len(keep) or (counts < 1).any():
        raise FaultError(
            f"every trial needs at least one fault and all together {len(keep)}, the number of locations; "
            f"got {len(counts)} counts with a sum of {counts.sum()}"
        )
    inputs = np.zeros(len(counts), dtype=np.int64) if inputs is None else np.asarray(inputs, dtype=np.int64)
    if inputs.shape != counts.shape:
        raise FaultError(f"every trial runs on one input, got {len(inputs)} inputs for {len(counts)} trials")
    if isinstance(model, Lasting):
        row, element = model.spread(space.sites, locations)
        counts = np.bincount(np.repeat(np.arange(len(counts)), counts)[row], minlength=len(counts))
        return merge(space.sites, counts, inputs, (locations.site[row], element, keep[row], toggle[row]))
    return merge(space.sites, counts, inputs, (locations.site, locations.element, keep, toggle))


def pack(space: FaultSpace, faults: Sequence[Fault], *, rng: np.random.Generator | None = None) -> Trials:
    """Return one trial that strikes all *faults* together, each by its own model, on input 0.

    Those that land in one word are composed in their order (:func:`merge`): the second of two flips of one bit undoes
    the first, a bit that is stuck stays so unless a later fault changes it.

    >>> from torchfault.faults import StuckAt
    >>> space = FaultSpace((Site("fc.weight", (4,)),))
    >>> pack(space, [Fault("fc.weight", 1, 0), Fault("fc.weight", 1, 2, StuckAt(0))]).keep.tolist()
    [4294967291]
    """
    if not faults:
        raise FaultError("a trial needs at least one fault, got none")
    where = space.locate([space.index(fault) for fault in faults])
    generator = rng or np.random.default_rng()
    groups: dict[FaultModel, list[int]] = {}
    for row, fault in enumerate(faults):
        groups.setdefault(fault.model or BitFlip(), []).append(row)
    order, columns = [], []
    for model, rows in groups.items():
        part = Locations(where.site[rows], where.element[rows], where.bit[rows])
        keep, toggle = _masks(space.sites, part, model, generator)
        which, element = np.arange(len(rows)), part.element
        if isinstance(model, Lasting):
            which, element = model.spread(space.sites, part)
        order.append(np.array(rows)[which])
        columns.append((part.site[which], element, keep[which], toggle[which]))
    # Back into the order of the faults: two in one word are composed in it.
    sort = np.argsort(np.concatenate(order), kind="stable")
    site, element, keep, toggle = (np.concatenate(parts)[sort] for parts in zip(*columns, strict=True))
    return merge(space.sites, np.array([len(sort)]), np.zeros(1, dtype=np.int64), (site, element, keep, toggle))


def _masks(
    sites: tuple[Site, ...], where: Locations, model: FaultModel, rng: np.random.Generator
) -> tuple[Masks, Masks]:
    """Ask *model* for its masks, word format by word format, in the fixed order of the sites."""
    keep, toggle = np.empty(len(where.site), dtype=np.uint64), np.empty(len(where.site), dtype=np.uint64)
    formats = np.array([site.word for site in sites])[where.site]
    for name in dict.fromkeys(site.word for site in sites):
        rows = np.flatnonzero(formats == name)
        if rows.size:
            keep[rows], toggle[rows] = model.masks(word(name), where.bit[rows], rng=rng)
    return keep, toggle


def rank_in_run(fresh: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return 0, 1, ... within each run, where *fresh* marks the first of every run, shape (n,).

    >>> rank_in_run(np.array([True, True, False, False])).tolist()
    [0, 0, 1, 2]
    """
    start = np.flatnonzero(fresh)
    return np.arange(len(fresh)) - np.repeat(start, np.diff(np.append(start, len(fresh))))


def merge(
    sites: tuple[Site, ...],
    counts: NDArray[np.int64],
    inputs: NDArray[np.int64],
    columns: tuple[NDArray[np.int32], NDArray[np.int64], Masks, Masks],
) -> Trials:
    """Return trials with every word edited once: edits of one word in one trial are composed, in their order.

    *counts* gives the edits of each trial; *columns* are site, element, keep and toggle. After (k1, t1) and (k2, t2) a
    word w is ``(((w & k1) ^ t1) & k2) ^ t2``, which is one edit again: ``(w & k1 & k2) ^ (t1 & k2 ^ t2)``.

    >>> sites, same = (Site("fc.weight", (4,)),), np.zeros(2, dtype=np.int64)
    >>> masks = np.array([2**32 - 1, 2**32 - 2], dtype=np.uint64), np.array([1, 0], dtype=np.uint64)
    >>> one = merge(sites, np.array([2]), np.array([0]), (same.astype(np.int32), same, *masks))
    >>> one.element.tolist(), one.keep.tolist(), one.toggle.tolist()  # flipped, then stuck at 0
    ([0], [4294967294], [0])
    """
    owner = np.repeat(np.arange(len(counts)), counts)
    order = np.lexsort((columns[1], columns[0], owner))
    owner, site, element = owner[order], columns[0][order], columns[1][order]
    keep, toggle = columns[2][order], columns[3][order]
    fresh = np.ones(len(owner), dtype=bool)
    fresh[1:] = (owner[1:] != owner[:-1]) | (site[1:] != site[:-1]) | (element[1:] != element[:-1])
    if not fresh.all():
        start = np.flatnonzero(fresh)
        rank = rank_in_run(fresh)
        home = np.cumsum(fresh) - 1
        merged_keep, merged_toggle = keep[start].copy(), toggle[start].copy()
        for level in range(1, int(rank.max()) + 1):
            rows = np.flatnonzero(rank == level)
            merged_toggle[home[rows]] = (merged_toggle[home[rows]] & keep[rows]) ^ toggle[rows]
            merged_keep[home[rows]] &= keep[rows]
        owner, site, element, keep, toggle = owner[start], site[start], element[start], merged_keep, merged_toggle
    offsets = np.searchsorted(owner, np.arange(len(counts) + 1)).astype(np.int64)
    return Trials(sites, offsets, inputs, site.astype(np.int32), element.astype(np.int64), keep, toggle)


def equal_trials(trials: Trials) -> list[NDArray[np.int64]]:
    """Return the positions of *trials*, grouped by equal faults, whatever their inputs.

    >>> space = FaultSpace((Site("fc.weight", (4,)),))
    >>> trials = strike(space, space.locate([3, 65, 3]), model=BitFlip(), rng=np.random.default_rng(0))
    >>> [group.tolist() for group in equal_trials(trials)]
    [[0, 2], [1]]
    """
    groups: dict[bytes, list[int]] = {}
    columns = (trials.site, trials.element, trials.keep, trials.toggle)
    for trial, (start, stop) in enumerate(zip(trials.offsets[:-1], trials.offsets[1:], strict=True)):
        key = b"".join(column[start:stop].tobytes() for column in columns) if stop > start else b""
        groups.setdefault(key, []).append(trial)
    return [np.array(group, dtype=np.int64) for group in groups.values()]


def edits_by_site(trials: Trials, *, lanes: bool = False, device: torch.device | str = "cpu") -> dict[str, Edits]:
    """Return the rows of *trials* by the name of their site; with *lanes*, trial i strikes row i of a batch.

    >>> space = FaultSpace((Site("conv:output", (4,), kind="output"),))
    >>> trials = strike(space, space.locate([3, 65]), model=BitFlip(), rng=np.random.default_rng(0))
    >>> edits_by_site(trials, lanes=True)["conv:output"].lane.tolist()
    [0, 1]
    """
    owner = trials.owner if lanes else None
    order = np.argsort(trials.site, kind="stable")
    starts = np.flatnonzero(np.diff(trials.site[order], prepend=-1))
    found = {}
    for rows in np.split(order, starts[1:]) if len(order) else []:
        site = trials.sites[trials.site[rows[0]]]
        columns = (trials.element[rows], trials.keep[rows], trials.toggle[rows])
        lane, part = None if owner is None else owner[rows], site_name(site.name).block
        found[site.name] = Edits.of(site.name, word(site.word), *columns, lane=lane, part=part, device=device)
    return found
