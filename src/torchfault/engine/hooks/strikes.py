"""Faults in activations: where each one lands in a running model, and the edit itself."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from torchfault.errors import FaultError, SpaceError, did_you_mean
from torchfault.model.arguments import argument_names
from torchfault.model.foreign import activation_word, foreign, of_tensor
from torchfault.model.lane_axis import LaneAxis, axis_within, by_sample
from torchfault.model.rounding import rounding, sites_kept
from torchfault.model.states import Cell
from torchfault.model.watch import Moment, visiting
from torchfault.names import site_name
from torchfault.space import Fault, FaultSpace, Site
from torchfault.storages import ActivationStorage, InBlocks
from torchfault.trials import edits_by_site, pack
from torchfault.words import Edits, word, word_of

__all__ = ["Address", "Strike", "address", "edits_of", "on_sample", "strike_of", "striking", "together"]


@dataclass(frozen=True)
class Address:
    """Where an activation is: *base* as the running model will call it, and the *place* among inputs or outputs.

    *path* is the module to watch; *operation* the functional operation in it, empty for the module's own call. An input
    of the model has the role ``data``, and the name of the argument as its base.
    """

    base: str
    role: str
    place: int
    path: str
    operation: str = ""


def address(model: nn.Module, name: str) -> Address:
    """Return where the activation called *name* is in *model*.

    Raises :class:`SpaceError`, with a suggestion, where no module or operation can have that name.

    >>> address(nn.Sequential(nn.ReLU()), "0@1:output")
    Address(base='0@1', role='output', place=0, path='0', operation='')
    """
    parts = site_name(name)
    if parts.step is not None:
        return Address(parts.base, name.partition(":")[2], 0, parts.base)
    modules = dict(model.named_modules(remove_duplicate=False))
    first = {id(module): path for path, module in reversed(modules.items())}
    if parts.role not in ("input", "output", "data") or not parts.base:
        raise SpaceError(f"an activation is called '<module>:input' or '<module>:output', got '{name}'")
    if parts.role == "data":
        return Address(parts.base, "data", 0, "")
    if parts.path in modules:
        path = first[id(modules[parts.path])]
        return Address(_called(path, parts.base), parts.role, parts.place, path)
    if parts.owner not in modules or not _exists(parts.last):
        near = did_you_mean(parts.path, [path for path in modules if path])
        raise SpaceError(f"no module or operation is called '{parts.path}' in '{name}'{near}")
    path = first[id(modules[parts.owner])]
    call, operation = _called(path, parts.caller), parts.base.removeprefix(f"{parts.caller}.")
    return Address(f"{call}.{operation}" if call else operation, parts.role, parts.place, path, parts.last)


def _called(path: str, call: str) -> str:
    """Return the first name *path* of a module with the number that *call* has."""
    return path + call[len(call.partition("@")[0]) :]


def _exists(operation: str) -> bool:
    return any(hasattr(home, operation) for home in (torch.ops.aten, torch, F, Tensor)) or any(
        room.has_operation(operation) for room in foreign()
    )


class _StraightThrough(torch.autograd.Function):
    """An edit of words under autograd: the gradient passes as if nothing had happened, also at NaN and infinity."""

    @staticmethod
    def forward(tensor: Tensor, edit: Callable[[Tensor], Tensor]) -> Tensor:
        return edit(tensor)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        del ctx, inputs, output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        del ctx
        return gradient, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        del ctx
        return tangent.view_as(tangent)


@dataclass(eq=False)
class Strike:
    """The faults of one activation: *edits* ready to apply, or *faults* to be made ready once its shape is known.

    Without a *site* the shape may differ from call to call: a call whose tensor lacks the element is not struck.

    *layout* tells where the batch axis is; with *site* alone it is inferred from the shape. *word* is the format of
    values that are rounded to codes, empty where it is the tensor's own; *storage* tells how emulated ones are kept.
    The words of a block, which stand for its values together, are changed by one strike.
    """

    name: str
    where: Address
    edits: Sequence[Edits] = ()
    site: Site | None = None
    layout: LaneAxis | None = None
    faults: Sequence[Fault] = ()
    rng: np.random.Generator | None = None
    word: str = ""
    storage: ActivationStorage | None = None
    met: int = 0
    made_for: torch.Size | None = None

    def __call__(self, tensor: Tensor, *, owned: bool) -> Tensor:
        """Return *tensor* with its faults; changed in place if nobody else holds it and no gradient needs it."""
        room = of_tensor(tensor)
        if room is not None:
            held = room.codes(tensor) if owned else room.codes(tensor).clone()
            self(held, owned=True)
            return tensor if owned else room.coded(held, tensor)
        self._make_ready(tensor)
        self.met += 1
        layout = self.layout or self._layout(tensor)
        if torch.is_grad_enabled() and tensor.requires_grad:
            passed: Tensor = _StraightThrough.apply(  # type: ignore[no-untyped-call]
                tensor, lambda value: self._copy(value, layout)
            )
            return passed
        if not owned:
            return self._copy(tensor, layout)
        self._write(by_sample(tensor, layout), tensor.shape)
        return tensor

    def reaches(self, tensor: Tensor) -> bool:
        """Whether *tensor* has every element, or scale of a block, that is to be struck."""
        if self.site is not None or tensor.ndim == 0:
            return True
        shape, blocks = tensor.shape[1:], self._blocks
        if blocks is None:
            return all(_inside(fault.element, shape) for fault in self.faults)
        row, parts = blocks.row(tensor.shape), [site_name(fault.site).block for fault in self.faults]
        sizes = [torch.Size(blocks.shape(part, shape, row)) for part in parts]
        return all(_inside(fault.element, size) for fault, size in zip(self.faults, sizes, strict=True))

    def _copy(self, tensor: Tensor, layout: LaneAxis | None) -> Tensor:
        if len(self.edits) == 1 and not self._blocks and (layout is None or layout.plain):
            fresh = self._ready(by_sample(tensor, layout))[0].copied(by_sample(tensor, layout))
            return fresh.squeeze(0) if layout is None else fresh.movedim(0, layout.axis)
        copy = tensor.clone()
        self._write(by_sample(copy, layout), tensor.shape)
        return copy

    def _write(self, first: Tensor, shape: torch.Size) -> None:
        """Change *first*, the samples of a tensor of *shape*, in place."""
        edits = self._ready(first)
        if self._blocks is not None:
            self._blocks.struck(first, self._blocks.row(shape), edits)
            return
        for one in edits:
            one.write(first)

    @property
    def _blocks(self) -> InBlocks | None:
        return self.storage if isinstance(self.storage, InBlocks) else None

    def _ready(self, first: Tensor) -> Sequence[Edits]:
        """Return the edits on the device of *first*, once it is known to have their elements."""
        self.edits = [one.to(first.device) for one in self.edits]
        for one in self.edits:
            if one.lane is not None or not one.part:  # a block's exponents are fewer than its values
                one.check(first)
        return self.edits

    def _layout(self, tensor: Tensor) -> LaneAxis | None:
        if self.site is not None and not site_name(self.site.name).block:
            return axis_within(tensor.shape, self.site.shape)
        return LaneAxis(0) if tensor.ndim else None

    def _make_ready(self, tensor: Tensor) -> None:
        own = word(self.word) if self.word else word_of(tensor)
        if self.faults and self.site is None and self.made_for not in (None, tensor.shape[1:]):
            self.edits = ()
        if not self.edits:
            self.made_for = tensor.shape[1:]
            plain = Site(str(site_name(self.name).whole), tuple(tensor.shape[1:]), own.name, own.width, self.where.role)
            sites = {site.name: site for site in sites_kept(plain, self.storage, tensor.shape, None)}
            names = dict.fromkeys(fault.site for fault in self.faults)
            by_name = [(sites[name], [f for f in self.faults if f.site == name]) for name in names if name in sites]
            self.edits = [one for site, mine in by_name for one in edits_of(site, mine, self.rng)]
        for one in self.edits:
            fmt = word(self.storage.words[one.part]) if self.storage else own
            if one.fmt != fmt:
                raise FaultError(
                    f"'{one.name}' has {one.fmt.name} words in the fault space, got {fmt.name}; "
                    "find the sites under the same precision"
                )


def _is_valued(tensor: Tensor) -> bool:
    """Whether *tensor* holds values, and not numbers or truth values alone."""
    return tensor.dtype.is_floating_point or of_tensor(tensor) is not None


def _inside(element: int | tuple[int, ...], shape: torch.Size) -> bool:
    """Whether *element*, flat or one index per axis, is one of a tensor of *shape*."""
    if isinstance(element, int | np.integer):
        return 0 <= element < shape.numel()
    return len(element) == len(shape) and all(0 <= i < n for i, n in zip(element, shape, strict=True))


def strike_of(
    model: nn.Module,
    name: str,
    *,
    edits: Sequence[Edits] = (),
    site: Site | None = None,
    layout: LaneAxis | None = None,
    faults: Sequence[Fault] = (),
    rng: np.random.Generator | None = None,
) -> Strike:
    """Return the strike of the activation called *name*, in the words in which *model* gives it."""
    where, parts = address(model, name), site_name(name)
    found = Strike(name, where, edits, site, layout, faults, rng)
    if where.role == "data" or where.operation:
        return found
    owner = model.get_submodule(where.path)
    storage = rounding(owner, parts.role)
    if parts.block and not (storage and parts.block in storage.words):
        raise SpaceError(f"'{parts.whole}' is not kept in blocks, so there is no '{name}'")
    return replace(found, word=activation_word(owner) if parts.role == "output" else "", storage=storage)


def together(strikes: Iterable[Strike]) -> list[Strike]:
    """Return *strikes*, with those in words of the same blocks made one."""
    found: dict[str, Strike] = {}
    for strike in strikes:
        name = str(site_name(strike.name).whole)
        if name in found:
            mine = found[name]
            edits, faults = [*mine.edits, *strike.edits], [*mine.faults, *strike.faults]
            found[name] = replace(mine, edits=edits, faults=faults)
        else:
            found[name] = strike
    return list(found.values())


def edits_of(site: Site, faults: Sequence[Fault], rng: np.random.Generator | None) -> list[Edits]:
    """Return the edits of several faults in one site, one for each run of faults on the same sample."""
    space = FaultSpace((site,))
    found = []
    for sample, run in groupby(faults, key=lambda fault: fault.sample):
        if sample is not None and (sample < 0 or not site.is_activation):
            raise FaultError(
                f"a sample counts from 0 in the batch of an activation, got {sample} for '{site.name}'; leave it out"
            )
        (edits,) = edits_by_site(pack(space, list(run), rng=rng)).values()
        found.append(on_sample(edits, sample))
    return found


def on_sample(edits: Edits, sample: int | None) -> Edits:
    """Return *edits* in one element of the batch alone, or in every one for ``None``."""
    return replace(edits, lane=None if sample is None else torch.full_like(edits.element, sample))


@dataclass(eq=False)
class _Striker:
    """The visitor that applies strikes, and remembers what it has seen for the sake of suggestions.

    Calls are numbered within one pass of the model. A number that no pass has reached counts on over the passes, so
    that ``m@2`` is the third call also where a loop outside the model, as of decoding steps, makes one at a time.
    """

    strikes: Mapping[tuple[str, str], Sequence[Strike]]
    seen: set[str] = field(default_factory=set)
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    short: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, moment: Moment) -> Sequence[Tensor] | None:
        tensors, struck = list(moment.tensors), False
        for strike in self._here(moment):
            place = strike.where.place
            if place >= len(tensors) or not (strike.edits or _is_valued(tensors[place])):
                continue
            if strike.reaches(tensors[place]):
                tensors[place], struck = strike(tensors[place], owned=moment.owned[place]), True
            else:
                self.short[strike.name] = tensors[place][:0]
        if not struck:
            self.seen |= {moment.name(i) for i in range(len(tensors))}
        return tensors if struck else None

    def _here(self, moment: Moment) -> Sequence[Strike]:
        """Return the strikes of *moment*, by its number in this pass or over all passes."""
        mine = self.strikes.get((moment.base, moment.role), ())
        call = site_name(moment.base).path, moment.role
        number = self.calls[call]
        self.calls[call] += 1
        base = f"{call[0]}@{number}"
        if not number or base == moment.base:
            return mine
        return [*mine, *(strike for strike in self.strikes.get((base, moment.role), ()) if not strike.met)]

    def missed(self, strikes: Sequence[Strike]) -> None:
        """Raise the error of those of *strikes* that never struck, if there are any."""
        names = [strike.name for strike in strikes if not strike.met]
        if names and names[0] in self.short:
            next(strike for strike in strikes if strike.name == names[0])(self.short[names[0]], owned=False)
        if names:
            listed = ", ".join(f"'{name}'" for name in names[:3]) + (" ..." if len(names) > 3 else "")
            remedy = did_you_mean(names[0], self.seen) or "; run the model in the scope, and choose sites that it uses"
            raise FaultError(f"every fault must strike, but the model never computed {listed}{remedy}")


@contextmanager
def striking(
    model: nn.Module, strikes: Sequence[Strike], cells: Sequence[Cell] = (), *, all_of_them: bool = True
) -> Iterator[None]:
    """Apply *strikes* whenever *model* computes their activations, in this scope; *cells* are its modules with states.

    Raises :class:`FaultError` at its end for one that never struck, unless another exception is on its way, or not *all
    of them* need to: a site that an input does not reach is masked on it.
    """
    if not strikes:
        yield
        return
    by_moment: dict[tuple[str, str], list[Strike]] = {}
    for strike in strikes:
        by_moment.setdefault((strike.where.base, strike.where.role), []).append(strike)
    given = {strike.where.base: strike for strike in strikes if strike.where.role == "data"}
    plain = [strike for strike in strikes if site_name(strike.name).step is None and strike.where.role != "data"]
    cells = cells if len(plain) + len(given) < len(strikes) or any(s.where.operation for s in plain) else ()
    modules = {strike.where.path for strike in plain if not strike.where.operation}
    operations = {strike.where.operation for strike in strikes} - {""}
    read = {strike.where.path for strike in plain if strike.where.role == "input" and not strike.where.operation}
    striker = _Striker(by_moment)
    watch = visiting(model, striker, modules=modules, operations=operations, read=read, cells=cells)
    with watch, _striking_data(model, given):
        yield
    if all_of_them:
        striker.missed(strikes)


@contextmanager
def _striking_data(model: nn.Module, strikes: Mapping[str, Strike]) -> Iterator[None]:
    """Apply *strikes*, by the name of the argument, to what *model* is called with in this scope."""

    def strike(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        flat, spec = pytree.tree_flatten((args, kwargs))
        for i, name in enumerate(argument_names(model, args, kwargs)):
            if name in strikes:
                flat[i] = strikes[name](flat[i], owned=False)
        return pytree.tree_unflatten(flat, spec)

    handle = model.register_forward_pre_hook(strike, with_kwargs=True, prepend=True) if strikes else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()
