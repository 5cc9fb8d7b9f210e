"""Help that shows no type behind flags, which take no value: Typer 0.29 writes ``<bool>`` there."""

from typing import Any

from typer.core import TyperCommand, TyperGroup

__all__ = ["Command", "Commands"]


class Command(TyperCommand):
    """A command whose flags have no type in its help."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the arguments and options, flags without a type."""
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
    return parameters
