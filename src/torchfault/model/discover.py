"""Find the sites of any module by looking at its parameters and by watching it run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from torchfault.data import Data, Tree
from torchfault.errors import ModelError
from torchfault.model.arguments import data_sites
from torchfault.model.conduct import Conduct
from torchfault.model.constants import constant_home, find_constants
from torchfault.model.fold import Fold, fold
from torchfault.model.home import Home
from torchfault.model.lane_axis import LaneAxis, same_values
from torchfault.model.memory import homes
from torchfault.model.observe import watch
from torchfault.model.probes import probe_inputs
from torchfault.model.states import Cell
from torchfault.model.traits import sampled, varies, word_name
from torchfault.model.wrappers import unwrapped
from torchfault.names import site_name
from torchfault.space import FaultSpace, Site
from torchfault.words import word

__all__ = ["Discovery", "check_inference", "check_shapes", "find", "module_sites", "parameter_sites"]


@dataclass(frozen=True, eq=False)
class Discovery:
    """What was found in a model: the fault space, and where the batch axis of each activation is.

    *left_out* gives, for activations that are no sites, the reason. *mixes* tells how inputs of one batch depend on
    each other, without faults or under them, and is empty where they do not. *owners* gives, for parameters and buffers
    that one module without children reads and nothing else, the path of that module. *cells* are the modules with
    states, and *fold* tells how the sites with time steps come apart into those of the single steps. By the names of
    these go *layouts* and *samples*, a few values of each activation for the first inputs. *axes* count the inputs in
    the tensors that the model gives, and *conduct* tells how it runs.
    """

    fold: Fold
    layouts: Mapping[str, LaneAxis]
    left_out: Mapping[str, str] = field(default_factory=dict)
    mixes: str = ""
    owners: Mapping[str, str] = field(default_factory=dict)
    cells: tuple[Cell, ...] = ()
    axes: tuple[int, ...] = ()
    samples: Mapping[str, Tensor] = field(default_factory=dict)
    conduct: Conduct = field(default_factory=Conduct)

    @property
    def space(self) -> FaultSpace:
        """Every site of the model, in execution order."""
        return self.fold.space

    @property
    def sites(self) -> tuple[Site, ...]:
        """The same sites with those of each time step apart."""
        return self.fold.apart.sites

    def shows(self, name: str, value: Tensor) -> bool:
        """Whether *value*, computed for the first inputs, is what the model showed for the activation called *name*."""
        known = self.samples.get(str(site_name(name).whole))
        return known is not None and same_values(sampled(value), known)


def parameter_sites(model: nn.Module, *, buffers: bool = False) -> list[Site]:
    """Return a site for every parameter of *model*, and for every buffer if *buffers*, in the order of their names.

    A parameter that is kept as codes, scales or indices has a site for each (see :mod:`torchfault.model.memory`).
    Tied parameters are one site, under their first name. Raises :class:`ModelError` for a parameter without a shape.

    >>> [(site.name, site.kind) for site in parameter_sites(nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2)))]
    [('0.weight', 'weight'), ('0.bias', 'bias'), ('1.weight', 'norm'), ('1.bias', 'norm')]
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    check_shapes(model)
    kept = homes(model)
    replaced = {home.parameter: home for home in kept if home.parameter}
    sites: list[Site] = []
    for name, parameter in model.named_parameters():
        if name in replaced:
            sites += home_sites(replaced[name], modules)
        elif word_name(parameter):
            sites.append(_stored_site(name, parameter, modules[site_name(name).owner], buffer=False))
    for home in kept:
        sites += [] if home.parameter else home_sites(home, modules)
    for name, tensor in model.named_buffers() if buffers else ():
        if word_name(tensor):
            sites.append(_stored_site(name, tensor, modules[site_name(name).owner], buffer=True))
    return sites


def home_sites(home: Home, modules: Mapping[str, nn.Module]) -> list[Site]:
    """Return the sites of the words in *home*; a part without a kind of its own has that of the parameter."""
    owner = type(modules[home.module]).__name__
    role = _role(home.parameter, owner)
    return [
        Site(
            name,
            tuple(words.shape),
            word=(part := home.parts[name]).word,
            width=part.fmt.width,
            kind=part.kind or role,
            module=home.module,
            module_type=owner,
            channel=part.channel,
        )
        for name, words in home.words.items()
    ]


