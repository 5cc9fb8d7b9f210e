"""Find the sites of any module by looking at its parameters and by watching it run."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torchfault.errors import ModelError
from torchfault.model.data import Data, Tree, call, leaves, map_tensors, rows
from torchfault.model.disturb import undisturbed
from torchfault.model.layout import Layout, find_layout, per_sample
from torchfault.model.visit import Moment, visiting
from torchfault.space import FaultSpace, Site
from torchfault.words import WORDS

__all__ = ["Discovery", "channel_axis", "check_inference", "find", "module_sites", "parameter_sites"]

_PROBES = 3
_CHANNEL_FIRST = ("conv", "batchnorm", "instancenorm", "groupnorm", "pool", "pixel", "upsample", "interpolate")
_CHANNEL_LAST = ("linear", "layernorm", "rmsnorm", "embedding", "lstm", "gru", "rnn", "matmul", "attention")
_NOTHING = ("Dropout", "AlphaDropout", "FeatureAlphaDropout", "Identity", "Flatten", "Unflatten")


@dataclass(frozen=True, eq=False)
class Discovery:
    """What was found in a model: the fault space, and where the batch axis of each activation is.

    *left_out* gives, for activations that are no sites, the reason. *mixes* tells whether the output for one input
    depends on the others in its batch. *owners* gives, for parameters and buffers that one module without children
    reads and nothing else, the path of that module.
    """

    space: FaultSpace
    layouts: Mapping[str, Layout]
    left_out: Mapping[str, str] = field(default_factory=dict)
    mixes: bool = False
    owners: Mapping[str, str] = field(default_factory=dict)


def parameter_sites(model: nn.Module, *, buffers: bool = False) -> list[Site]:
    """Return a site for every parameter of *model*, and for every buffer if *buffers*, in the order of their names.

    Tied parameters are one site, under their first name. Raises :class:`ModelError` for a parameter without a shape.

    >>> [(site.name, site.kind) for site in parameter_sites(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)))]
    [('0.weight', 'weight'), ('0.bias', 'bias'), ('1.weight', 'norm'), ('1.bias', 'norm')]
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    named: list[tuple[str, Tensor, bool]] = [(name, tensor, False) for name, tensor in model.named_parameters()]
    named += [(name, tensor, True) for name, tensor in model.named_buffers()] if buffers else []
    return [
        _stored_site(name, tensor, modules[name.rpartition(".")[0]], buffer)
        for name, tensor, buffer in named
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer) or _word(tensor)
    ]


def _word(tensor: Tensor) -> str:
    """Return the name of the tensor's word format, empty where it has none."""
    name = str(tensor.dtype).removeprefix("torch.")
    return name if name in WORDS and tensor.layout == torch.strided else ""


def _stored_site(name: str, tensor: Tensor, owner: nn.Module, buffer: bool) -> Site:
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        raise ModelError(f"'{name}' has no shape yet; run the model once on real inputs first")
    path, _, last = name.rpartition(".")
    kind = type(owner).__name__
    role = "bias" if last.startswith("bias") or last.endswith("_bias") else "weight"
    role = "buffer" if buffer else "norm" if "norm" in kind.lower() else role
    channel: int | None = 0 if tensor.ndim else None
    if tensor.ndim > 1 and (isinstance(owner, nn.modules.conv._ConvTransposeNd) or "Embedding" in kind):
        channel = 1
    word = WORDS[_word(tensor)]
    return Site(
        name,
        tuple(tensor.shape),
        word=word.name,
        width=word.width,
        kind=role,
        module=path,
        module_type=kind,
        channel=channel,
    )


def module_sites(model: nn.Module, data: Data | Tree) -> list[Site]:
    """Return a site for every floating-point input and output of the modules without children, in call order.

    The model runs on a few of the inputs and is left as it was.

    >>> [(site.name, site.shape) for site in module_sites(nn.Sequential(nn.Linear(3, 2)), torch.zeros(4, 3))]
    [('0:input', (3,)), ('0:output', (2,))]
    """
    data = data if isinstance(data, Data) else Data(data)
    return list(_watch(model, data, operations=False).sites())


