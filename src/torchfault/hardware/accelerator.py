"""Accelerators as frozen values: which flip-flops there are, how often they upset, and what they hold."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from torchfault.errors import HardwareError, did_you_mean, first_line
from torchfault.hardware.patterns import Pattern, find_pattern, plain_pattern, read_pattern
from torchfault.plain_yaml import load_file

__all__ = [
    "ACCELERATORS",
    "FLAT",
    "NVDLA_LIKE",
    "OUTPUT_STATIONARY",
    "WEIGHT_STATIONARY",
    "Accelerator",
    "FlipFlops",
    "accelerator_of",
    "find_accelerator",
    "hardened",
    "plain_accelerator",
    "read_accelerator",
    "with_buffer",
]

Holds = Literal["input", "weight", "output", "control"]
Dataflow = Literal["output-stationary", "weight-stationary", "flat"]

RAW_FIT = 600.0
"""Upsets of a plain flip-flop, in FIT (failures in 10^9 hours) per MB of 2^23 flip-flops (Tyagi et al. 2022)."""

HARDENED_FIT = 200.0
"""The same for a hardened one, such as DICE."""

_LARGEST = 1e100  # share or FIT, so that their products are numbers


@dataclass(frozen=True, kw_only=True)
class FlipFlops:
    """One type of flip-flop: what it *holds*, its *share* of all, its raw *fit* per MB, and the *pattern* it makes.

    *share* is in any unit, the same for all types of an accelerator: a count, a fraction or a percentage. *pattern* is
    a name in :data:`torchfault.hardware.patterns.PATTERNS`, or a pattern of one's own. *memory* marks the cells of an
    unprotected buffer, which ECC could correct.

    >>> FlipFlops(name="input", holds="input", share=30.56, pattern="systolic input").fit
    600.0
    """

    name: str
    holds: Holds
    share: float
    pattern: str | Pattern
    fit: float = RAW_FIT
    memory: bool = False

    def __post_init__(self) -> None:
        for what, kind in (("name", str), ("memory", bool)):
            if not isinstance(getattr(self, what), kind):
                raise HardwareError(f"the {what} of a type is a {kind.__name__}, got {getattr(self, what)!r}")
        if self.holds not in ("input", "weight", "output", "control"):
            raise HardwareError(f"'{self.name}' holds input, weight, output or control, got '{self.holds}'")
        for what in ("share", "fit"):
            value = getattr(self, what)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LARGEST:
                raise HardwareError(f"the {what} of '{self.name}' is a number from 0 up to {_LARGEST:g}, got {value!r}")
        effect = find_pattern(self.pattern).effect
        fits = {"operand": ("input", "weight"), "everywhere": ("input", "weight"), "crash": ("control",)}
        if self.holds not in fits.get(effect, ("output",)):
            allowed = " or ".join(fits.get(effect, ("output",)))
            raise HardwareError(f"a pattern that acts on '{effect}' goes with {allowed}, got {self.holds}")


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A chip as far as upsets are concerned: its *types* of flip-flops, and how a layer is laid out on it.

    *dataflow* says what a tile of *height* x *width* holds: output rows x columns (``output-stationary``), depth x
    columns (``weight-stationary``), or nothing (``flat``). *utilisation* is the share of the time in which a flip-flop
    holds something: ``tile`` computes it per layer from how well its tiles fill the array, a number holds for all, and
    pairs of type and number for each (Tyagi et al. 2022, equation 10). *flip_flops* counts all of them, where known.

    Raises :class:`HardwareError` for no type, types of one name, no raw FIT at all, and sizes that cannot be.

    >>> OUTPUT_STATIONARY.height, round(OUTPUT_STATIONARY.weight_of("control"), 4)
    (32, 0.17)
    """

    name: str
    types: tuple[FlipFlops, ...]
    dataflow: Dataflow = "flat"
    height: int = 1
    width: int = 1
    utilisation: str | float | tuple[tuple[str, float], ...] = 1.0
    flip_flops: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "types", tuple(self.types))
        if isinstance(self.utilisation, Mapping):
            object.__setattr__(self, "utilisation", tuple(self.utilisation.items()))
        if not isinstance(self.name, str):
            raise HardwareError(f"the name of an accelerator is text, got {self.name!r}")
        names = [one.name for one in self.types]
        if not names or len(set(names)) != len(names):
            raise HardwareError(f"accelerator '{self.name}' needs types of different names, got {names}")
        if not sum(one.share * one.fit for one in self.types) > 0:
            raise HardwareError(f"accelerator '{self.name}' needs a type with a share and a raw FIT, got none")
        if self.dataflow not in ("output-stationary", "weight-stationary", "flat"):
            raise HardwareError(
                f"a dataflow is output-stationary, weight-stationary or flat, got '{self.dataflow}'"
                f"{did_you_mean(str(self.dataflow), ('output-stationary', 'weight-stationary', 'flat'))}"
            )
        for what in ("height", "width", "flip_flops"):
            value = getattr(self, what)
            if (value is not None or what != "flip_flops") and (
                isinstance(value, bool) or not isinstance(value, int) or value < 1
            ):
                raise HardwareError(f"the {what} of '{self.name}' is a whole number from 1 up, got {value!r}")
        self._check_utilisation()

    def _check_utilisation(self) -> None:
        given = self.utilisation
        if isinstance(given, str):
            if given != "tile":
                raise HardwareError(f"utilisation is 'tile', a number or a number per type, got '{given}'")
            return
        pairs: tuple[tuple[str, Any], ...] = (
            given if isinstance(given, tuple) else tuple((one.name, given) for one in self.types)
        )
        for name, value in pairs:
            self.type_of(name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise HardwareError(f"the utilisation of '{name}' is a number from 0 to 1, got {value!r}")

    def type_of(self, name: str) -> FlipFlops:
        """Return the type called *name*, or raise :class:`HardwareError` with a suggestion."""
        for one in self.types:
            if one.name == name:
                return one
        near = did_you_mean(str(name), [one.name for one in self.types])
        raise HardwareError(f"accelerator '{self.name}' has no type '{name}'{near}")

    def weight_of(self, name: str) -> float:
        """Return w_T = TP FIT / sum of TP FIT: the probability that an upset strikes the type called *name*.

        Source: Tyagi et al. 2022, the product of T(j) and p_T summed over a layer.
        """
        one = self.type_of(name)
        return one.share * one.fit / sum(other.share * other.fit for other in self.types)


def hardened(accelerator: Accelerator, name: str, *, fit: float = HARDENED_FIT) -> Accelerator:
    """Return *accelerator* with flip-flops of the type *name* that upset at *fit* per MB.

    >>> round(hardened(OUTPUT_STATIONARY, "control").weight_of("control"), 4)
    0.0639
    """
    accelerator.type_of(name)
    types = tuple(replace(one, fit=fit) if one.name == name else one for one in accelerator.types)
    return replace(accelerator, types=types)


def with_buffer(
    accelerator: Accelerator, name: str, *, holds: Holds, share: float, fit: float = RAW_FIT
) -> Accelerator:
    """Return *accelerator* with an unprotected buffer as a further type; its *share* is in the unit of the others.

    A wrong word in a buffer of inputs or weights is wrong in every product that uses it; in one of outputs, it is wrong
    for all who read it. Without this, memories count as protected.

    >>> with_buffer(FLAT, "cache", holds="weight", share=1e6).types[-1].pattern
    'every use'
    """
    pattern = "one output" if holds == "output" else "every use"
    buffer = FlipFlops(name=name, holds=holds, share=share, pattern=pattern, fit=fit, memory=True)
    flip_flops = accelerator.flip_flops
    if flip_flops is not None:
        flip_flops += round(flip_flops * share / sum(one.share for one in accelerator.types))
    return replace(accelerator, types=(*accelerator.types, buffer), flip_flops=flip_flops)


def read_accelerator(source: str | Path) -> Accelerator:
    """Return the accelerator written in the YAML file *source*: the fields of :class:`Accelerator`, types as a list.

    A type may have a *count* in place of its *share*; where all have, they add up to *flip_flops*.
    Raises :class:`HardwareError` for a file that cannot be read, and for missing, unknown or impossible entries.
    """
    try:
        held = load_file(source)
    except ValueError as error:
        raise HardwareError(f"cannot read an accelerator from '{source}': {first_line(error)}") from error
    return accelerator_of(held, str(source))


def plain_accelerator(accelerator: Accelerator) -> dict[str, Any]:
    """Return *accelerator* as JSON can hold it; :func:`accelerator_of` is the way back.

    >>> accelerator_of(plain_accelerator(FLAT), "a store") == FLAT
    True
    """
    held = {field.name: getattr(accelerator, field.name) for field in fields(Accelerator)}
    height, width, given = accelerator.height, accelerator.width, accelerator.utilisation
    held["types"] = [
        {field.name: getattr(one, field.name) for field in fields(FlipFlops)}
        | {"pattern": plain_pattern(one.pattern, height=height, width=width)}
        for one in accelerator.types
    ]
    return held | {"utilisation": dict(given) if isinstance(given, tuple) else given}


def accelerator_of(held: Any, where: str) -> Accelerator:
    """Return the accelerator of the fields *held*, as a file or a store has them; *where* is named in errors."""
    known = {field.name for field in fields(Accelerator)}
    entries = _entries(held, known, {"name", "types"}, where)
    if not isinstance(entries["types"], list):
        raise HardwareError(f"{where}: types is a list, got {type(entries['types']).__name__}")
    parts = {field.name for field in fields(FlipFlops)} | {"count"}
    types = [_entries(one, parts, {"name", "holds", "pattern"}, f"{where}: types") for one in entries["types"]]
    if all(isinstance(one.get("count"), int) for one in types):
        entries.setdefault("flip_flops", sum(one["count"] for one in types))
    for one in types:
        if ("count" in one) == ("share" in one):
            raise HardwareError(f"{where}: type '{one['name']}' has either a count or a share; give one of them")
        one["share"] = one.pop("count", one.get("share"))
        one["pattern"] = read_pattern(one["pattern"])
    return Accelerator(**{**entries, "types": tuple(FlipFlops(**one) for one in types)})


def _entries(held: Any, known: set[str], needed: set[str], where: str) -> dict[str, Any]:
    if not isinstance(held, dict):
        raise HardwareError(f"{where}: expected a mapping of {', '.join(sorted(known))}, got {type(held).__name__}")
    for key in held:
        if key not in known:
            raise HardwareError(f"{where}: no such key '{key}'{did_you_mean(str(key), known)}")
    if missing := sorted(needed - held.keys()):
        raise HardwareError(f"{where}: missing {', '.join(missing)}; add it")
    return dict(held)


def find_accelerator(name: str) -> Accelerator:
    """Return the shipped accelerator called *name*, or the one in the YAML file of that name.

    >>> find_accelerator("nvdla-like").width
    16
    """
    if name in ACCELERATORS:
        return ACCELERATORS[name]
    if name.endswith((".yaml", ".yml")):
        return read_accelerator(name)
    near = did_you_mean(name, ACCELERATORS)
    raise HardwareError(f"no accelerator is called '{name}'{near}; known: {', '.join(ACCELERATORS)}, or a YAML file")


def _type(name: str, holds: Holds, share: float, pattern: str) -> FlipFlops:
    return FlipFlops(name=name, holds=holds, share=share, pattern=pattern)


OUTPUT_STATIONARY = Accelerator(
    name="output-stationary",
    types=(
        _type("input", "input", 30.56, "systolic input"),
        _type("weight", "weight", 30.56, "output-stationary weight"),
        _type("output", "output", 21.87, "output-stationary accumulator"),
        _type("control", "control", 17.0, "crash"),
    ),
    dataflow="output-stationary",
    height=32,
    width=32,
)
"""A 32 x 32 output-stationary systolic array, shares in per cent of all flip-flops (Tyagi et al. 2022)."""

# The next three are assumptions, not measurements: words of 32 bits counted from the structure, and control logic
# of 17 % of all flip-flops, as in the array above. Put your own counts in a YAML file.
WEIGHT_STATIONARY = Accelerator(
    name="weight-stationary",
    types=(
        _type("input", "input", 32_768, "systolic input"),
        _type("weight", "weight", 32_768, "weight-stationary weight"),
        _type("output", "output", 32_768, "weight-stationary sum"),
        _type("control", "control", 20_134, "crash"),
    ),
    dataflow="weight-stationary",
    height=32,
    width=32,
    flip_flops=118_438,
)
"""A 32 x 32 weight-stationary systolic array: one input, one weight and one sum of 32 bits per element."""

NVDLA_LIKE = Accelerator(
    name="nvdla-like",
    types=(
        _type("input fetch", "input", 2_048, "every use"),
        _type("weight fetch", "weight", 2_048, "every use"),
        _type("input", "input", 2_048, "16 channels"),
        _type("weight", "weight", 32_768, "16 pixels"),
        _type("output", "output", 33_280, "one output"),
        _type("local control", "output", 11_829, "random output"),
        _type("control", "control", 2_957, "crash"),
    ),
    dataflow="weight-stationary",
    height=64,
    width=16,
    flip_flops=86_978,
)
"""16 MAC cells of 64 products, after NVDLA in FIdelity (He et al., MICRO 2020); a fifth of the control is global."""

FLAT = Accelerator(
    name="flat",
    types=(
        _type("input", "input", 512, "one product"),
        _type("weight", "weight", 512, "one product"),
        _type("output", "output", 512, "one output"),
        _type("control", "control", 315, "crash"),
    ),
    flip_flops=1_851,
)
"""A SIMD unit or CPU of 16 lanes without reuse between them: an operand register serves one product."""

ACCELERATORS: dict[str, Accelerator] = {
    one.name: one for one in (OUTPUT_STATIONARY, WEIGHT_STATIONARY, NVDLA_LIKE, FLAT)
}
