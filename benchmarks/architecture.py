"""Architecture search with what faults leave of the accuracy, against the search for accuracy alone and for RA_SW.

Three searches of equally many architectures from the small convolutional space, on scikit-learn's digits and on 4,000
of the shared CIFAR-10 images: by accuracy and MACs; by RA on the output-stationary array beside; by uniform RA_SW
beside. RA of what the other two find is measured afterwards. *ra_gain*: for the four most accurate architectures of
the search for accuracy, how much more RA the search for RA offers at the same accuracy (within half a point), the
mean; *ra_gain_no_less*: at no less accuracy. *overhead*: CPU time that RA takes, with the capture of the network, for
each second that training and testing do, over all of the search for RA but its first, which warms up; *seconds*: of
one architecture. *most*: what upsets of data take from the least robust architecture of all, which no other can gain
more than. With ``--folder`` an interrupted run goes on.
"""

import argparse
import tempfile
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optuna.trial import FixedTrial

from benchmarks.engine import MEAN, STD, data_folder
from benchmarks.sections import tell
from torchfault.data import Data
from torchfault.hardware.accelerator import OUTPUT_STATIONARY
from torchfault.nas import Candidate, Plan, Robustness, candidates, search_architectures
from torchfault.nas.search import judged
from torchfault.store import Store

_TOP = 4
_EQUAL = 0.005  # of accuracy: half a point is the same
_LOOKS = (1536, 3072)


def digits() -> tuple[Data, Data]:
    """Return 1,200 images to learn, and 597 to judge by."""
    from sklearn.datasets import load_digits

    held = load_digits()
    order = torch.randperm(len(held.target), generator=torch.Generator().manual_seed(5))
    inputs = torch.from_numpy(held.images).float().div(16).unsqueeze(1)[order]
    labels = torch.from_numpy(held.target).long()[order]
    return Data(inputs[:1200], labels[:1200]), Data(inputs[1200:], labels[1200:])


def cifar() -> tuple[Data, Data]:
    """Return 4,000 training images, and 1,000 test images."""

    def read(name: str) -> Data:
        with np.load(data_folder() / name) as archive:
            shown, labels = torch.from_numpy(archive["images"]), torch.from_numpy(archive["labels"]).long()
        pixels = shown.permute(0, 3, 1, 2).float() / 255
        pixels = (pixels - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
        return Data(pixels.contiguous(), labels)

    return read("cifar10_train_4000.npz"), read("cifar10_test_1000.npz")


DATA: dict[str, tuple[Callable[[], tuple[Data, Data]], int, int]] = {
    "digits": (digits, 16, 20),
    "cifar": (cifar, 12, 12),
}
"""By name: the images, how many architectures, and for how many epochs each is trained."""


def searched(parts: tuple[Data, Data], kind: str | None, *, trials: int, epochs: int, folder: Path) -> list[Candidate]:
    """Return the architectures that a search finds, by accuracy and MACs where *kind* is ``None``."""
    robustness = None if kind is None else Robustness(kind, trials=_LOOKS)  # type: ignore[arg-type]
    plan = Plan(*parts, robustness=robustness, epochs=epochs)
    return candidates(search_architectures(plan, store=str(folder / f"{kind}.db"), trials=trials))[:trials]


def with_ra(
    parts: tuple[Data, Data],
    kind: str | None,
    found: Sequence[Candidate],
    known: Sequence[Candidate],
    *,
    epochs: int,
    folder: Path,
) -> list[Candidate]:
    """Return what a search of another *kind* has found with its RA: *known* already, or trained anew as it was."""
    plan = Plan(*parts, robustness=Robustness("ra", trials=_LOOKS[-1:]), epochs=epochs)
    with Store(folder / f"{kind}.db") as store:
        return [
            next((two for two in known if alike(one, two)), None)
            or judged(plan, FixedTrial(one.choices), one.number, [], store=store, name="again")
            for one in found
        ]


def gain(reference: Sequence[Candidate], offered: Sequence[Candidate], *, most: float = _EQUAL) -> list[float]:
    """Return for each of *reference* how much more RA is *offered* at its accuracy, half a point less to *most*."""
    gains = []
    for one in reference:
        assert one.robust is not None
        near = [two.robust.value for two in offered if two.robust and -_EQUAL <= two.accuracy - one.accuracy <= most]
        gains += [max(near) - one.robust.value] if near else []
    return gains


def mean(values: Sequence[float]) -> float | None:
    """Return the mean of *values*, ``None`` where there are none."""
    return float(np.mean(values)) if values else None


def alike(one: Candidate, two: Candidate) -> bool:
    """Return whether two searches have trained the same network, as they do while their choices are random."""
    return (one.number, one.choices) == (two.number, two.choices)


def compared(name: str, folder: Path, *, trials: int | None = None) -> dict[str, Any]:
    """Return what the three searches come to on the images called *name*."""
    load, count, epochs = DATA[name]
    parts, count = load(), trials or count
    folder.mkdir(parents=True, exist_ok=True)
    by = {kind: searched(parts, kind, trials=count, epochs=epochs, folder=folder) for kind in (None, "ra", "ra_sw")}
    top = {
        kind: with_ra(
            parts,
            kind,
            sorted(by[kind], key=lambda one: -one.accuracy)[:_TOP],
            by["ra"],
            epochs=epochs,
            folder=folder,
        )
        for kind in (None, "ra_sw")
    }
    every = sum(part.share for part in OUTPUT_STATIONARY.types)
    data = 1 - sum(part.share for part in OUTPUT_STATIONARY.types if part.holds == "control") / every
    lost = [data * one.accuracy - one.robust.value for one in (*by["ra"], *top[None]) if one.robust]
    trained, struck = np.array([one.seconds for one in by["ra"][1:]]).T
    gains = gain(top[None], by["ra"])
    return {
        "architectures": count,
        "images": len(parts[0]),
        "epochs": epochs,
        "ra_gain": mean(gains),
        "ra_gain_best": max(gains, default=None),
        "ra_gain_no_less": mean(gain(top[None], by["ra"], most=1.0)),
        "ra_gain_over_ra_sw": mean(gain(top["ra_sw"], by["ra"])),
        "most": max(lost),
        "least": min(lost),
        "overhead": float(struck.sum() / trained.sum()),
        "seconds": [float(np.median(trained)), float(np.median(struck))],
        "dominated": sum(one.dominated for one in by["ra"]),
        "accuracy": max(one.accuracy for one in by["ra"]),
        "accuracy_alone": max(one.accuracy for one in by[None]),
    }


def figures(names: Sequence[str] = tuple(DATA), *, folder: Path | None, trials: int | None = None) -> dict[str, Any]:
    """Return ``{"search": {"ra_gain", "overhead", name: {...}}}``, the first two of the last of *names*."""
    with tempfile.TemporaryDirectory() as scratch:
        kept = folder or Path(scratch)
        parts = {name: compared(name, kept / name, trials=trials) for name in names}
    last = parts[list(parts)[-1]]
    return {"search": {"ra_gain": last["ra_gain"], "overhead": last["overhead"], **parts}}


def main() -> None:
    """Print lines, or one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--data", choices=list(DATA), action="append", help="only this one")
    parser.add_argument("--folder", type=Path, help="keep the searches there, from which a later run goes on")
    parser.add_argument("--trials", type=int, help="architectures in each search")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    tell(figures(given.data or tuple(DATA), folder=given.folder, trials=given.trials), "search", as_json=given.json)


if __name__ == "__main__":
    main()
