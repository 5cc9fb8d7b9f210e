"""Objects of the user's own, by the names of their modules."""

import os
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torchfault.errors import ModelError, TorchfaultError, brief, did_you_mean

__all__ = ["import_object"]


def import_object(spec: str, error: type[TorchfaultError] = ModelError) -> Any:
    """Return what ``package.module:name`` stands for; modules in the working directory are found too.

    Importing a module runs its code. Raises *error* where the module or the name is missing, or the module fails while
    it is imported.

    >>> import_object("math:tau")
    6.283185307179586
    """
    module_name, _, path = spec.partition(":")
    if module_name.endswith(".py") or os.sep in module_name:
        module = Path(module_name).stem
        raise error(f"expected the name of a module, got the file '{module_name}'; write '{module}:{path}'")
    found: Any = _import_module(module_name, spec, error)
    for part in path.split("."):
        if not hasattr(found, part):
            known = [name for name in dir(found) if not name.startswith("_")]
            raise error(f"'{module_name}' has no '{part}'{did_you_mean(part, known)} (from '{spec}')")
        found = getattr(found, part)
    return found


def _import_module(name: str, spec: str, error: type[TorchfaultError]) -> ModuleType:
    # As `python -m` does: a user's own `net.py` lies in the working directory.
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name and (name == missing.name or name.startswith(f"{missing.name}.")):
            raise error(
                f"there is no module '{missing.name}' (from '{spec}'); install it, or run where it can be imported"
            ) from None
        raise error(f"'{name}' needs the module '{missing.name}', which is not installed") from None
    except (Exception, SystemExit) as failed:
        raise error(f"importing '{name}' failed: {brief(failed)}") from failed
