"""Changed words that are in place: scopes that change the same memory may overlap, and end in any order.

What was there before is saved word by word. A scope that ends while later ones hold changes in the same memory first
takes these back, the last one first, then its own, and then puts the later ones in place again.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from threading import RLock

import torch
from torch import Tensor, nn

from torchfault.model.home import Home
from torchfault.words import Edits

__all__ = ["Change", "Target", "changes_of"]


@dataclass(frozen=True, eq=False)
class Target:
    """Words to change: the tensor called *name*; its *home*, in a module, if it is no plain parameter or buffer."""

    name: str
    words: Tensor
    edits: Edits
    home: Home | None = None
    module: nn.Module | None = None

    @property
    def installed(self) -> bool:
        """Whether changed words take the place of others, and are not written into the memory that the model reads."""
        return self.home is not None and self.home.install is not None

    @property
    def memory(self) -> Hashable:
        """What tells memory whose changes depend on each other: a storage, or the module that holds the homes."""
        return ("homes", id(self.module)) if self.installed else self.words.untyped_storage().data_ptr()


_LOCK = RLock()
_IN_PLACE: dict[Hashable, list["Change"]] = {}
"""The changes of each memory, in the order in which their scopes began."""


@dataclass(eq=False)
class Change:
    """The *targets* of one scope in one memory."""

    targets: Sequence[Target]
    _saved: list[tuple[Edits, Tensor, Tensor]] = field(default_factory=list)
    _back: list[Callable[[], None]] = field(default_factory=list)

    def enter(self) -> None:
        """Change the words."""
        with _LOCK:
            changes = _IN_PLACE.setdefault(self.targets[0].memory, [])
            # A home that was looked up while another scope has changed it holds the words of that scope.
            earlier = (target.home for change in reversed(changes) for target in change.targets)
            known = {name: home for home in earlier if home is not None for name in home.words}
            self.targets = [replace(target, home=known.get(target.name, target.home)) for target in self.targets]
            changes.append(self)
            _put(changes, len(changes) - 1)

    def leave(self) -> None:
        """Take the change back, whatever scopes have begun since; a second time does nothing."""
        with _LOCK:
            memory = self.targets[0].memory
            changes = _IN_PLACE.get(memory, [])
            if self not in changes:
                return
            place = changes.index(self)
            _take(changes, place)
            changes.remove(self)
            if changes:
                _put(changes, place)
            else:
                del _IN_PLACE[memory]

    def write(self) -> None:
        """Change words in memory, and save what was there."""
        for target in self.targets:
            with torch.inference_mode(target.words.is_inference()):
                # Through .data: autograd must not take the edit, or its end, for a change that backward needs to know.
                first = target.words.data.unsqueeze(0)
                old = target.edits.read(first)
                struck = target.edits.changed(old)
                self._saved.append((target.edits, first, old))
                target.edits.put(first, struck)

    def take(self) -> None:
        """Bring back what was there before the last :meth:`write` or :meth:`install`."""
        while self._back:
            self._back[-1]()
            self._back.pop()
        while self._saved:
            edits, first, old = self._saved[-1]
            with torch.inference_mode(first.is_inference()):
                edits.put(first, old)
            self._saved.pop()

    def install(self, words: dict[str, Tensor], home: Home) -> None:
        """Put *words* in the place of those of *home*."""
        assert home.install is not None
        self._back.append(home.install(words))


def changes_of(targets: Sequence[Target]) -> list[Change]:
    """Return the changes, memory by memory, that *targets* make up."""
    by_memory: dict[Hashable, list[Target]] = {}
    for target in targets:
        by_memory.setdefault(target.memory, []).append(target)
    return [Change(mine) for mine in by_memory.values()]


def _take(changes: Sequence[Change], first: int) -> None:
    """Take *changes* from the *first* on back, the last one first; words of homes all at once."""
    for change in reversed(changes[0 if changes[0].targets[0].installed else first :]):
        change.take()


def _put(changes: Sequence[Change], first: int) -> None:
    """Put *changes* from the *first* on in place; words of homes all at once, since they stand for values together."""
    if not changes[0].targets[0].installed:
        for change in changes[first:]:
            change.write()
        return
    _take(changes, 0)
    found: dict[int, tuple[Home, dict[str, Tensor]]] = {}
    for target in (target for change in changes for target in change.targets):
        assert target.home is not None
        home, words = found.setdefault(id(target.home), (target.home, {}))
        held = words.get(target.name, home.words[target.name])
        words[target.name] = target.edits.copied(held.unsqueeze(0)).squeeze(0)
    for home, words in found.values():
        changes[-1].install(words, home)
