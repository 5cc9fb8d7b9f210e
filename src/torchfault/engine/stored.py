"""The stored words of a model by the names of their sites, changed in a scope and brought back."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from torchfault.engine.changes import Target, changes_of
from torchfault.errors import FaultError, SpaceError, did_you_mean
from torchfault.model.constants import constant_home, is_constant
from torchfault.model.home import Home
from torchfault.model.memory import homes
from torchfault.model.undo import Undo
from torchfault.names import site_name
from torchfault.trials import Trials, edits_by_site
from torchfault.words import Edits, WordFormat, lying_in, word_of

__all__ = ["Memory", "edited"]


class Memory:
    """Finds the words of *model* by the names of their sites.

    >>> Memory(nn.Linear(2, 1)).words("bias").shape
    torch.Size([1])
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.homes = {name: home for home in homes(model) for name in home.words}

    def __contains__(self, name: str) -> bool:
        return not site_name(name).role or name in self.homes or is_constant(name)

    def home(self, name: str) -> Home | None:
        """Return the home of the words called *name*, if they are no plain parameter or buffer."""
        if name not in self.homes and is_constant(name):
            self.homes[name] = constant_home(self.model, name)
        return self.homes.get(name)

    def words(self, name: str) -> Tensor:
        """Return the tensor of words called *name*, by any of its names where it is tied."""
        home = self.home(name)
        if home is not None:
            return home.words[name]
        parts = site_name(name)
        owner = dict(self.model.named_modules(remove_duplicate=False)).get(parts.owner)
        found: Tensor | None = (
            None if owner is None else owner._parameters.get(parts.last, owner._buffers.get(parts.last))
        )
        if found is None or any(home.parameter == name for home in self.homes.values()):
            named = (*self.model.named_parameters(remove_duplicate=False), *self.model.named_buffers())
            near = did_you_mean(name, [*self.homes, *(known for known, _ in named)])
            near = near or "; activations are called '<module>:input' and '<module>:output'"
            raise SpaceError(f"no parameter or buffer is called '{name}'{near}")
        return found

    def format(self, name: str) -> WordFormat:
        """Return the format of the words called *name*."""
        home = self.home(name)
        return home.parts[name].fmt if home is not None else word_of(self.words(name))

    def target(self, name: str, edits: Edits) -> Target:
        """Return the words that *edits* change; raises :class:`FaultError` where these are in another format."""
        fmt = self.format(name)
        if fmt.name != edits.fmt.name:
            raise FaultError(
                f"'{name}' has {edits.fmt.name} words in the fault space, got {fmt.name}; find the sites again"
            )
        # The memory itself: a parameter stays the same object when the model is converted.
        words, home = self.words(name).data, self.home(name)
        module = None if home is None else self.model.get_submodule(home.module)
        return Target(name, words, replace(edits, fmt=lying_in(fmt, words.dtype)).to(words.device), home, module)

    def targets(self, trials: Trials) -> list[Target]:
        """Return the words that the rows of *trials* change, all together."""
        return [self.target(name, edits) for name, edits in edits_by_site(trials).items()]


@contextmanager
def edited(targets: Sequence[Target], *, guarded: bool = False) -> Iterator[None]:
    """Change stored words in this scope; it may end before or behind others that change the same words.

    Where it is *guarded*, Ctrl-C never comes in between. Raises :class:`StorageError` where an index would point to
    nowhere.
    """
    if not targets:
        yield
        return
    with Undo(guarded=guarded) as undo:
        undo.add(torch.clear_autocast_cache)  # which may hold copies of the words
        with undo.guard:
            for change in changes_of(targets):
                undo.add(change.leave)
                change.enter()
            torch.clear_autocast_cache()
        yield
