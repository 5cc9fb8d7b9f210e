"""The exception tree: every message says what was expected, what came, and what to do about it."""

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = [
    "CampaignError",
    "ConfigError",
    "CriterionError",
    "DataError",
    "EngineError",
    "FaultError",
    "HardwareError",
    "ModelError",
    "SamplingError",
    "SpaceError",
    "StatisticsError",
    "StorageError",
    "StoreError",
    "TorchfaultError",
    "VulnerabilityError",
    "WordError",
    "brief",
    "did_you_mean",
    "first_line",
    "lacks_memory",
]


class TorchfaultError(Exception):
    """The base of every error that torchfault raises on purpose.

    >>> issubclass(SpaceError, TorchfaultError)
    True
    """


class SpaceError(TorchfaultError):
    """A fault, a site or a filter that the fault space does not hold."""


class WordError(TorchfaultError):
    """A tensor or a number that a word format cannot represent."""


class StorageError(TorchfaultError):
    """A parameter that a storage cannot keep, or stored words that nobody can follow."""


class FaultError(TorchfaultError):
    """A fault model or a trial that makes no sense, or a fault that never struck."""


class HardwareError(TorchfaultError):
    """An accelerator, or a pattern of it, that cannot be, or that does not fit the model."""


class ModelError(TorchfaultError):
    """A model or a checkpoint that cannot be loaded, traced or injected into."""


class DataError(TorchfaultError):
    """Inputs or labels of the wrong shape, type or number."""


class EngineError(TorchfaultError):
    """A set of trials that no executor can run as asked."""


class CriterionError(TorchfaultError):
    """A criterion that does not fit the model's outputs."""


class SamplingError(TorchfaultError):
    """A sampler asked for draws that it cannot make."""


class StatisticsError(TorchfaultError):
    """Counts, weights or levels from which no estimate can be made."""


class VulnerabilityError(TorchfaultError):
    """A vulnerability analysis that does not fit the model, or that is asked for what it cannot tell."""


class CampaignError(TorchfaultError):
    """A campaign that cannot start, or one that cannot be resumed as it was."""


class StoreError(TorchfaultError):
    """A store that cannot be opened, read or extended."""


class ConfigError(TorchfaultError):
    """A configuration file or a flag with a missing, unknown or invalid value."""


_LONGEST = 400


def first_line(error: BaseException) -> str:
    """Return the first line of what *error* says, at most 400 characters, or its class where it says nothing.

    >>> first_line(ValueError("no such file\\nmore")), first_line(ValueError())
    ('no such file', 'ValueError')
    """
    try:
        said = str(error).strip()
    except Exception:  # an error of another library that cannot even tell
        said = ""
    line = said.splitlines()[0] if said else type(error).__name__
    return line if len(line) <= _LONGEST else line[:_LONGEST] + "..."


def brief(error: BaseException) -> str:
    """Return the class of *error* and the first line of what it says.

    >>> brief(ValueError("no such file\\nmore")), brief(ValueError())
    ('ValueError: no such file', 'ValueError')
    """
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def lacks_memory(error: BaseException) -> bool:
    """Whether *error* says that the machine has no memory left.

    >>> lacks_memory(MemoryError()), lacks_memory(RuntimeError("can't allocate memory")), lacks_memory(RuntimeError())
    (True, True, False)
    """
    # Torch has a class for GPUs, which is not imported for this, and none for CPUs.
    torchs = type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and torchs)


def did_you_mean(wrong: str, known: Iterable[str], *, most: int = 3) -> str:
    """Return ``"; did you mean 'a' or 'b'?"`` for the nearest of the *known* names, or an empty string.

    >>> did_you_mean("CONVl", ["conv1", "fc"])
    "; did you mean 'conv1'?"
    >>> did_you_mean("zzz", ["conv1", "fc"])
    ''
    """
    plain = {name.casefold(): name for name in known}
    near = [plain[name] for name in get_close_matches(wrong[:_LONGEST].casefold(), plain, n=most, cutoff=0.6)]
    return f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
