"""What is about to happen, told before it does: model, data, faults, failures, trials, each as soon as it is known."""

import contextlib
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Self

from torchfault.cli.screen import count, facts, note, say
from torchfault.config import Settings
from torchfault.config.section import Kind
from torchfault.text import masked

if TYPE_CHECKING:
    from torch import nn

    from torchfault.campaign import Campaign
    from torchfault.data import Data
    from torchfault.engine import Engine

__all__ = [
    "Opening",
    "describe_stop",
    "kind_text",
    "tell_campaign",
    "tell_data",
    "tell_engine",
    "tell_memory",
    "tell_model",
]

_READY = ("torchfault.demo:model",)
_PATIENCE = 5.0  # seconds


class Opening:
    """What is told before a campaign runs: all of it once everything is known, or as it comes where that takes long.

    What turns out to be wrong at once is told alone, in its one line.
    """

    def __init__(self) -> None:
        self._held: list[Callable[[], None]] = []
        self._lock, self._at_once = threading.Lock(), False
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, value: object, traceback: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if kind is None:
            self.flush()

    def facts(self, *pairs: tuple[str, str]) -> None:
        """Tell names and what they are."""
        self._add(lambda: facts(pairs))

    def note(self, text: str, *, label: str = "note") -> None:
        """Tell what a user should know."""
        self._add(lambda: note(text, label=label))

    def title(self, name: str, more: str) -> None:
        """Tell what the campaign is called."""
        self._add(lambda: say((name, "bold"), (more, "dim")))

    def _add(self, tell: Callable[[], None]) -> None:
        with self._lock:
            self._held.append(tell)
        if self._at_once:
            self.flush()
        elif self._timer is None:
            self._timer = threading.Timer(_PATIENCE, self._flush_late)
            self._timer.daemon = True
            self._timer.start()

    def _flush_late(self) -> None:
        """Tell it from the timer's thread; that nobody reads it the command finds out at its next line."""
        with contextlib.suppress(OSError, SystemExit):
            self.flush()

    def flush(self) -> None:
        """Tell all that is held, and from now on everything at once."""
        with self._lock:
            self._at_once = True
            while self._held:
                self._held.pop(0)()


def tell_model(opening: Opening, settings: Settings, model: "nn.Module") -> None:
    """Say what the campaign is called, and which model it strikes."""
    opening.title(settings.name or "", "" if settings.recipe == "run" else f"  ({settings.recipe})")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    weights = f", weights of {settings.checkpoint.path.name}" if settings.checkpoint else ""
    opening.facts(("model", f"{settings.model.factory}, {count(parameters)} parameters{weights}"))
    if settings.checkpoint is None and not settings.model.pretrained and settings.model.factory not in _READY:
        opening.note("no checkpoint is given; the weights are the factory's own")


def tell_data(opening: Opening, data: "Data") -> None:
    """Say what was understood of the data."""
    from torchfault.adapters.data_summary import summarise

    understood = summarise(data)
    opening.facts(("data", str(understood)))
    for doubt in understood.notes:
        opening.note(doubt)


def tell_engine(opening: Opening, engine: "Engine") -> None:
    """Say how lanes will run, and how good the model is without faults."""
    from torchfault.adapters.data_summary import near_chance

    golden, labels = engine.golden(), engine.data.labels
    reason = f"; lanes run one by one: {engine.alone}" if engine.alone else ""
    reason = reason if engine.fallback is None else f"; no graph: {engine.fallback}"
    opening.facts(("executor", f"{engine.executor}{reason}"), ("golden", _golden(engine)))
    if labels is not None and (doubt := near_chance(golden, labels)):
        opening.note(doubt)