def _role(name: str, kind: str) -> str:
    last = site_name(name).last
    role = "bias" if last.startswith("bias") or last.endswith("_bias") else "weight"
    return "norm" if "norm" in kind.lower() else role


def _stored_site(name: str, tensor: Tensor, owner: nn.Module, *, buffer: bool) -> Site:
    kind = type(owner).__name__
    channel: int | None = 0 if tensor.ndim else None
    if tensor.ndim > 1 and (isinstance(owner, nn.modules.conv._ConvTransposeNd) or "Embedding" in kind):
        channel = 1
    known = word(word_name(tensor))
    return Site(
        name,
        tuple(tensor.shape),
        word=known.name,
        width=known.width,
        kind="buffer" if buffer else _role(name, kind),
        module=site_name(name).owner,
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


def find(model: nn.Module, data: Data | Tree, *, buffers: bool = False, steps: bool = True) -> Discovery:
    """Return every site of *model*: its inputs, parameters, and what modules and functional operations read and give.

    With *buffers* there are sites for buffers too, and for the numbers that neurons keep elsewhere (see
    :func:`torchfault.model.constants.find_constants`). Without *steps* a module with states is taken for any other, and
    what it does at each time step is no site. A parameter stands before the first operation that reads it. The
    model runs on a few of the inputs and is left as it was. Raises :class:`ModelError` where it fails on them, or gives
    no tensors with one row per input.

    >>> import torch
    >>> found = find(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), torch.zeros(4, 3))
    >>> found.space.names
    ('input:data', '0.weight', '0.bias', '0:input', '0:output', '1:input', '1:output')
    """
    model, data = unwrapped(model), data if isinstance(data, Data) else Data(data)
    stored = parameter_sites(model, buffers=buffers)
    record = watch(model, data, operations=True, steps=steps)
    given = {site.name: site for site in data_sites(model, data) if site is not None}
    names = find_constants(model, record.cells, probe_inputs(data)) if buffers else ()
    numbers, modules = [constant_home(model, name) for name in names], dict(model.named_modules())
    stored += [site for home in numbers for site in home_sites(home, modules)]
    known = given | {site.name: site for site in (*stored, *record.sites())}
    kept = homes(model)
    order = dict.fromkeys([*given, *_with_homes(record.order, [*kept, *numbers]), *known])
    folded = fold(known[name] for name in order if name in known)
    alone = dict(record.owners({home.module for home in kept if not home.parameter}))
    whole = {home.parameter or home.module for home in kept}
    owners = {name: path for name, path in alone.items() if name not in whole}
    for home in kept:
        if path := alone.get(home.parameter or home.module):
            # The scale of what a module gives belongs to the whole batch: lanes cannot differ in it.
            owners |= {name: path for name in home.words if name not in (f"{path}.scale", f"{path}.zero_point")}
    layouts = record.layouts | dict.fromkeys(given, LaneAxis(0))
    layouts |= {name: layouts[steps[0]] for name, steps in folded.parts.items() if steps[0] in layouts}
    told = (record.left_out, record.mixes, owners, record.cells, tuple(record.axes), record.samples, record.conduct)
    return Discovery(folded, layouts, *told)


def check_shapes(model: nn.Module) -> None:
    """Raise :class:`ModelError` where a tensor of *model* has no shape yet: to run it would make up what it becomes.

    >>> check_shapes(nn.LazyLinear(3))
    Traceback (most recent call last):
    torchfault.errors.ModelError: 'weight' has no shape yet; run the model once on real inputs first
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
            raise ModelError(f"'{name}' has no shape yet; run the model once on real inputs first")


def _with_homes(order: Iterable[str], kept: Sequence[Home]) -> Iterator[str]:
    """Put the sites of homes where their parameter is read, or before the first moment of their module."""
    by_parameter = {home.parameter: home for home in kept if home.parameter}
    by_module: dict[str, list[Home]] = {}
    for home in kept:
        if not home.parameter:
            by_module.setdefault(home.module, []).append(home)
    for name in order:
        for home in by_module.get(site_name(name).base, [by_parameter[name]] if name in by_parameter else []):
            yield from home.words
        yield name


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
