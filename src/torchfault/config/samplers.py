"""The kinds of samplers: a new one is a class here, with a member of the union below."""

import re
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from torchfault.config.made import Made
from torchfault.config.section import Kind, expanded_kind, imported, kinds_in
from torchfault.errors import SamplingError

if TYPE_CHECKING:
    from torchfault.sampling import Importance as _Importance
    from torchfault.sampling import Sampler

__all__ = ["SAMPLERS", "AnySampler", "Importance", "Uniform", "check_score"]


class Uniform(Kind):
    """Faults at random, without end."""

    kind: Literal["uniform"] = "uniform"
    faults: int = Field(default=1, ge=1, le=10_000, description="Faults struck together in each trial, distinct ones.")

    def build(self, made: Made) -> "Sampler":
        """Return the sampler."""
        from torchfault.sampling import Uniform

        del made
        return Uniform(self.faults)


class Exhaustive(Kind):
    """Every fault in order, on every input."""

    kind: Literal["exhaustive"] = "exhaustive"

    def build(self, made: Made) -> "Sampler":
        """Return the sampler."""
        from torchfault.sampling import Exhaustive

        del made
        return Exhaustive()


class BitErrorRate(Kind):
    """Each bit is struck with a probability of its own, independently."""

    kind: Literal["bit-error-rate"] = "bit-error-rate"
    rate: float = Field(ge=1e-18, le=1, description="The probability that a bit is struck.")

    def build(self, made: Made) -> "Sampler":
        """Return the sampler."""
        from torchfault.sampling import BitErrorRate

        del made
        return BitErrorRate(self.rate)


class _Statistical(Kind):
    margin: float = Field(
        default=0.01, ge=1e-6, lt=1, description="The error that each sample is large enough for, at 95 % confidence."
    )

    def build(self, made: Made) -> "Sampler":
        """Return the sampler."""
        from torchfault.sampling import Statistical, bits_from

        bits = bits_from(made.space, made.held) if self.kind == "data-aware" else None
        return Statistical(self.kind, margin=self.margin, bits=bits)


class NetworkWise(_Statistical):
    """One sample of a published size out of all faults, without replacement."""

    kind: Literal["network-wise"] = "network-wise"


class LayerWise(_Statistical):
    """One such sample out of each site."""

    kind: Literal["layer-wise"] = "layer-wise"


class DataUnaware(_Statistical):
    """One such sample out of each bit of each site."""

    kind: Literal["data-unaware"] = "data-unaware"


class DataAware(_Statistical):
    """One such sample out of each bit of each site, smaller where the weights tell that a bit matters less."""

    kind: Literal["data-aware"] = "data-aware"


class Adaptive(Kind):
    """Draws go where the outcomes so far leave most doubt, until every `stop.half_width` is reached."""

    kind: Literal["adaptive"] = "adaptive"
    strata: Literal["bits", "deviations", "words"] = Field(
        default="bits",
        description="What faults are cut by: `bits` (groups of bits of each site), `deviations` (how far a flip moves "
        "its word, and how sure its input is), or `words` (whole words of each site, for monotone closure).",
    )

    def build(self, made: Made) -> "Sampler":
        """Return the sampler."""
        from torchfault.recipes.economy import by_deviations
        from torchfault.sampling import Adaptive, BitFields, WholeWords

        if self.strata == "deviations":
            return by_deviations(made.engine, made.space, made.words, goals=made.goals, resolver=made.resolver)
        return Adaptive(WholeWords() if self.strata == "words" else BitFields())


def check_score(text: str) -> str:
    """Return the name of a score, or raise :class:`ValueError`."""
    if not re.fullmatch(r"effect|joint|rising|[GELR]B[IR]N", text):
        raise ValueError(f"expected effect, joint, rising or a code such as GBIN, got '{text[:60]}'")
    return text


class _Scored(Kind):
    score: Annotated[str, AfterValidator(check_score)] = Field(
        default="effect",
        description="`effect` (first-order effect on the margin), `joint` (sensitivity times derivative by the bit), "
        "`rising` (sensitive elements that become very large), or a code of ISimDL such as `GBIN` (Gradient, "
        "Exponential, Linear or Random bit; Important or Random neuron).",
    )
    floor: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="The share of trials that are drawn uniformly; with 0 some faults may be out of reach.",
    )
    inputs: int = Field(default=8, ge=1, le=10**6, description="The number of inputs from which scores come.")

    def by_score(self, made: Made) -> "_Importance":
        """Return the sampler that goes by the score alone."""
        from torchfault.sampling import Importance
        from torchfault.sensitivity import corrected, effect, isimdl, rising

        model, data, images = made.engine.model, made.engine.data, self.inputs
        if self.score == "effect":
            return Importance(effect(model, data, made.space, images=images), floor=self.floor)
        if self.score in (makers := {"joint": corrected, "rising": rising}):
            return makers[self.score](model, data, made.space, floor=self.floor, images=images)
        return isimdl(model, data, made.space, self.score, floor=self.floor, images=images)


class Importance(_Scored):
    """Draws in proportion to a score of the faults, with exact weights."""

    kind: Literal["importance"] = "importance"

    def build(self, made: Made) -> "Sampler":
        """Return the sampler."""
        return self.by_score(made)


class Learned(_Scored):
    """Draws in proportion to a score, which the outcomes so far correct."""

    kind: Literal["learned"] = "learned"

    def build(self, made: Made) -> "Sampler":
        """Return the sampler."""
        from torchfault.sampling import Learned

        return Learned(self.by_score(made).score, floor=self.floor)


class Import(Kind):
    """A sampler of your own: a value, or a class without arguments, that has `design` and `draw`."""

    kind: Literal["import"] = "import"
    path: str = Field(description="Its place, `package.module:name`; that text alone means the same.")

    def build(self, made: Made) -> "Sampler":
        """Return the sampler."""
        del made
        return imported(self.path, "draw", SamplingError)  # type: ignore[no-any-return]


AnySampler = Annotated[
    Uniform
    | Exhaustive
    | BitErrorRate
    | NetworkWise
    | LayerWise
    | DataUnaware
    | DataAware
    | Adaptive
    | Importance
    | Learned
    | Import,
    Field(discriminator="kind"),
    BeforeValidator(lambda value: expanded_kind(value, SAMPLERS, "sampler")),
]
SAMPLERS = kinds_in(AnySampler)
