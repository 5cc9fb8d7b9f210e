"""`doctor`: what is installed, what the machine has, and whether the engine agrees with its reference here."""

import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torchfault
from torchfault.cli.machine import print_object
from torchfault.cli.screen import facts, next_steps, say, strays_aside, working
from torchfault.errors import EngineError, first_line

if TYPE_CHECKING:
    from torchfault.engine import Engine

__all__ = ["CHECK_FAILED", "examine"]

CHECK_FAILED = 3
_NEEDED = ("torch", "numpy", "scipy", "pandas", "pydantic", "typer", "rich", "SQLAlchemy", "safetensors", "matplotlib")
_OPTIONAL = {  # what each is for
    "pyarrow": "export to Parquet",
    "openpyxl": "evidence as XLSX",
    "jsonschema": "checks of evidence by its schema",
    "torchvision": "models by name, torchvision:resnet18",
    "timm": "models by name, timm:resnet18",
    "transformers": "models by name, hf:...",
    "lightning": "fault-aware training by its trainer",
    "accelerate": "fault-aware training by the trainer of transformers",
    "optuna": "searches for architectures",
    "torchao": "quantised models",
    "captum": "scores of ISimDL",
    "snntorch": "spiking models",
    "psycopg": "stores in PostgreSQL",
    "ray": "lanes on a cluster of Ray",
    "submitit": "lanes in jobs of Slurm",
}
_TRIALS = 120  # of each executor against editing the word and running the model
_OUTCOMES = 600  # of both executors against each other
_TIES = 6  # outcomes that may differ, where two classes come out all but equal
_SEED = 20261121


@dataclass(frozen=True)
class Check:
    """A check that was made: its *name*, whether it is *right*, what was *found*, and the *seconds* it took."""

    name: str
    right: bool
    found: str
    seconds: float


def examine(*, as_json: bool) -> None:
    """Print what is here, run the checks, and end with exit status 3 where one of them fails."""
    versions = {name: _version(name) or "missing" for name in _NEEDED}
    versions = {"torchfault": torchfault.__version__, "python": platform.python_version(), **versions}
    optional = {name: _version(name) for name in _OPTIONAL}
    with strays_aside(), working("checking the engine against its reference"):
        machine = _machine()
        checks = list(_checks())
    wrong = [check for check in checks if not check.right]
    if as_json:
        told = {"versions": versions, "optional": optional, "machine": machine, "right": not wrong}
        print_object("doctor", {**told, "checks": [asdict(check) for check in checks]})
    else:
        say(("installed", "bold"), out=True)
        facts(versions.items(), out=True)
        say(("optional", "bold"), out=True)
        facts([(name, f"{optional[name] or 'not installed'}, {use}") for name, use in _OPTIONAL.items()], out=True)
        say(("machine", "bold"), out=True)
        facts([(name, str(value)) for name, value in machine.items()], out=True)
        say(("checks", "bold"), out=True)
        facts([(check.name, _line(check)) for check in checks], out=True)
    if wrong:
        sys.exit(CHECK_FAILED)
    if not as_json:
        next_steps(["torchfault demo", "torchfault init --model MODULE:FACTORY --data FILE"])


def _line(check: Check) -> str:
    return f"{'ok' if check.right else 'FAILED'}: {check.found} ({check.seconds:.1f} s)"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _machine() -> dict[str, str | int | None]:
    """Return processors, memory and devices in words."""
    import torch

    held: dict[str, str | int | None] = {"system": platform.platform(), "cores": os.cpu_count()}
    held |= {"threads": torch.get_num_threads(), "memory": _memory("SC_PHYS_PAGES"), "free": _memory("SC_AVPHYS_PAGES")}
    names = [torch.cuda.get_device_name(one) for one in range(torch.cuda.device_count())]
    place = "can be written to" if os.access(".", os.W_OK) else "cannot be written to: give --store"
    return held | {"gpu": ", ".join(names) or "none", "folder": place}


def _memory(name: str) -> str | None:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf(name) / 2**30:.1f} GiB"
    except (AttributeError, ValueError, OSError):
        return None


def _checks() -> Iterator[Check]:
    """Run every check on every device that torch can use."""
    import torch

    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        engines: dict[str, Engine] = {}
        for executor in ("graph", "hooks"):
            yield _timed(f"{executor} on {device}", partial(_agrees, executor, device, engines))
        if len(engines) == 2:
            yield _timed(f"outcomes on {device}", partial(_alike, *engines.values()))


def _timed(name: str, check: Callable[[], str]) -> Check:
    """Run a check, which has failed where it raises."""
    begun = time.perf_counter()
    try:
        right, found = True, check()
    except Exception as error:
        right, found = False, first_line(error)
    return Check(name, right, found, round(time.perf_counter() - begun, 2))


def _agrees(executor: str, device: str, engines: "dict[str, Engine]") -> str:
    """Hold an executor to its contract on a small CNN, and keep its engine."""
    import torch

    from torchfault.data import Data
    from torchfault.engine import Engine
    from torchfault.testing import check_executor
    from torchfault.zoo import digits_cnn

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(_SEED)
        model, data = digits_cnn(), Data(torch.rand(24, 1, 8, 8))
    engine: Any = Engine(model, data, executor=executor, device=device)  # type: ignore[arg-type]
    check_executor(engine, engine.model, engine.data, trials=_TRIALS)
    engines[executor] = engine
    return f"{_TRIALS} faults have the outcome of editing the word and running the model"


def _alike(one: "Engine", other: "Engine") -> str:
    """Run one campaign on both executors, whose outcomes may differ in ties alone."""
    from torchfault.campaign import Campaign, run
    from torchfault.statistics import MaxTrials

    left, right = (
        run(Campaign(engine, engine.space, seed=_SEED, stop=MaxTrials(_OUTCOMES))) for engine in (one, other)
    )
    apart = int((left.columns.flag("failed") != right.columns.flag("failed")).sum())
    if apart > _TIES:
        raise EngineError(f"graph and hooks differ in {apart} of {_OUTCOMES} outcomes, expected at most {_TIES}")
    return f"graph and hooks agree in {_OUTCOMES - apart} of {_OUTCOMES} outcomes"