def _golden(engine: "Engine") -> str:
    """Return the accuracy without faults where outputs and labels are of that kind, else the number of inputs."""
    from torchfault.criteria import accuracy
    from torchfault.errors import TorchfaultError

    inputs = f"{count(len(engine.data))} inputs"
    if engine.data.labels is None:
        return f"{inputs}, without labels"
    try:
        return f"{100 * accuracy(engine.golden(), engine.data.labels):.1f} % accuracy on {inputs}"
    except TorchfaultError:
        return inputs


def tell_campaign(
    opening: Opening, settings: Settings, campaign: "Campaign", *, failure: str, store: str, done: int
) -> None:
    """Say what is struck, what counts as a *failure*, when it ends, and where it is kept (*done* trials are there)."""
    from torchfault.space import FaultSpace

    space, what = campaign.space, f"{count(len(campaign.space))} upsets"
    if isinstance(space, FaultSpace):
        what = f"{settings.fault}; {count(len(space))} in {count(len(space.sites))} sites"
    drawn = ", ".join([how_drawn(settings), describe_stop(settings), f"seed {settings.seed}"])
    kept = f"{masked(store)}{f', which holds {count(done)} trials' if done else ''}" if store else ""
    opening.facts(("faults", what), ("failure", failure), ("trials", drawn), ("store", kept))


def tell_memory(opening: Opening, engine: "Engine", campaign: "Campaign") -> None:
    """Say how much memory would spare passes without faults, where blocks of trials come back to the same inputs."""
    from torchfault.campaign.campaign import population_of

    if (anew := engine.recomputed) and campaign.sampler.design(population_of(campaign)).adapts:
        opening.note(f"{anew}; in less, each block of trials computes them again (--memory)")


def how_drawn(settings: Settings) -> str:
    """Return how faults are drawn, and outcomes found, as texts of the configuration.

    >>> from torchfault.config import Override, read_settings
    >>> flags = [Override(("model",), "a:b", "--model"), Override(("data",), "a.npz", "--data")]
    >>> how_drawn(read_settings(None, [*flags, Override(("sampler",), "importance:GBIN", "--sampler")]))
    'importance:score=GBIN'
    """
    if settings.looks_for_drops:
        return f"search by {settings.search.scores[0]}"
    if settings.recipe != "run":
        return settings.recipe
    each = (
        "" if settings.inputs_per_fault == 1 or settings.metric else f" on {settings.inputs_per_fault or 'all'} inputs"
    )
    return " ".join([kind_text(settings.sampler) + each, *(f"by {kind_text(one)}" for one in settings.resolver)])


def kind_text(kind: Kind) -> str:
    """Return a sampler or resolver as a configuration writes it in one text."""
    given = kind.model_dump(exclude_defaults=True)
    options = ",".join(f"{key}={value}" for key, value in given.items() if key != "kind")
    return f"{kind.kind}:{options}" if options else kind.kind


def describe_stop(settings: Settings) -> str:
    """Return when a campaign ends, in words.

    >>> from torchfault.config import Override, read_settings
    >>> flags = [Override(("model",), "a:b", "--model"), Override(("data",), "a.npz", "--data")]
    >>> describe_stop(read_settings(None, [*flags, Override(("stop", "half_width"), "site=0.01", "--half-width")]))
    'until intervals are ±1 % by site'
    """
    from torchfault.config.build import DEFAULT_TRIALS, ends

    stop, parts = settings.stop, []
    if stop.half_width:
        widths = " and ".join(f"±{100 * h:g} % by {by}" for by, h in stop.half_width.items())
        parts.append(f"until intervals are {widths}")
    if stop.trials is not None:
        parts.append(f"{stop.trials:,} trials")
    if stop.time is not None:
        parts.append(f"for {stop.time:g} s")
    if parts:
        return " or ".join(parts)
    if not ends(settings):
        return f"{DEFAULT_TRIALS:,} trials"
    if margin := getattr(settings.sampler, "margin", None):
        return f"samples for a margin of ±{100 * margin:g} %"
    return "every fault on every input" if settings.sampler.kind == "exhaustive" else "until it is done"
