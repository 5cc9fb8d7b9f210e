"""What runs of a model have shown of it: its activations, who reads its parameters, and where the lanes are."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from torchfault.model.conduct import Conduct
from torchfault.model.foreign import activation_word, coded_word, foreign
from torchfault.model.lane_axis import LaneAxis, axis_by_shapes, axis_of_one, find_axis, per_sample
from torchfault.model.marks import inside
from torchfault.model.probes import PROBES
from torchfault.model.rounding import is_rounding, names_kept, rounding, sites_kept, without_blocks
from torchfault.model.states import Cell
from torchfault.model.traits import channel_axis, codes, computes_nothing, is_leaf, sampled, word_name
from torchfault.model.watch import Moment, memory_address
from torchfault.names import site_name
from torchfault.space import Site
from torchfault.storages import ActivationStorage
from torchfault.words import bits_of, word

__all__ = ["Record"]


@dataclass(frozen=True, eq=False)
class _Seen:
    """One tensor of a moment, let go of: its *shape* for several inputs, and its *word*, empty if it is no site."""

    moment: Moment
    shape: Sequence[int]
    word: str
    view: bool


@dataclass(eq=False)
class Record:
    """Gathers what pairs of runs show: a few inputs, then more together.

    Each pair is :meth:`few`, :meth:`many`, :meth:`end`. The runs of a model whose path depends on its inputs differ
    in what they show; what any of them has shown is there, in an order that fits them all.
    """

    model: nn.Module
    training: bool
    conduct: Conduct
    cells: tuple[Cell, ...] = ()
    seen: dict[str, _Seen] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    readers: dict[str, set[str]] = field(default_factory=dict)
    layouts: dict[str, LaneAxis] = field(default_factory=dict)
    samples: dict[str, Tensor] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    mixes: str = ""
    axes: list[int] = field(default_factory=list)
    _few: dict[str, Tensor] = field(default_factory=dict)
    _copies: WeakTensorKeyDictionary = field(default_factory=WeakTensorKeyDictionary)
    _new: dict[str, _Seen] = field(default_factory=dict)
    _met: dict[str, None] = field(default_factory=dict)

    def few(self, moment: Moment) -> None:
        """Keep what fewer of the inputs give: as little as can be, for it is all the activations of a pass."""
        for i, tensor in enumerate(moment.tensors):
            self._few[moment.name(i)] = self._copied(tensor)

    def _copied(self, tensor: Tensor) -> Tensor:
        """Return a copy of *tensor*: the one there is, made when it was shown before, unless it was written to."""
        now: Tensor = codes(tensor.detach())
        held: Tensor | None = self._copies.get(tensor)
        if held is None or now.layout is not torch.strided or not torch.equal(bits_of(held), bits_of(now)):
            held = self._copies[tensor] = now.clone()
        return held

    def many(self, moment: Moment) -> None:
        """Note what all inputs together give, and compare it with what fewer of them gave."""
        if moment.role == "output" or moment.marked:
            self.done.add(moment.base)
        self._met.update(dict.fromkeys(moment.stored))
        for name in moment.stored:
            self.readers.setdefault(name, set()).add(moment.path)
        for i, tensor in enumerate(moment.tensors):
            name = moment.name(i)
            kept = names_kept(name, self._storage(moment))
            self._met.update(dict.fromkeys(kept))
            valued = tensor.dtype.is_floating_point or coded_word(tensor)
            seen = _Seen(moment._replace(tensors=()), tensor.shape, word_name(tensor) if valued else "", moment.view[i])
            together, few = codes(tensor.detach()), self._few.pop(name, None)
            if not self.order:
                self.samples[name] = sampled(together)
            layout = None if few is None else self._layout(together, few)
            if layout is not None and kept[0] not in self.layouts:
                self.layouts |= dict.fromkeys(kept, layout)
                self.seen[name] = seen
            self._new.setdefault(name, seen)

    def end(self) -> None:
        """Put what is new in the two runs behind what it followed."""
        self.seen |= {name: seen for name, seen in self._new.items() if name not in self.seen}
        known, behind = set(self.order), ""
        new: dict[str, list[str]] = {}
        for name in self._met:
            if name in known:
                behind = name
            else:
                new.setdefault(behind, []).append(name)
        self.order = [one for name in ("", *self.order) for one in (name, *new.get(name, ()))][1:]
        self._new, self._few, self._met = {}, {}, {}

    def _storage(self, moment: Moment) -> ActivationStorage | None:
        """Return how the activations of *moment* are kept, if that is emulated."""
        found = None if moment.operation else rounding(self._modules[moment.path], moment.kind)
        return without_blocks(moment.path, found) if moment.marked else found

    @cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return dict(self.model.named_modules())

    @property
    def lanes(self) -> int:
        """The number of inputs that run together."""
        return 1 if self.conduct.alone else PROBES

    @cached_property
    def fewer(self) -> slice:
        """The inputs of the second run: one alone, or two where a batch norm in training mode refuses a single one."""
        if self.conduct.alone:
            return slice(0, 1)
        norms = any(m.training and isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules())
        return slice(1, 3) if norms else slice(1, 2)

    def _layout(self, many: Tensor, few: Tensor) -> LaneAxis | None:
        """Return where the lanes are, given a tensor as computed for all inputs and for the fewer of the second run."""
        if self.conduct.alone:
            return axis_of_one(few.shape)
        count = self.fewer.stop - self.fewer.start
        found = find_axis(many, few, lanes=PROBES, lane=1) if count == 1 else None
        if found is not None or not (self.training or self.mixes):
            return found
        # Where values differ by chance or by the batch, the shapes alone must do.
        return axis_by_shapes(many.shape, few.shape, lanes=PROBES, fewer=count)

    @cached_property
    def _candidates(self) -> dict[str, _Seen]:
        """The tensors, by name and in execution order, that are sites if they have lanes."""
        modules = self._modules
        taken_apart, views = self._taken_apart(modules), self._views()
        chosen = {}
        for name, seen in self.seen.items():
            moment, owner = seen.moment, modules[seen.moment.path]
            leaf = moment.path != "" and is_leaf(owner)
            hidden = leaf and (bool(moment.operation) != (moment.call in taken_apart)) and not self._storage(moment)
            computes = moment.base in self.done and moment.base not in views
            if seen.word and not hidden and computes and not computes_nothing(owner):
                chosen[name] = seen
        return chosen

    @property
    def left_out(self) -> dict[str, str]:
        """Why an activation is no site, by name."""
        reason = "it has no batch axis of its own, or mixes the inputs of a batch"
        return {name: reason for name in self._candidates if name not in self.layouts}

    def sites(self) -> Iterator[Site]:
        """Yield the site of each activation, in execution order."""
        for name, seen in self._candidates.items():
            if name in self.layouts:
                site = self._site(name, seen)
                yield from sites_kept(site, self._storage(seen.moment), seen.shape, self.layouts[name])

    def _site(self, name: str, seen: _Seen) -> Site:
        owner, layout = self._modules[seen.moment.path], self.layouts[name]
        shape, kind = per_sample(seen.shape, layout, lanes=self.lanes), type(owner).__name__
        own = seen.moment.role == "output" and not seen.moment.operation
        rounded = activation_word(owner) if own else ""
        fmt = word(rounded or seen.word)
        return Site(
            name,
            shape,
            word=fmt.name,
            width=fmt.width,
            kind=seen.moment.kind,
            module=seen.moment.path,
            module_type=kind,
            channel=channel_axis(seen.moment.operation or kind, shape, layout),
        )

    def owners(self, packing: Collection[str] = ()) -> dict[str, str]:
        """Return the modules that alone read a parameter, and whose calls have lanes in all that they read and give.

        Modules of *packing*, which alone read what they have packed, stand under their own names.
        """
        modules = self._modules
        plain = {name: next(iter(paths)) for name, paths in self._readers().items() if len(paths) == 1}
        closed = inside(self.model, self.cells)
        lost = {seen.moment.path for name, seen in self.seen.items() if name not in self.layouts or seen.view}
        called = {seen.moment.path for seen in self.seen.values()}
        alone = {name: path for name, path in plain.items() if path and site_name(name).owner == path}
        alone |= {path: path for path in packing if path in called}
        return {name: path for name, path in alone.items() if path not in lost | closed and _repeatable(modules[path])}

    def _readers(self) -> dict[str, set[str]]:
        """Return the paths of the modules that read each parameter or buffer, under any name that its memory has."""
        begin: dict[str, Any] = {}
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            address = memory_address(tensor)
            begin[name] = (address, tensor.storage_offset()) if address else name
        shared: dict[Any, set[str]] = {}
        for name, paths in self.readers.items():
            shared.setdefault(begin.get(name, name), set()).update(paths)
        return {name: shared[begin.get(name, name)] for name in self.readers}

    def _taken_apart(self, modules: Mapping[str, nn.Module]) -> set[str]:
        """Return the calls of modules without children that are, other than torch's own, several operations."""
        inside: dict[str, set[str]] = {}
        for seen in self.seen.values():
            owner = modules[seen.moment.path]
            own = type(owner).__module__.startswith("torch.nn.") or any(room.owns(owner) for room in foreign())
            if seen.moment.operation and not own:
                inside.setdefault(seen.moment.call, set()).add(seen.moment.base)
        return {called for called, bases in inside.items() if len(bases) > 1}

    def _views(self) -> set[str]:
        """Return the calls that compute nothing: all they give is an argument under another name."""
        gives: dict[str, bool] = {}
        for seen in self.seen.values():
            if seen.moment.role == "output":
                gives[seen.moment.base] = gives.get(seen.moment.base, True) and seen.view
        return {base for base, only_views in gives.items() if only_views}


def _repeatable(module: nn.Module) -> bool:
    """Whether a call of *module* is its ``forward``, but for rounding, and the same when it happens twice."""
    hooks = (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    return all(map(is_rounding, hooks)) and is_leaf(module) and not getattr(module, "inplace", False)
