"""What a configuration has come to when samplers, resolvers and recipes are made of it: model, space, goals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torchfault.config.section import Kind

if TYPE_CHECKING:
    from torchfault.criteria import Criterion
    from torchfault.engine import Engine
    from torchfault.faults import FaultModel
    from torchfault.resolve import Resolver
    from torchfault.space import FaultSpace
    from torchfault.statistics import Rule

__all__ = ["Made", "stored_words"]


@dataclass(frozen=True, eq=False)
class Made:
    """What there is of a campaign when its sampler and resolver are made, or its recipe."""

    engine: "Engine"
    space: "FaultSpace"
    fault: "FaultModel"
    criterion: "Criterion"
    verdicts: "Mapping[str, Criterion]"
    stop: "Rule | None"
    resolvers: Sequence[Kind] = ()
    inputs_per_fault: int | None = 1
    level: float = 0.95
    seed: int = 0

    @property
    def goals(self) -> Mapping[str, float]:
        """The half-widths to reach, by grouping."""
        from torchfault.statistics import HalfWidth, rules

        return {rule.by: rule.h for rule in rules(self.stop) if isinstance(rule, HalfWidth)}

    @cached_property
    def resolver(self) -> "Resolver":
        """How outcomes become known: the chosen kinds, each around the next."""
        from torchfault.resolve import Direct

        inner: Resolver = Direct()
        for kind in reversed(self.resolvers):
            inner = kind.build(self, inner)  # type: ignore[attr-defined]  # each kind of resolver has it
        return inner

    @cached_property
    def words(self) -> Mapping[str, Any]:
        """The golden words of all chosen sites."""
        return self.engine.words(self.space)

    @cached_property
    def held(self) -> dict[str, Any]:
        """The parameters, buffers and other stored words of the model by the names of their sites."""
        return stored_words(self.engine)


def stored_words(engine: "Engine") -> dict[str, Any]:
    """Return the parameters, buffers and other stored words of an engine's model by the names of their sites."""
    from torchfault.model.constants import constant_home, is_constant
    from torchfault.model.memory import homes

    words = {name: tensor for home in homes(engine.model) for name, tensor in home.words.items()}
    words |= {name: constant_home(engine.model, name).words[name] for name in engine.space.names if is_constant(name)}
    return dict(engine.model.named_buffers()) | dict(engine.model.named_parameters()) | words