def find(model: nn.Module, data: Data | Tree, *, buffers: bool = False) -> Discovery:
    """Return every site of *model*: parameters, and what modules and functional operations read and give.

    A parameter stands before the first operation that reads it. The model runs on a few of the inputs and is left as it
    was. Raises :class:`ModelError` where it fails on them, or gives no tensors with one row per input.

    >>> found = find(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(4, 3))
    >>> found.space.names
    ('0.weight', '0.bias', '0:input', '0:output', '1:input', '1:output')
    """
    data = data if isinstance(data, Data) else Data(data)
    stored = parameter_sites(model, buffers=buffers)
    record = _watch(model, data, operations=True)
    known = {site.name: site for site in stored}
    known |= {site.name: site for site in record.sites()}
    order = dict.fromkeys([*record.order, *known])
    sites = tuple(known[name] for name in order if name in known)
    return Discovery(FaultSpace(sites), record.layouts, record.left_out, record.mixes, record.owners())


@dataclass(frozen=True, eq=False)
class _Seen:
    """One tensor of a moment as computed for several inputs; *site* tells whether faults can land in it."""

    moment: Moment
    many: Tensor
    view: bool
    site: bool


@dataclass(eq=False)
class _Record:
    """What two runs showed: several inputs together, then one of them alone."""

    model: nn.Module
    training: bool
    seen: dict[str, _Seen] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    readers: dict[str, set[str]] = field(default_factory=dict)
    layouts: dict[str, Layout] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    mixes: bool = False
    done: set[str] = field(default_factory=set)

    def first(self, moment: Moment) -> None:
        """Keep what several inputs together give."""
        if moment.role == "output":
            self.done.add(moment.base)
        self.order += moment.stored
        for name in moment.stored:
            self.readers.setdefault(name, set()).add(moment.path)
        for i, tensor in enumerate(moment.tensors):
            name = f"{moment.base}:{moment.role}{i or ''}"
            self.order.append(name)
            site = tensor.dtype.is_floating_point and bool(_word(tensor))
            self.seen[name] = _Seen(moment, tensor.detach().clone(), moment.view[i], site)

    def second(self, moment: Moment) -> None:
        """Compare it with what one of the inputs gives alone."""
        for i, tensor in enumerate(moment.tensors):
            name = f"{moment.base}:{moment.role}{i or ''}"
            if name not in self.seen:
                continue
            layout = self.layout(self.seen[name].many, tensor.detach())
            if layout is not None:
                self.layouts[name] = layout
            elif self.seen[name].site and moment.base in self.done:
                self.left_out[name] = "it has no batch axis of its own, or mixes the inputs of a batch"

    def layout(self, many: Tensor, one: Tensor) -> Layout | None:
        found = find_layout(many, one, lanes=_PROBES, lane=1)
        if found is not None or not self.training or many.ndim != one.ndim:
            return found
        # In training mode values differ by chance or by the batch, so that the shapes alone must do.
        grown = [axis for axis in range(many.ndim) if many.shape[axis] != one.shape[axis]]
        if len(grown) != 1 or many.shape[grown[0]] != _PROBES * one.shape[grown[0]]:
            return None
        return Layout(grown[0], inner=one.shape[grown[0]])

    def sites(self) -> Iterator[Site]:
        """Yield the site of each activation, in execution order."""
        modules = dict(self.model.named_modules())
        taken_apart = self._taken_apart(modules)
        views = self._views()
        for name, seen in self.seen.items():
            moment, owner = seen.moment, modules[seen.moment.path]
            leaf = moment.path != "" and not any(True for _ in owner.children())
            hidden = leaf and (bool(moment.operation) != (moment.call in taken_apart))
            idle = (
                moment.base in views or moment.base not in self.done or type(owner).__name__.rstrip("123d") in _NOTHING
            )
            if seen.site and name in self.layouts and not hidden and not idle:
                yield _activation_site(name, seen, type(owner).__name__, self.layouts[name])

    def owners(self) -> dict[str, str]:
        """Return the modules that alone read a parameter, and whose calls have lanes in all that they read and give."""
        modules = dict(self.model.named_modules())
        plain = {name: next(iter(paths)) for name, paths in self.readers.items() if len(paths) == 1}
        lost = {seen.moment.path for name, seen in self.seen.items() if name not in self.layouts or seen.view}
        return {
            name: path
            for name, path in plain.items()
            if path and path not in lost and name.rpartition(".")[0] == path and _repeatable(modules[path])
        }

    def _taken_apart(self, modules: Mapping[str, nn.Module]) -> set[str]:
        """Return the calls of modules without children that are, other than torch's own, several operations."""
        inside: dict[str, set[str]] = {}
        for seen in self.seen.values():
            if seen.moment.operation and not type(modules[seen.moment.path]).__module__.startswith("torch.nn."):
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
    """Whether a call of *module* is its ``forward`` and nothing else, also when it happens twice."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return not hooked and not any(True for _ in module.children()) and not getattr(module, "inplace", False)


def _activation_site(name: str, seen: _Seen, kind: str, layout: Layout) -> Site:
    shape = per_sample(seen.many.shape, layout, lanes=_PROBES)
    word = WORDS[_word(seen.many)]
    return Site(
        name,
        shape,
        word=word.name,
        width=word.width,
        kind=seen.moment.role,
        module=seen.moment.path,
        module_type=kind,
        channel=channel_axis(seen.moment.operation or kind, shape, layout),
    )


def channel_axis(operation: str, shape: Sequence[int], layout: Layout) -> int | None:
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


def _watch(model: nn.Module, data: Data, *, operations: bool) -> _Record:
    inputs = map_tensors(lambda leaf: leaf.to(_device(model)), _probe(data))
    record = _Record(model, training=any(module.training for module in model.modules()))
    paths = [path for path, m in model.named_modules() if path and not any(True for _ in m.children())]
    which = None if operations else ()
    with undisturbed(model):
        try:
            with visiting(model, record.first, modules=paths, operations=which):
                many = call(model, inputs)
            with visiting(model, record.second, modules=paths, operations=which):
                one = call(model, rows(inputs, slice(1, 2)))
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"{type(model).__name__} must run on batches of {_PROBES} and 1 of the inputs, got "
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}; check the inputs"
            ) from error
    record.mixes = _outputs_mix(type(model).__name__, many, one)
    return record


def _outputs_mix(name: str, many: Tree, one: Tree) -> bool:
    """Check that the outputs have one row per input, and tell whether the rows depend on each other."""
    if not leaves(many):
        raise ModelError(
            f"{name} must give tensors, in tuples, lists, dictionaries or registered classes; got {type(many).__name__}"
        )
    for several, single in zip(leaves(many), leaves(one), strict=True):
        if several.ndim == 0 or several.shape != (_PROBES * single.shape[0], *single.shape[1:]):
            raise ModelError(
                f"the outputs of {name} need one row per input, got shape {tuple(several.shape)} for {_PROBES} inputs; "
                "wrap the model so that its first axis counts the inputs"
            )
    return any(
        find_layout(several, single, lanes=_PROBES, lane=1) is None
        for several, single in zip(leaves(many), leaves(one), strict=True)
    )


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _probe(data: Data) -> Tree:
    """Return a few inputs that differ from each other, so that inputs that mix are noticed."""
    few = rows(data.inputs, torch.arange(_PROBES) % len(data))
    if len(data) >= _PROBES:
        return few
    generator = torch.Generator().manual_seed(0)

    def vary(leaf: Tensor) -> Tensor:
        if leaf.dtype.is_floating_point:
            return leaf + 0.1 * torch.randn(leaf.shape, generator=generator).to(leaf)
        return torch.stack([row.roll(i, -1) if row.ndim else row for i, row in enumerate(leaf)])

    return map_tensors(vary, few)


def check_inference(model: nn.Module) -> None:
    """Raise :class:`ModelError` where *model* would compute by chance, or let the inputs of a batch mix.

    That is batch norm or dropout in training mode, and batch norm without stored statistics in any mode.

    >>> check_inference(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    Traceback (most recent call last):
    torchfault.errors.ModelError: '1' (Dropout) is in training mode, ...
    """
    active = [(path, module) for path, module in model.named_modules() if module.training and _varies(module)]
    if active:
        listed = ", ".join(f"'{path}' ({type(module).__name__})" for path, module in active[:3])
        more = f" and {len(active) - 3} more" if len(active) > 3 else ""
        verb = "is" if len(active) == 1 else "are"
        raise ModelError(
            f"{listed}{more} {verb} in training mode, where the outcome depends on chance or on the rest of the batch; "
            "call model.eval(), or ask for training=True"
        )
    for path, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ModelError(
                f"'{path}' ({type(module).__name__}) keeps no statistics and normalises by the batch, which "
                "mixes the inputs; build it with track_running_stats=True, or ask for training=True"
            )


def _varies(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.RReLU):
        return True
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.RNNBase | nn.MultiheadAttention) and float(module.dropout) > 0
