"""Find the sites of any module by looking at its parameters and by watching it run."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torchfault.errors import ModelError
from torchfault.model.arguments import data_sites
from torchfault.model.data import Data, Tree
from torchfault.model.layout import Layout
from torchfault.model.record import varies, watch, word_name
from torchfault.space import FaultSpace, Site
from torchfault.words import WORDS

__all__ = ["Discovery", "check_inference", "find", "module_sites", "parameter_sites"]


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
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer) or word_name(tensor)
    ]


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
    word = WORDS[word_name(tensor)]
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

    >>> import torch
    >>> [(site.name, site.shape) for site in module_sites(nn.Sequential(nn.Linear(3, 2)), torch.zeros(4, 3))]
    [('0:input', (3,)), ('0:output', (2,))]
    """
    data = data if isinstance(data, Data) else Data(data)
    return list(watch(model, data, operations=False).sites())


def find(model: nn.Module, data: Data | Tree, *, buffers: bool = False) -> Discovery:
    """Return every site of *model*: its inputs, parameters, and what modules and functional operations read and give.

    A parameter stands before the first operation that reads it. The model runs on a few of the inputs and is left as it
    was. Raises :class:`ModelError` where it fails on them, or gives no tensors with one row per input.

    >>> import torch
    >>> found = find(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(4, 3))
    >>> found.space.names
    ('input:data', '0.weight', '0.bias', '0:input', '0:output', '1:input', '1:output')
    """
    data = data if isinstance(data, Data) else Data(data)
    stored = parameter_sites(model, buffers=buffers)
    record = watch(model, data, operations=True)
    given = {site.name: site for site in data_sites(model, data) if site is not None}
    known = given | {site.name: site for site in (*stored, *record.sites())}
    order = dict.fromkeys([*given, *record.order, *known])
    sites = tuple(known[name] for name in order if name in known)
    layouts = record.layouts | dict.fromkeys(given, Layout(0))
    return Discovery(FaultSpace(sites), layouts, record.left_out, record.mixes, record.owners())


def check_inference(model: nn.Module) -> None:
    """Raise :class:`ModelError` where *model* would compute by chance, or let the inputs of a batch mix.

    That is batch norm or dropout in training mode, and batch norm without stored statistics in any mode.

    >>> check_inference(nn.Sequential(nn.Linear(2, 2), nn.Dropout()))
    Traceback (most recent call last):
    torchfault.errors.ModelError: '1' (Dropout) is in training mode, ...
    """
    active = [(path, module) for path, module in model.named_modules() if varies(module)]
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
