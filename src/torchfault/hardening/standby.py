"""Guards that stand by: a pass is only looked at, and where something is wrong guards act in a second one."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchfault.data import Tree
from torchfault.errors import ModelError
from torchfault.hardening.checksums import ChecksumGuard, few
from torchfault.hardening.codes import Dequantised, Uncover
from torchfault.hardening.harden import Guard, check_free
from torchfault.hardening.looks import Kept, Look, fine, wrong_rows
from torchfault.hardening.profile import Profile
from torchfault.hardening.reads import inside
from torchfault.hardening.stored import StoredGuard, words_of
from torchfault.hardening.sums import BatchSums, agree
from torchfault.names import matching

__all__ = ["Standby", "StandbyGuard", "by_rows"]

_ROUNDING = 1e-5  # of the largest golden value
_SMALL = 2**18  # words; the copy of more takes memory that matters
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


@dataclass(frozen=True)
class Standby:
    """Let all guards so far stand by: a pass without faults is only looked at, and pays for looking alone.

    Before a pass the words of guarded parameters are added up; where a sum is off, guards act from the start. Behind it
    the tensors of *sites* are looked at, by names such as ``conv1:output`` (``:output``, what the model gives, unless
    told): values may leave their golden range by *margin* of its width, are whole numbers where golden ones are, and do
    not change from call to call of a module where golden ones do not. Inputs in which anything is off are computed once
    more, with guards: a transient fault is gone by then. Without *words* stored ones are not added up, and guards act
    in a second pass alone, if what is looked at tells of a wrong word. Where :class:`Checksums` stand by, the sums of a
    batch of 16 inputs and more are kept, and at the end of the pass those of layers alike are checked together.

    A captured graph has no branches: in what ``torch.export`` makes of the model, guards act in every pass. Guards of
    the model's own parameters and inputs do so anywhere, and those whose clean words are not what to compute with.
    Strike the model with ``Engine(..., executor="hooks")``.

    >>> from torchfault.hardening import InvariantBits, harden, profile
    >>> model, data = nn.Sequential(nn.Linear(2, 2), nn.ReLU()), torch.rand(50, 2)
    >>> safe = harden(model, InvariantBits(), Standby(), profile=profile(model, data))
    >>> with torch.no_grad():
    ...     safe[0].weight.view(torch.int32)[0, 0] ^= 1 << 30
    >>> torch.equal(safe(data), model(data))
    True
    """

    sites: str | tuple[str, ...] = ":output"
    margin: float = 0.5
    words: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.margin < math.inf:
            raise ModelError(f"a margin is a finite number of 0 or more, got {self.margin:g}")

    def __call__(self, model: nn.Module, profile: Profile | None) -> nn.Module:
        """Return *model* with its guards set aside, and a look at every pass."""
        if profile is None:
            raise ModelError("guards stand by for golden ranges; give profile=profile(model, data)")
        known = list(profile.ranges)
        names = [known[i] for i in sorted(matching(known, self.sites, what="tensor of the profile"))]
        aside = _Aside(model, Kept(tuple(Look.of(name, profile[name]) for name in names)))
        guard = StandbyGuard(aside)
        check_free(model, "", guard)
        low, high = (
            torch.stack(ends).float() for ends in zip(*(profile[name].bounds() for name in names), strict=True)
        )
        # Another size of batch adds in another order, and must not leave the range by that alone.
        wide = self.margin * (high - low) + _ROUNDING * torch.maximum(low.abs(), high.abs())
        model.register_buffer("standby_low", low - wide)
        model.register_buffer("standby_high", high + wide)
        aside.set(words=self.words)
        model.register_buffer("standby_sums", aside.sums())
        aside.kept.collect(model)
        model.register_forward_pre_hook(_Begin(aside), prepend=True)
        model.register_forward_hook(guard, with_kwargs=True, always_call=True)
        return model


@dataclass(eq=False)
class _Aside:
    """The guards of a *model* that stand by, and what looks and checksums have *kept* of the pass that runs."""

    model: nn.Module
    kept: Kept
    added: list[BatchSums] = field(default_factory=list)
    words: list[list[tuple[nn.Module, str]]] = field(default_factory=list)
    hooks: list[tuple[nn.Module, str, dict[int, Any], frozenset[int]]] = field(default_factory=list)
    places: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    acting: bool = True

    def set(self, *, words: bool) -> None:
        """Take the guards that can stand by out of the modules inside the model."""
        alike = dict[tuple[object, int], list[tuple[nn.Module, str]]]()
        for module in list(self.model.modules())[1:]:
            resting = set(_resting(module))
            for name in sorted(resting):
                owner, last = inside(module, name)
                alike.setdefault(_size(getattr(owner, last)), []).append((owner, last))
            for kind in _HOOKS:
                every: dict[int, Any] = dict(getattr(module, kind))
                mine = frozenset(key for key, hook in every.items() if _stands_by(module, hook, resting))
                if mine:
                    self.hooks.append((module, kind, every, mine))
        self.words = list(alike.values()) if words else []
        guarded = {module for module, *_ in self.hooks}
        self.places = [
            (outer, name, module)
            for outer in self.model.modules()
            for name, module in outer.named_children()
            if not guarded.isdisjoint(module.modules())
        ]
        self.rest()

    def check_places(self) -> None:
        """Raise for a module with guards that the model has no more: nobody would put them back there."""
        if all(outer._modules.get(name) is module for outer, name, module in self.places):
            return
        now = set(self.model.modules())
        for outer, name, module in self.places:
            if module not in now and outer in now:
                other = type(outer._modules.get(name)).__name__
                raise ModelError(
                    f"'{name}' was a {type(module).__name__} whose guards stand by and is {other} now; convert a model "
                    "first, then harden it"
                )

    def sums(self) -> Tensor:
        """Return the sums of the stored words whose guards stand by, shape (groups,): of small ones together."""
        sums = []
        for group in self.words:
            # Past torch's look-up of attributes, which finds what a guard has decoded.
            held = [
                module._parameters[name] if name in module._parameters else module._buffers[name]
                for module, name in group
            ]
            flat = torch.cat([tensor.reshape(-1) for tensor in held if tensor is not None]).detach()
            whole = flat.numel() * flat.element_size() % 8 == 0
            sums.append((flat.view(torch.int64) if whole else words_of(flat)).sum())
        return torch.stack(sums) if sums else torch.zeros(0, dtype=torch.int64)

    def off(self) -> Tensor:
        """Return whether stored words are not what they were."""
        # Before the model's own operations, which are to keep their names.
        with torch._C.DisableTorchFunction():
            held = self.model._buffers["standby_sums"]
            assert held is not None
            return (self.sums() != held).any()

    def act(self) -> None:
        """Put the guards where they were, before the hooks that have come since."""
        self.acting = True
        for module, kind, every, _ in self.hooks:
            hooks = getattr(module, kind)
            since = {key: hook for key, hook in hooks.items() if key not in every}
            hooks.clear()
            hooks.update(every | since)

    def rest(self) -> None:
        """Take the guards out of their modules again; in the place of checksums something keeps the sums."""
        self.acting = False
        for module, kind, every, mine in self.hooks:
            hooks = getattr(module, kind)
            for key in mine:
                if isinstance(guard := every[key], ChecksumGuard):
                    hooks[key] = _Add(guard, self.added)
                else:
                    hooks.pop(key, None)


def _size(tensor: Tensor) -> tuple[object, int]:
    """Return what tensors share whose words are added up together: small ones their type, a large one nothing."""
    return tensor.dtype, id(tensor) if tensor.numel() > _SMALL else 0


def _resting(module: nn.Module) -> Iterator[str]:
    """Yield the parameters of *module* whose guards leave clean words as they are."""
    every: list[object] = list(module._forward_pre_hooks.values())
    guarded = [hook for hook in every if isinstance(hook, StoredGuard)]
    for name in dict.fromkeys(guard.place for guard in guarded):
        owner, last = inside(module, name)
        value = stored = getattr(owner, last).detach()
        for guard in guarded:
            if guard.place == name:
                value = guard.decoded(module, value)
        if torch.equal(words_of(value), words_of(stored)):
            yield name


def _stands_by(module: nn.Module, hook: object, resting: set[str]) -> bool:
    if isinstance(hook, StoredGuard):
        return hook.place in resting
    if isinstance(hook, Uncover):
        every: list[object] = list(module._forward_pre_hooks.values())
        codes = any(isinstance(other, Dequantised) and other.name == hook.place for other in every)
        return hook.place in resting and not codes
    return isinstance(hook, Guard)


@dataclass(frozen=True, eq=False)
class _Add:
    """The hook that keeps the sums of what a layer reads and gives; small batches are checked at once."""

    guard: ChecksumGuard
    sums: list[BatchSums]

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        if few(module, output):
            return self.guard(module, args, output)
        with torch._C.DisableTorchFunction():  # as in the guard, no operation of the model
            self.sums.append(BatchSums.of(module, args[0], output))
        return None


# Called while torch compiles, and its error is what the caller gets.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _refuse_to_compile() -> None:
    raise ModelError(
        "guards that stand by need passes that Python runs, and torch.compile has none; compile the model hardened "
        "without Standby, or what torch.export.export(model, inputs, strict=False) makes of it: there guards act in "
        "every pass"
    )


@dataclass(frozen=True, eq=False)
class _Begin:
    """The hook before a pass: guards act in it where stored words are wrong."""

    aside: _Aside

    def __call__(self, _module: nn.Module, _args: tuple[Any, ...]) -> None:
        if torch.compiler.is_dynamo_compiling():
            _refuse_to_compile()
        self.aside.added.clear()
        self.aside.kept.begin()
        if torch.compiler.is_compiling():
            self.aside.act()
            return
        self.aside.check_places()
        if self.aside.words and self.aside.off():
            self.aside.act()


@dataclass(frozen=True, eq=False)
class StandbyGuard:
    """The hook behind a pass, which computes again what looks wrong."""

    aside: _Aside = field(repr=False)
    place: str = "output"

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Tree | None
    ) -> Tree | None:
        try:
            if torch.compiler.is_compiling() or output is None:  # an exception is on its way
                return None
            looked = self._looked(module, output)
            agreed = self._agree()
            if agreed and fine(*looked):
                return None
            rows = wrong_rows(*looked) | (not agreed)
            self.aside.act()
            return by_rows(rows, module.forward(*args, **named), output)
        finally:
            self.aside.added.clear()
            self.aside.kept.forget()
            if self.aside.acting:
                self.aside.rest()

    def alarms(self, module: nn.Module, _args: tuple[Any, ...], output: Tree) -> Tensor:
        """Return which rows look wrong; all of them where stored words are, or sums over the batch."""
        return wrong_rows(*self._looked(module, output)) | self.aside.off() | (not self._agree())

    def _agree(self) -> bool:
        with torch._C.DisableTorchFunction():
            return agree(self.aside.added)

    def _looked(self, module: nn.Module, output: Tree) -> tuple[Kept, Tensor, Tensor]:
        self.aside.kept.end(output)
        low, high = module._buffers["standby_low"], module._buffers["standby_high"]
        assert low is not None
        assert high is not None
        return self.aside.kept, low, high


def by_rows(rows: Tensor, again: Tree, first: Tree) -> Tree:
    """Return in the *rows* that are marked, shape (n,), what was computed *again*, in others what was at *first*."""

    def chosen(one: Any, two: Any) -> Any:
        return torch.where(rows.view(-1, *[1] * (one.ndim - 1)), two, one) if isinstance(one, Tensor) else one

    return pytree.tree_map(chosen, first, again)
