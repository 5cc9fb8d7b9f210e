"""What a campaign is, as plain JSON, and in what two of them differ: a resumed campaign must be the one that began."""

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np

from torchfault.source import source_digest

__all__ = ["describe", "differences", "show"]

Plain = Any
"""What JSON holds: None, bool, int, float, str, lists and dictionaries of them."""


def describe(value: object) -> Plain:
    """Return *value* as plain JSON that is equal for equal values, in every process.

    A dataclass becomes its class and the fields that it is compared by; a function its name, a hash of its source
    (without comments and layout) and what it closes over; an array or a tensor a hash of its contents; any other object
    its class and attributes.
    Classes from outside torchfault carry a hash of their source too.

    >>> from torchfault.sampling import BitErrorRate
    >>> describe(BitErrorRate(0.001))
    {'class': 'BitErrorRate', 'fields': {'rate': 0.001, 'block': 16}}
    """
    plain: Plain = json.loads(json.dumps(_plain(value, ())))
    return plain


def _plain(value: object, above: tuple[int, ...]) -> Plain:
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, np.generic):
        return _plain(value.item(), above)
    if id(value) in above:
        return {"again": len(above) - above.index(id(value))}
    return _compound(value, (*above, id(value)))


def _compound(value: object, above: tuple[int, ...]) -> Plain:
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        named = zip(value._fields, value, strict=True)
        return _class(type(value)) | {"fields": {name: _plain(item, above) for name, item in named}}
    if callable(value) and isinstance(value, Mapping | Sequence) and not is_dataclass(value):
        items = dict(value) if isinstance(value, Mapping) else list(value)
        return _class(type(value)) | {"fields": {**_attributes(value, above), "items": _plain(items, above)}}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, above) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(item, above) for item in value), key=repr)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_plain(item, above) for item in value]
    if isinstance(value, FunctionType | BuiltinFunctionType | MethodType | functools.partial | type):
        return _callable(value, above)
    if is_dataclass(value) and not isinstance(value, type):
        held = {
            part.name: _plain(getattr(value, part.name), above) for part in fields(value) if part.init and part.compare
        }
        return _class(type(value)) | {"fields": held}
    if hasattr(value, "__array__"):
        array = np.ascontiguousarray(np.asarray(value.detach().cpu() if hasattr(value, "detach") else value))
        digest = hashlib.sha256(array.tobytes()).hexdigest()
        return {"array": digest, "type": str(array.dtype), "shape": list(array.shape)}
    if isinstance(value, bytes | bytearray):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    return _class(type(value)) | {"fields": _attributes(value, above)}


def _attributes(value: object, above: tuple[int, ...]) -> Plain:
    return _plain(getattr(value, "__dict__", {}), above)


def _callable(value: Any, above: tuple[int, ...]) -> Plain:
    if isinstance(value, type):
        return _class(value)
    if isinstance(value, functools.partial):
        return {
            "function": "partial",
            "of": _plain(value.func, above),
            "arguments": _plain([list(value.args), value.keywords], above),
        }
    if isinstance(value, MethodType):
        return {"method": value.__name__, "of": _plain(value.__self__, above)}
    described: dict[str, Plain] = {
        "function": f"{value.__module__}.{value.__qualname__}",
        "source": source_digest(value),
    }
    if isinstance(value, FunctionType):
        cells = zip(value.__code__.co_freevars, value.__closure__ or (), strict=True)
        # An empty cell belongs to a function that is still being defined, such as one that calls itself.
        inside = {name: _plain(cell.cell_contents, above) for name, cell in cells if _filled(cell)}
        defaults = _plain([list(value.__defaults__ or ()), value.__kwdefaults__ or {}], above)
        described |= {"closure": inside} if inside else {}
        described |= {"defaults": defaults} if defaults != [[], {}] else {}
    return described


def _filled(cell: Any) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True


def _class(kind: type) -> dict[str, Plain]:
    if kind.__module__.partition(".")[0] == "torchfault":
        return {"class": kind.__qualname__}
    return {"class": f"{kind.__module__}.{kind.__qualname__}", "source": source_digest(kind)}


def show(plain: Plain) -> str:
    """Return what :func:`describe` made as short text for a message.

    >>> show({"class": "Uniform", "fields": {"faults": 2}}), show({"function": "my.metric", "source": None})
    ('Uniform(faults=2)', 'my.metric')
    """
    if isinstance(plain, list):
        return f"[{', '.join(map(show, plain))}]"
    if not isinstance(plain, dict):
        return repr(plain)
    if "class" in plain:
        name = str(plain["class"]).rpartition(".")[2]
        return f"{name}({', '.join(f'{key}={show(item)}' for key, item in plain.get('fields', {}).items())})"
    for key in ("function", "method"):
        if key in plain:
            return str(plain[key])
    for key in ("array", "sha256"):
        if key in plain:
            return f"{key} {str(plain[key])[:12]}"
    return f"{{{', '.join(f'{key}: {show(item)}' for key, item in plain.items())}}}"


def differences(before: Mapping[str, Plain], now: Mapping[str, Plain]) -> list[str]:
    """Return what changed between two descriptions, one phrase for each entry that differs.

    >>> differences({"seed": 1, "fault": None}, {"seed": 2, "fault": None})
    ['seed (was 1, is now 2)']
    """
    changed = []
    for key in dict.fromkeys((*before, *now)):
        one, two = before.get(key), now.get(key)
        if one == two:
            continue
        was, is_now = show(one), show(two)
        if was == is_now:  # a hash inside differs
            changed.append(f"{key} ({was}: its source or what it holds)")
        else:
            changed.append(f"{key} (was {was}, is now {is_now})")
    return changed
