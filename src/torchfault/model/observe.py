"""Watch a model run on several inputs together and on one of them alone, and read off its activations."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from torchfault.data import Data, Tree, call, leaves, map_tensors, rows
from torchfault.errors import ModelError, first_line
from torchfault.model.disturb import reset_states, undisturbed
from torchfault.model.lane_axis import LaneAxis, axis_by_shapes, find_axis, per_sample
from torchfault.model.marks import inside
from torchfault.model.rounding import exactly, is_rounding, names_kept, rounding, sites_kept, without_blocks
from torchfault.model.states import Cell, find_cells
from torchfault.model.torch_ao.packed import shares_ranges
from torchfault.model.torch_ao.quantised import activation_word, is_leaf, quantised_word
from torchfault.model.watch import Moment, visiting
from torchfault.names import site_name
from torchfault.space import Site
from torchfault.storages import ActivationStorage
from torchfault.words import WORDS, word

__all__ = [
    "PROBES",
    "Record",
    "channel_axis",
    "codes",
    "computes_nothing",
    "probe_inputs",
    "varies",
    "watch",
    "word_name",
]

PROBES = 3
_CHANNEL_FIRST = ("conv", "batchnorm", "instancenorm", "groupnorm", "pool", "pixel", "upsample", "interpolate")
_CHANNEL_LAST = ("linear", "layernorm", "rmsnorm", "embedding", "lstm", "gru", "rnn", "matmul", "attention")
_NOTHING = ("Dropout", "AlphaDropout", "FeatureAlphaDropout", "Identity", "Flatten", "Unflatten")


def word_name(tensor: Tensor) -> str:
    """Return the name of the tensor's word format, empty where it has none."""
    name = str(tensor.dtype).removeprefix("torch.")
    return quantised_word(tensor) or (name if name in WORDS and tensor.layout == torch.strided else "")


def codes(tensor: Tensor) -> Tensor:
    """Return the integer codes of a quantised tensor, and any other tensor as it is."""
    return tensor.int_repr() if tensor.is_quantized else tensor


@dataclass(frozen=True, eq=False)
class _Seen:
    """One tensor of a moment as computed for several inputs; *site* tells whether faults can land in it."""

    moment: Moment
    many: Tensor
    view: bool
    site: bool


@dataclass(eq=False)
class Record:
    """What two runs showed: several inputs together, then one of them alone."""

    model: nn.Module
    training: bool
    cells: tuple[Cell, ...] = ()
    seen: dict[str, _Seen] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    readers: dict[str, set[str]] = field(default_factory=dict)
    layouts: dict[str, LaneAxis] = field(default_factory=dict)
    mixes: bool = False
    axes: list[int] = field(default_factory=list)
    done: set[str] = field(default_factory=set)

    def first(self, moment: Moment) -> None:
        """Keep what several inputs together give."""
        if moment.role == "output" or moment.marked:
            self.done.add(moment.base)
        self.order += moment.stored
        for name in moment.stored:
            self.readers.setdefault(name, set()).add(moment.path)
        for i, tensor in enumerate(moment.tensors):
            name = moment.name(i)
            self.order += names_kept(name, self._storage(moment))
            site = (tensor.dtype.is_floating_point or tensor.is_quantized) and bool(word_name(tensor))
            self.seen[name] = _Seen(moment, codes(tensor.detach()).clone(), moment.view[i], site)

    def second(self, moment: Moment) -> None:
        """Compare it with what one of the inputs gives alone."""
        for i, tensor in enumerate(moment.tensors):
            name = moment.name(i)
            if name not in self.seen:
                continue
            layout = self.layout(self.seen[name].many, codes(tensor.detach()))
            if layout is not None:
                self.layouts |= dict.fromkeys(names_kept(name, self._storage(moment)), layout)

    def _storage(self, moment: Moment) -> ActivationStorage | None:
        """Return how the activations of *moment* are kept, if that is emulated."""
        found = None if moment.operation else rounding(self._modules[moment.path], moment.kind)
        return without_blocks(moment.path, found) if moment.marked else found

    @cached_property
    def _modules(self) -> dict[str, nn.Module]:
        return dict(self.model.named_modules())

    @cached_property
    def fewer(self) -> slice:
        """The inputs of the second run: one alone, or two where a batch norm in training mode refuses a single one."""
        norms = any(m.training and isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.model.modules())
        return slice(1, 3) if norms else slice(1, 2)

    def layout(self, many: Tensor, few: Tensor) -> LaneAxis | None:
        """Return where the lanes are, given a tensor as computed for all inputs and for the fewer of the second run."""
        count = self.fewer.stop - self.fewer.start
        found = find_axis(many, few, lanes=PROBES, lane=1) if count == 1 else None
        if found is not None or not self.training:
            return found
        # In training mode values differ by chance or by the batch, so that the shapes alone must do.
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
            if seen.site and not hidden and computes and not computes_nothing(owner):
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
                site = _activation_site(name, seen, self._modules[seen.moment.path], self.layouts[name])
                yield from sites_kept(site, self._storage(seen.moment), seen.many.shape, self.layouts[name])

    def owners(self, packing: Collection[str] = ()) -> dict[str, str]:
        """Return the modules that alone read a parameter, and whose calls have lanes in all that they read and give.

        Modules of *packing*, which alone read what they have packed, stand under their own names.
        """
        modules = self._modules
        plain = {name: next(iter(paths)) for name, paths in self.readers.items() if len(paths) == 1}
        closed = inside(self.model, self.cells)
        lost = {seen.moment.path for name, seen in self.seen.items() if name not in self.layouts or seen.view}
        called = {seen.moment.path for seen in self.seen.values()}
        alone = {name: path for name, path in plain.items() if path and site_name(name).owner == path}
        alone |= {path: path for path in packing if path in called}
        return {name: path for name, path in alone.items() if path not in lost | closed and _repeatable(modules[path])}

    def _taken_apart(self, modules: Mapping[str, nn.Module]) -> set[str]:
        """Return the calls of modules without children that are, other than torch's own, several operations."""
        inside: dict[str, set[str]] = {}
        for seen in self.seen.values():
            if seen.moment.operation and not type(modules[seen.moment.path]).__module__.startswith(
                ("torch.nn.", "torch.ao.")
            ):
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


