"""The stored words of a model by the names of their sites, changed in a scope and brought back."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchfault.errors import FaultError, SpaceError, did_you_mean
from torchfault.model.constants import constant_home, is_constant
from torchfault.model.home import Home
from torchfault.model.memory import homes
from torchfault.names import site_name
from torchfault.trials import Trials, edits_by_site
from torchfault.words import Edits, WordFormat, word_of

__all__ = ["Memory", "Target", "change", "edited"]


@dataclass(frozen=True, eq=False)
class Target:
    """Words to change: the tensor called *name*, in its *home* if it is no plain parameter or buffer."""

    name: str
    words: Tensor
    edits: Edits
    home: Home | None


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
        if fmt != edits.fmt:
            raise FaultError(
                f"'{name}' has {edits.fmt.name} words in the fault space, got {fmt.name}; find the sites again"
            )
        words = self.words(name)
        return Target(name, words, edits.to(words.device), self.home(name))

    def targets(self, trials: Trials) -> list[Target]:
        """Return the words that the rows of *trials* change, all together."""
        return [self.target(name, edits) for name, edits in edits_by_site(trials).items()]


@contextmanager
def edited(targets: Sequence[Target]) -> Iterator[None]:
    """Change stored words in this scope; the touched ones come back, in reverse order.

    Raises :class:`StorageError` where an index would point to nowhere.
    """
    undo: list[Callable[[], None]] = []
    together: dict[int, list[Target]] = {}
    try:
        for target in targets:
            if target.home is None or target.home.install is None:
                change(target.words, target.edits, undo)
            else:
                together.setdefault(id(target.home), []).append(target)
        for mine in together.values():
            changed: dict[str, Tensor] = {}
            for target in mine:
                words = changed.get(target.name, target.words)
                changed[target.name] = target.edits.copied(words.unsqueeze(0)).squeeze(0)
            assert mine[0].home is not None
            assert mine[0].home.install is not None
            undo.append(mine[0].home.install(changed))
        yield
    finally:
        _undo(undo)


def change(tensor: Tensor, edits: Edits, undo: list[Callable[[], None]]) -> None:
    """Change the words of *tensor* that *edits* name, in place, and add to *undo* what writes the old ones back."""
    inference = tensor.is_inference()

    def write(values: Tensor) -> None:
        with torch.inference_mode(inference):
            edits.put(first, values)

    with torch.inference_mode(inference):
        # Through .data: autograd must not take the edit, or its end, for a change of a weight that backward needs.
        first = tensor.data.unsqueeze(0)
        saved = edits.read(first)
        struck = edits.changed(saved)
    undo.append(lambda: write(saved))
    write(struck)


def _undo(undo: list[Callable[[], None]]) -> None:
    """Call all of *undo*, the last first; an interrupt waits until everything is as it was."""
    interrupt: KeyboardInterrupt | None = None
    while undo:
        try:
            undo[-1]()  # writing saved words twice does no harm
            undo.pop()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
