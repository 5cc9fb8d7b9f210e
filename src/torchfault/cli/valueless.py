"""Help without Python's types: Typer 0.29 writes ``<bool>`` behind flags and ``<list[str]>`` behind arguments."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["Command", "Commands"]


class Command(TyperCommand):
    """A command whose flags and arguments have no type in its help."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and options, of which only options with a value have a type."""
        return _valueless(super().get_params(ctx))


class Commands(TyperGroup):
    """Commands, of which the flags before a command have no type in the help."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the options before a command, flags without a type."""
        return _valueless(super().get_params(ctx))


def _valueless(parameters: list[Any]) -> list[Any]:
    for one in parameters:
        if getattr(one, "is_flag", False):
            one.metavar = ""
        if one.param_type_name == "argument":  # its metavar is its name, which says what it is
            one.display_type_rich = lambda **_: None
    return parameters
