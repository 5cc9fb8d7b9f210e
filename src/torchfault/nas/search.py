"""Architecture search with Optuna: accuracy, what faults leave of it, and work, at no more cost than it takes."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from torchfault.campaign.description import describe, differences
from torchfault.criteria import accuracy
from torchfault.data import Data, call
from torchfault.engine import Engine
from torchfault.errors import CampaignError, ConfigError, DataError, ModelError, TorchfaultError, brief
from torchfault.hardening import train_with_faults
from torchfault.hardware.layers import layers_in
from torchfault.nas.convolutional import convolutional
from torchfault.nas.race import Contender, Race
from torchfault.nas.robustness import Robustness
from torchfault.results import Results
from torchfault.statistics import Estimate
from torchfault.store import Store

if TYPE_CHECKING:
    import optuna
    import pandas as pd

__all__ = ["Candidate", "Plan", "candidates", "front", "judged", "search_architectures"]

Builder = Callable[[Any, Data], nn.Module]
"""Takes a trial of Optuna and the data, and returns a network with fresh weights."""
_KEPT = "torchfault"  # the attribute that holds the candidate of a trial, and the plan of a study


@dataclass(frozen=True, eq=False)
class Plan:
    """How candidates are made and judged: *build* chooses one, *epochs* of Adam train it on *train*, *test* judges.

    *robustness* is the third objective beside accuracy and MACs, ``None`` for these two alone; *error* the risk of a
    :class:`Race` that a candidate of the front is dropped. Raises :class:`DataError` for data without labels, and for
    labels in *test* that *train* lacks.
    """

    train: Data
    test: Data
    build: Builder = convolutional
    robustness: Robustness | None = field(default_factory=Robustness)
    error: float = 0.05
    epochs: int = 10
    batch: int = 64
    rate: float = 4e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.train.labels is None or self.test.labels is None:
            raise DataError("architectures are judged by their accuracy, which needs labels, got inputs alone")
        if isinstance(self.train.labels, Tensor) and isinstance(self.test.labels, Tensor):
            never = sorted(set(self.test.labels.unique().tolist()) - set(self.train.labels.unique().tolist()))
            if never:
                raise DataError(
                    f"what judges has labels that nothing to learn from has, {never[0]} among them; mix the data"
                )


@dataclass(frozen=True)
class Candidate:
    """An architecture as it was found: its *number* and *choices*, *accuracy* and *macs* of one input.

    *robust* is the estimate of its robustness at 95 % confidence, after as many trials as it has, *floor* its lower
    bound in the race, and *dominated* tells that these ended early; *seconds* went into training and into faults.
    """

    number: int
    choices: dict[str, Any]
    accuracy: float
    macs: int
    robust: Estimate | None
    floor: float
    dominated: bool
    seconds: tuple[float, float]


def search_architectures(
    plan: Plan,
    *,
    store: str,
    name: str = "architectures",
    trials: int = 30,
    progress: Callable[[Candidate, int], None] | None = None,
) -> "optuna.Study":
    """Evaluate *trials* architectures in all, and return the study of Optuna that holds them.

    Objectives are accuracy (up), the robustness of the plan, if any (up), and MACs (down). The robustness of a
    candidate is estimated on more and more trials, and no more once others dominate it (:class:`Race`). Study and
    campaigns are kept in *store*, a file or URL: a search that was interrupted, or asked for more, goes on as if it had
    never stopped. *progress* is called with each candidate and how many there are. Raises :class:`ConfigError` where
    Optuna is missing (``pip install torchfault[search]``), and :class:`CampaignError` where the study in *store* was
    begun by another plan.

    >>> import tempfile
    >>> data = Data(torch.rand(40, 1, 8, 8), torch.arange(40) % 4)
    >>> plan = Plan(data, data, robustness=Robustness("mvf", trials=(50,)), epochs=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     study = search_architectures(plan, store=f"{folder}/store.db", trials=1)
    ...     held = candidates(study)
    >>> held[0].robust.trials
    50
    """
    with Store(store) as opened:
        study = _study(opened, store, name, plan)
        while (number := len(candidates(study))) < trials:
            trial = _asked(study, plan, number)
            found = judged(plan, trial, number, candidates(study), store=opened, name=name)
            trial.set_user_attr(_KEPT, asdict(found))
            study.tell(trial, _values(found))
            if progress is not None:
                progress(found, number + 1)
    return study


def _study(opened: Store, store: str, name: str, plan: Plan) -> "optuna.Study":
    """Return the study *name* in *store*, made anew where there is none; what was under way in it has failed.

    The store is *opened* before: its tables come first, since a database of something else becomes none, and so does
    its look at the file, whose end would release the locks that Optuna's connection holds on it.
    """
    try:
        import optuna
    except ImportError:
        raise ConfigError(
            "the search for architectures needs the package optuna; use pip install torchfault[search]"
        ) from None
    opened.prepare()
    directions: list[Literal["minimize", "maximize"]] = ["maximize", "maximize", "minimize"]
    if plan.robustness is None:
        directions.pop(0)
    url = store if "://" in store else f"sqlite:///{store}"
    told = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=url, study_name=name, directions=directions, load_if_exists=True)
    optuna.logging.set_verbosity(told)
    _check_same(study, plan)
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _check_same(study: "optuna.Study", plan: Plan) -> None:
    """Raise :class:`CampaignError`, naming what changed, where *study* was begun by another plan than *plan*."""
    held, now = study.user_attrs.get(_KEPT), describe(plan)
    if held is None:
        study.set_user_attr(_KEPT, now)
    elif changed := differences(held["fields"], now["fields"]):
        raise CampaignError(
            f"the study '{study.study_name}' was begun with another {', '.join(changed)}; restore that to go on with "
            "it, or choose another name"
        )


def candidates(study: "optuna.Study") -> list[Candidate]:
    """Return the architectures of a study, in the order in which they were evaluated."""
    held = [trial.user_attrs[_KEPT] for trial in study.get_trials(deepcopy=False) if trial.values]
    return [
        Candidate(**{**one, "robust": one["robust"] and Estimate(**one["robust"]), "seconds": tuple(one["seconds"])})
        for one in held
    ]


def front(found: Sequence[Candidate]) -> "pd.DataFrame":
    """Return the candidates that no other one beats in accuracy, robustness and MACs, the most accurate first."""
    import pandas as pd

    def values(one: Candidate) -> tuple[float, ...]:
        return (one.accuracy, 0.0 if one.robust is None else one.robust.value, -float(one.macs))

    def beaten(one: Candidate) -> bool:
        mine = values(one)
        return any(
            theirs != mine and all(b >= a for a, b in zip(mine, theirs, strict=True)) for theirs in map(values, found)
        )

    rows = [
        {
            "number": one.number,
            "accuracy": one.accuracy,
            "macs": one.macs,
            **(
                {}
                if one.robust is None
                else {"robust": one.robust.value, "low": one.robust.low, "high": one.robust.high}
            ),
            **one.choices,
        }
        for one in sorted(found, key=values, reverse=True)
        if not beaten(one)
    ]
    return pd.DataFrame(rows)


def _asked(study: "optuna.Study", plan: Plan, number: int) -> "optuna.Trial":
    """Return the next trial, which depends on the plan's seed, the number and the finished trials alone."""
    import optuna

    study.sampler = optuna.samplers.TPESampler(seed=(plan.seed * 1_000_003 + number) % 2**32)
    return study.ask()


def _values(found: Candidate) -> list[float]:
    robust = [] if found.robust is None else [found.robust.value]
    return [found.accuracy, *robust, float(found.macs)]


def judged(
    plan: Plan, trial: "optuna.Trial", number: int, others: Sequence[Candidate], *, store: Store, name: str
) -> Candidate:
    """Train and judge the architecture that *trial* chooses, in a race with *others*."""
    began = time.process_time()
    with torch.random.fork_rng():
        torch.manual_seed(plan.seed * 1_000_003 + number)
        model = _built(plan, trial)
        optimizer = torch.optim.Adam(model.parameters(), lr=plan.rate)
        train_with_faults(model, plan.train, optimizer, None, epochs=plan.epochs, batch=plan.batch, seed=plan.seed)
    model.requires_grad_(False)
    with torch.inference_mode():
        right = accuracy(call(model, plan.test.inputs), plan.test.labels)
    trained = time.process_time()
    engine = Engine(model, plan.test)
    layers = layers_in(engine)
    macs = sum(work.macs for work in layers.works)
    robust, floor, ended = None, 0.0, False
    if plan.robustness is not None:
        kept = plan.robustness.looks(engine, layers, store=store, name=f"{name}-{number:03d}", seed=plan.seed)
        robust, floor, ended = _raced(plan, plan.robustness, kept, (right, -float(macs)), number, others)
    seconds = (trained - began, time.process_time() - trained)
    return Candidate(number, dict(trial.params), right, macs, robust, floor, ended, seconds)


def _built(plan: Plan, trial: "optuna.Trial") -> nn.Module:
    try:
        model: object = plan.build(trial, plan.train)
    except TorchfaultError:
        raise
    except Exception as error:
        raise ModelError(f"what builds architectures failed: {brief(error)}; it takes a trial and the data") from error
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"what builds architectures returns a network, got a {type(model).__name__}; return an nn.Module"
        )
    return model


def _raced(
    plan: Plan,
    robustness: Robustness,
    looks: Iterator[Results],
    exact: tuple[float, ...],
    number: int,
    others: Sequence[Candidate],
) -> tuple[Estimate, float, bool]:
    """Look at a candidate until it is known well, or dominated; return its estimate, lower bound, and which it was."""
    race = Race(plan.error, len(robustness.trials))
    rivals = [Contender((one.accuracy, -float(one.macs)), one.floor, 1.0) for one in others]
    ended, results = False, next(looks)
    while True:
        high = robustness.estimate(results, level=race.above).high
        ended = race.dominated(Contender(exact, 0.0, high), rivals)
        if ended or (more := next(looks, None)) is None:
            break
        results = more
    floor = robustness.estimate(results, level=race.below(number)).low
    return robustness.estimate(results, level=0.95), floor, ended
