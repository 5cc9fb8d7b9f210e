"""The truth about ResNet-20: every single-bit fault of the weights of its layers on 100 images, piece by piece.

``python -m benchmarks.truth make --sites linear.weight --minutes 20`` settles pieces of 128 words on all images, each
in a file of its own that appears whole or not at all, and goes on where it stopped, after a kill too, in several
processes with ``--share 1/2`` and so on; ``gather`` joins what is complete into one file. An outcome is exact where it
was run, is certified (:mod:`torchfault.resolve.certification`) or meets nothing but zeros; of the other flips of a word
in one direction, on one image, the search down their sizes takes smaller ones to fail no more than larger ones. What
rests on that is marked bit by bit, and one word in a thousand, of small layers about eight, drawn at random, is
enumerated in full: what it refutes is counted. ``--json`` tells what a gathered file holds, and what the library's
estimators make of it by look-up.
"""

import argparse
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.engine import outcomes, resnet20
from benchmarks.sections import ROOT
from torchfault.data import leaves
from torchfault.engine import Engine
from torchfault.errors import SpaceError
from torchfault.faults import BitFlip
from torchfault.model.operands import operands
from torchfault.resolve import Block, Gated, MeetsZeros, Monotone, Resolver, certified
from torchfault.space import FaultSpace
from torchfault.trials import Trials, strike

__all__ = ["KEPT", "Truth", "load"]

KEPT = ROOT / "benchmarks" / "truth_resnet20.npz"
WORDS = 128  # in a piece
IMAGES, BITS = 100, 32
_EVERY, _LEAST = 1000, 8  # one word in so many is enumerated in full, and about so many of each layer
_COUNTS = ("lanes", "enumerated", "refuted", "disproved")


@dataclass(frozen=True, eq=False)
class Truth:
    """What is known: by site, which faults *fail*, bool (words, bits, images), and on how many images the outcome of
    each rests on monotony (*inferred*, (words, bits)); of all pieces *counts* of lanes, enumerated flips, and of what
    these refuted."""

    fail: Mapping[str, NDArray[np.bool_]]
    inferred: Mapping[str, NDArray[np.uint8]]
    counts: Mapping[str, Mapping[str, int]]


def load(path: Path = KEPT, sites: list[str] | None = None) -> Truth:
    """Return the truth that a gathered file holds, of all its *sites* unless told."""
    if not path.exists():
        raise SystemExit(f"no truth in {path}; make pieces and gather them first: benchmarks/truth.py make, gather")
    with np.load(path) as held:
        counts = json.loads(str(held["counts"]))
        chosen = [name for name in counts if sites is None or name in sites]
        fail = {name: np.unpackbits(held[f"{name}:fail"], axis=-1, count=IMAGES).view(bool) for name in chosen}
        return Truth(fail, {name: held[f"{name}:inferred"] for name in chosen}, {name: counts[name] for name in chosen})


def pieces(space: FaultSpace) -> Iterator[tuple[str, int, int]]:
    """Yield the site, the first word and the end of every piece, from the last site back: there lanes are cheapest."""
    for site in reversed(space.sites):
        for first in range(0, site.elements, WORDS):
            yield site.name, first, min(first + WORDS, site.elements)


