"""Settings as a store keeps them, so that a campaign can be built anew: without passwords, and where it is kept."""

import copy
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torchfault.config.merge import Override, put
from torchfault.config.reading import validated
from torchfault.config.schema import Settings
from torchfault.errors import ConfigError
from torchfault.expressions import And, Atom, Expression, Not, Or, parse_criterion, parse_fault, parse_metric
from torchfault.text import HIDDEN, masked

__all__ = ["factories", "keep", "restore"]

_SECRET = re.compile(r"(^|_)(password|passwd|passphrase|secret|token|api_?key|credentials?)$", re.IGNORECASE)


def keep(settings: Settings) -> dict[str, Any]:
    """Return *settings* in plain JSON for a store: passwords masked, and without where it is and who runs the lanes."""
    plain = settings.model_dump(mode="json", exclude={"store", "workers", "cluster", "gpus_per_worker"})
    held: dict[str, Any] = _masked(plain, secret=False)
    return held


def _masked(value: Any, *, secret: bool) -> Any:
    if isinstance(value, dict):
        return {key: _masked(item, secret=secret or bool(_SECRET.search(str(key)))) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item, secret=secret) for item in value]
    if secret and value is not None:
        return HIDDEN
    return masked(value) if isinstance(value, str) else value


def restore(stored: Mapping[str, Any], overrides: Sequence[Override] = ()) -> Settings:
    """Return the settings that :func:`keep` gave, with *overrides* in place.

    Raises :class:`ConfigError` for what another version wrote, and for a password that is missing.
    """
    raw = copy.deepcopy(dict(stored))
    for override in overrides:
        put(raw, override)
    if lost := _hidden(raw, ()):
        raise ConfigError(f"a store keeps no passwords, and '{lost}' is one; give --set {lost}=...")
    return validated(raw, overrides, source="the stored configuration")


def _hidden(value: Any, at: tuple[str, ...]) -> str | None:
    """Return the first key whose value was masked."""
    if isinstance(value, str):
        return ".".join(at) if HIDDEN in value else None
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return next((found for key, item in items if (found := _hidden(item, (*at, str(key))))), None)


def factories(settings: Settings) -> list[str]:
    """Return what a campaign imports of the user's own, each ``package.module:name``: model, data, criterion, ..."""
    plain = settings.model_dump(mode="json")
    kinds = (plain["sampler"], *plain["resolver"])
    found = [plain["model"]["factory"], plain["data"]["factory"], *(one.get("path") for one in kinds)]
    found += [] if settings.measure == "uniform" else [settings.measure]
    for text, parse in ((settings.fault, parse_fault), (settings.metric, parse_metric)):
        found += [] if text is None else _imports(parse(text))
    for text in (settings.criterion, *settings.verdicts.values()):
        found += [] if text is None else _imports(parse_criterion(text))
    return [one for one in dict.fromkeys(found) if one and not one.startswith(_OWN)]


_OWN = ("torchfault.", "torchvision:", "timm:", "hf:")


def _imports(expression: Expression) -> list[str]:
    match expression:
        case Atom(name, text):
            return [text] if name == "import" else []
        case Not(part):
            return _imports(part)
        case And(parts) | Or(parts):
            return [one for part in parts for one in _imports(part)]