def _activation_site(name: str, seen: _Seen, owner: nn.Module, layout: LaneAxis) -> Site:
    shape, kind = per_sample(seen.many.shape, layout, lanes=PROBES), type(owner).__name__
    rounded = activation_word(owner) if seen.moment.role == "output" and not seen.moment.operation else ""
    fmt = word(rounded or word_name(seen.many))
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


def channel_axis(operation: str, shape: Sequence[int], layout: LaneAxis) -> int | None:
    """Return the axis of channels: by the operation where it decides, else the first of images, the last of tokens."""
    if not shape:
        return None
    plain = operation.lower().replace("_", "")
    ahead = int(layout.axis == 0 and not layout.plain)  # the axis merged with the batch stands before the channels
    if any(part in plain for part in _CHANNEL_FIRST):
        return min(ahead, len(shape) - 1)
    if any(part in plain for part in _CHANNEL_LAST) or len(shape) - ahead == 2:
        return len(shape) - 1
    return min(ahead, len(shape) - 1)


def watch(model: nn.Module, data: Data, *, operations: bool) -> Record:
    """Return what *model* showed on a few of the inputs; functional *operations* are looked at if asked for."""
    inputs = map_tensors(lambda leaf: leaf.to(_device(model)), probe_inputs(data))
    # Quantised modules compute in one way only, and are born in training mode.
    trained = (m for m in model.modules() if not type(m).__module__.startswith("torch.ao.nn.quantized."))
    record = Record(model, training=any(module.training for module in trained))
    with undisturbed(model):
        record.cells = find_cells(model, inputs)
    paths = [path for path, m in model.named_modules() if path and is_leaf(m)]
    which = None if operations else ()
    with undisturbed(model), exactly():
        reset_states(model)
        try:
            with visiting(model, record.first, modules=paths, operations=which, cells=record.cells):
                many = call(model, inputs)
            reset_states(model)
            with visiting(model, record.second, modules=paths, operations=which, cells=record.cells):
                few = call(model, rows(inputs, record.fewer))
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} must run on batches of {PROBES} and fewer of the inputs, got "
                f"{type(error).__name__}: {first_line(error)}; check the inputs"
            ) from error
    ranges = any(map(shares_ranges, model.modules())) or any(
        seen.moment.operation.endswith("_dynamic") for seen in record.seen.values()
    )
    record.mixes = _outputs_mix(record, many, few) or ranges
    return record


def _outputs_mix(record: Record, many: Tree, few: Tree) -> bool:
    """Check that the outputs have one row per input, and tell whether the rows depend on each other."""
    name = type(record.model).__name__
    if not leaves(many):
        raise ModelError(
            f"{name} must give tensors, in tuples, lists, dictionaries or registered classes; got {type(many).__name__}"
        )
    count = record.fewer.stop - record.fewer.start
    tensors = [len(leaves(tree)) for tree in (many, few)]
    if tensors[0] != tensors[1]:
        raise ModelError(
            f"{name} gives {tensors[0]} tensors for {PROBES} inputs and {tensors[1]} for {count}, where one row per "
            "input is needed; wrap it so that one axis counts the inputs (padded_detections does it for detectors)"
        )
    pairs = list(zip(leaves(many), leaves(few), strict=True))
    for several, less in pairs:
        grown = axis_by_shapes(several.shape, less.shape, lanes=PROBES, fewer=count)
        if grown is None:
            raise ModelError(
                f"the outputs of {name} need an axis that counts the inputs, got shape {tuple(several.shape)} for "
                f"{PROBES} inputs and {tuple(less.shape)} for {count}; keep that axis, as squeeze(-1) does and "
                "squeeze() does not, or wrap the model"
            )
        record.axes.append(grown.axis)
    return count > 1 or any(find_axis(several, less, lanes=PROBES, lane=1) is None for several, less in pairs)


def computes_nothing(module: nn.Module) -> bool:
    """Whether *module* gives what it reads, in another shape at most."""
    return type(module).__name__.rstrip("123d") in _NOTHING


def varies(module: nn.Module) -> bool:
    """Whether chance, or the rest of the batch, has a part in what one of torch's own layers computes, as it stands."""
    if not module.training:
        return False
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return float(module.dropout) > 0
    return isinstance(module, nn.modules.batchnorm._BatchNorm | nn.RReLU)


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def probe_inputs(data: Data) -> Tree:
    """Return a few inputs that differ from each other, so that inputs that mix are noticed."""
    few = rows(data.inputs, torch.arange(PROBES) % len(data))
    if len(data) >= PROBES:
        return few
    generator = torch.Generator().manual_seed(0)

    def vary(leaf: Tensor) -> Tensor:
        if leaf.dtype.is_floating_point:
            return leaf + 0.1 * torch.randn(leaf.shape, generator=generator).to(leaf)
        return torch.stack([row.roll(i, -1) if row.ndim else row for i, row in enumerate(leaf)])

    return map_tensors(vary, few)
