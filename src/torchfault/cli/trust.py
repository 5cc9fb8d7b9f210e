"""Which stored configurations may be built anew: those that this user has run, and those that are vouched for."""

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torchfault.config import Settings
from torchfault.config.persistence import factories
from torchfault.errors import ConfigError
from torchfault.files import written

__all__ = ["check_trusted", "remember"]

_MOST = 10_000  # configurations that are remembered at least


def remember(kept: Mapping[str, Any]) -> None:
    """Note that this user has run the configuration that a store keeps; where that cannot be noted, nothing is."""
    line, file = _digest(kept), _file()
    with suppress(OSError, ValueError):
        file.parent.mkdir(parents=True, exist_ok=True)
        held = file.read_text(encoding="ascii").split() if file.exists() else []
        if line in held:
            return
        if len(held) >= 2 * _MOST:
            with written(file, force=True) as part:
                part.write_text("".join(f"{known}\n" for known in held[-_MOST:]), encoding="ascii")
        with file.open("a", encoding="ascii") as grown:  # one line: campaigns that start together lose none
            grown.write(f"{line}\n")


def check_trusted(kept: Mapping[str, Any], settings: Settings, *, name: str) -> None:
    """Raise :class:`ConfigError` where building *settings* imports code that this user has not run before."""
    wanted = factories(settings)
    if not wanted:
        return
    with suppress(OSError, ValueError):
        if _digest(kept) in _file().read_text(encoding="ascii").split():
            return
    raise ConfigError(
        f"the store says that campaign '{name}' imports and runs {', '.join(wanted)}, and it was not begun by you on "
        "this machine; give --trust if you know the store, or run it from a configuration of your own"
    )


def _digest(kept: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in kept.items() if key not in ("stop", "store", "device", "threads", "memory")}
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _file() -> Path:
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return base / "torchfault" / "trusted"