def make(folder: Path, engine: Engine, space: FaultSpace, *, minutes: float, share: tuple[int, int] = (1, 1)) -> int:
    """Settle the pieces of *space* that *folder* lacks for so many *minutes*; return how many are left.

    Processes that work at once have a *share* each, such as the first of two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ending = time.monotonic() + 60 * minutes
    mine = islice(pieces(space), share[0] - 1, None, share[1])
    todo = [piece for piece in mine if not _file(folder, *piece[:2]).exists()]
    resolver = exact_first(engine, space) if todo else None
    for done, piece in enumerate(todo):
        if resolver is None or time.monotonic() > ending:
            return len(todo) - done
        part = _file(folder, *piece[:2]).with_suffix(".part")
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **settled(engine, space, resolver, *piece))
        os.replace(part, _file(folder, *piece[:2]))
    return 0


def exact_first(engine: Engine, space: FaultSpace) -> Resolver:
    """Return how outcomes become known: by proofs where there are any, else by the search down the flips of a word."""
    words = engine.words(space)
    met = operands(engine.model, engine.data, engine.space, batch=engine.batch)
    zeros = MeetsZeros(words, {name: met[name] for name in space.names if name in met})
    return certified(engine, space, Gated(zeros, Monotone(words, audit=0)), audit=0)


def settled(
    engine: Engine, space: FaultSpace, resolver: Resolver, name: str, first: int, end: int
) -> dict[str, NDArray[Any]]:
    """Return the outcomes of all flips of the words *first* to *end* of a site on all images, and what they took."""
    part, rng = space.select([name]), np.random.default_rng((engine.space.position(name), first))
    shape = (end - first, BITS, IMAGES)
    element, bit, image = (index.reshape(-1) for index in np.indices(shape))
    index = part.number(np.zeros(len(element), dtype=np.int64), element + first, bit)
    trials = strike(part, part.locate(index), model=BitFlip(), rng=rng, inputs=image)
    nothing = {verdict: np.zeros(IMAGES, dtype=bool) for verdict in ("failed", "due")}
    calm = np.zeros(len(index), dtype=bool)
    block = Block(part, index, trials, lambda asked: ran(engine, asked), lambda: nothing, np.zeros(len(index)), calm)
    resolver.resolve(block, np.arange(len(index)))
    said, vouched, proven = block.failed.copy(), block.flag("vouched").copy(), block.flag("proven").copy()
    share = max(1 / _EVERY, _LEAST / space.site(name).elements)
    chosen = np.flatnonzero((rng.random(end - first) < share)[element])
    block.run_alone(chosen)
    wrong = (block.failed != said)[chosen]
    inferred = block.flag("vouched").reshape(shape).sum(axis=2)
    counts = (block.lanes.sum(), len(chosen), (wrong & vouched[chosen]).sum(), (wrong & proven[chosen]).sum())
    fail = np.packbits(block.failed.reshape(shape), axis=-1)
    return {"fail": fail, "inferred": inferred.astype(np.uint8), "counts": np.array(counts, dtype=np.int64)}


def ran(engine: Engine, trials: Trials) -> dict[str, NDArray[np.bool_]]:
    """Return the verdicts of lanes: another top class, or none."""
    failed, due = np.zeros((2, len(trials)), dtype=bool)
    for lanes in engine.run(trials):
        golden, faulty = leaves(lanes.golden)[0], leaves(lanes.faulty)[0]
        failed[lanes.trial] = outcomes(golden, faulty).numpy()
        due[lanes.trial] = ~faulty.isfinite().all(1).numpy()
    return {"failed": failed, "due": due}


def gather(folder: Path, space: FaultSpace, path: Path) -> list[str]:
    """Join the pieces of the sites that are complete in *folder* into one file, and return these sites.

    What the file holds of other sites stays in it.
    """
    arrays, counts = _gathered(path)
    complete = []
    for site in space.sites:
        files = [_file(folder, name, first) for name, first, _ in pieces(space) if name == site.name]
        if not all(file.exists() for file in files):
            continue
        held = [np.load(file) for file in files]
        arrays |= {f"{site.name}:{key}": np.concatenate([one[key] for one in held]) for key in ("fail", "inferred")}
        total = np.sum([one["counts"] for one in held], axis=0)
        counts[site.name] = dict(zip(_COUNTS, total.tolist(), strict=True))
        complete.append(site.name)
    if not complete:
        raise SystemExit(f"no site is complete in {folder}; make its pieces first: benchmarks/truth.py make")
    counts = {site.name: counts[site.name] for site in space.sites if site.name in counts}
    part = path.with_suffix(".part.npz")
    np.savez_compressed(part, allow_pickle=False, counts=np.array(json.dumps(counts)), **arrays)
    os.replace(part, path)
    return complete


def _gathered(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, int]]]:
    """Return the arrays and the counts of a gathered file, none where there is no file yet."""
    if not path.exists():
        return {}, {}
    with np.load(path) as held:
        arrays = {key: held[key] for key in held.files if key != "counts"}
        return arrays, json.loads(str(held["counts"]))


def _file(folder: Path, name: str, first: int) -> Path:
    return folder / f"{name}@{first:06}.npz"


def told(truth: Truth) -> dict[str, Any]:
    """Return what is known of how many faults, and the vulnerability of each layer."""
    total = sum(part.size for part in truth.inferred.values()) * IMAGES
    inferred = sum(int(part.sum(dtype=np.int64)) for part in truth.inferred.values())
    summed = {name: sum(counts[name] for counts in truth.counts.values()) for name in _COUNTS}
    return {
        "faults": total // IMAGES,
        "outcomes": total,
        "exact": round(1 - inferred / total, 6),
        "by_monotony": round(inferred / total, 6),
        **summed,
        "layers": {name: round(float(part.mean()), 6) for name, part in truth.fail.items()},
    }


def layers(engine: Engine, names: list[str] | None = None) -> FaultSpace:
    """Return the weights of all convolutions and the linear layer, or those called *names*."""
    space = engine.space.select(kinds="weight", types=["Conv2d", "Linear"])
    return space.select(names) if names else space


def _share(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of)):
        raise argparse.ArgumentTypeError(f"expected a share such as 1/2, got '{text}'")
    return int(number), int(of)


def main() -> None:
    """Make pieces, gather them, or tell what is known."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", nargs="?", choices=["make", "gather"], help="without one, tell what is known")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--folder", type=Path, default=ROOT / "truth", help="of the pieces (truth)")
    parser.add_argument("--file", type=Path, default=KEPT, help=f"the gathered file ({KEPT.name})")
    parser.add_argument("--sites", nargs="*", help="sites to make, the last first (all)")
    parser.add_argument("--minutes", type=float, default=60, help="when to stop making, at the end of a piece (60)")
    parser.add_argument("--repetitions", type=int, default=1000, help="campaigns of each estimator (1000)")
    parser.add_argument(
        "--share", type=_share, default=(1, 1), help="of the pieces, such as 1/2 for one process of two"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.step is None:
        from benchmarks.truth_estimators import estimators

        truth = load(given.file)
        found = told(truth) | {"estimators": estimators(given.file, repetitions=given.repetitions)}
        print(json.dumps(found, indent=None if given.json else 1))
        return
    engine = Engine(*resnet20(slice(IMAGES)))
    try:
        space = layers(engine, given.sites)
    except SpaceError as error:
        raise SystemExit(f"--sites: {error}") from None
    if given.step == "make":
        print(f"{make(given.folder, engine, space, minutes=given.minutes, share=given.share)} pieces left")
    else:
        print(", ".join(gather(given.folder, layers(engine), given.file)))


if __name__ == "__main__":
    main()
