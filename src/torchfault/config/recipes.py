"""The recipes of a configuration: what each needs besides what all campaigns have; a new one is a class here."""

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from torchfault.config.made import Made
from torchfault.config.samplers import Importance, Uniform, check_score
from torchfault.config.section import Names, Section
from torchfault.errors import HardwareError, VulnerabilityError

if TYPE_CHECKING:
    from torchfault.campaign import Campaign
    from torchfault.hardware.accelerator import Accelerator

__all__ = ["Ra", "Search", "Vulnerability"]


def _share(value: object) -> float:
    """Return a share given as ``10%`` or 0.1; ``all`` is 1."""
    text = "100%" if value == "all" else str(value).strip()
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if isinstance(value, bool) or not 0 < share <= 1:
        raise ValueError(f"expected a share such as 10% or 0.1, or all, got '{str(value)[:60]}'")
    return share


def _words(value: object) -> object:
    """Return a number of words given as such, as ``log2``, or as ``all`` (``None``)."""
    text = str(value)
    if value is None or text == "all":
        return None
    if text == "log2":
        return text
    if isinstance(value, bool | float) or not text.isdecimal() or not 0 < int(text) < 2**31:
        raise ValueError(f"expected a number from 1, log2 or all, got '{text[:60]}'")
    return int(text)


_HALF_WIDTH = 0.005  # of the factor of each site, unless told
_FLOOR = 0.05  # of draws by a score: enough to tell what uniform draws would take, and few, since faults are sought

Words = Annotated[int | Literal["log2"] | None, BeforeValidator(_words)]


def _scores(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of scores that there are, each once."""
    if not names:
        raise ValueError("expected uniform or a score to draw by, such as rising, got none")
    for name in names:
        if name != "uniform":
            check_score(name)
    return tuple(dict.fromkeys(names))


def _need(section: Section, key: str, names: tuple[str, ...]) -> None:
    """Refuse keys called *names* that were given without *key*, which alone gives them a say."""
    given = [name for name in names if getattr(section, name) != type(section).model_fields[name].default]
    if getattr(section, key) is None and given:
        raise ValueError(f"{' and '.join(given)} would have no say without {key}; give that too")


class Search(Section):
    """Find as many faults that fail as possible, or some that lower the accuracy by a given share."""

    side: int = Field(
        default=2048, ge=1, le=10**9, description="Faults of the random sample that comes first; whole blocks."
    )
    block: int = Field(default=512, ge=1, le=10**7, description="Faults that are chosen together.")
    drop: Annotated[float, BeforeValidator(_share)] | None = Field(
        default=None,
        description="Look for faults that lower the accuracy by this share of itself instead, such as `25%`, and tell "
        "how many draws that takes.",
    )
    scores: Annotated[Names, AfterValidator(_scores)] = Field(
        default=("uniform", "rising"),
        description="With `drop`: what draws faults, a campaign each: `uniform`, or a score as for `importance`.",
    )
    found: int = Field(default=1, ge=1, le=10**6, description="With `drop`: how many such faults end the campaign.")

    architecture: int | None = Field(
        default=None,
        ge=1,
        le=10**5,
        description="Search for architectures instead, so many in all: accurate, robust and cheap ones, of those that "
        "the model's factory builds from a trial of Optuna and the data.",
    )
    robustness: Literal["ra", "ra_sw", "mvf", "none"] = Field(
        default="ra",
        description="With `architecture`: what counts beside accuracy and MACs: `ra` (on `ra.accelerator`), `ra_sw` "
        "(the accuracy under a uniform bit flip), `mvf` (the share of these that change no answer), or `none`.",
    )
    epochs: int = Field(default=10, ge=1, le=10**5, description="With `architecture`: for how long each is trained.")

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.drop is not None and self.architecture is not None:
            raise ValueError("drop and architecture are two searches; give one of them")
        _need(self, "drop", ("scores", "found"))
        _need(self, "architecture", ("robustness", "epochs"))
        return self

    def build(self, made: Made) -> "Campaign":
        """Return the campaign; with a drop, that of the first of the scores."""
        if self.drop is not None:
            return self._of_drops(made, self.drop)
        from torchfault.recipes import search

        return search(
            made.engine,
            made.space,
            side=self.side,
            block=self.block,
            stop=made.stop,
            fault=made.fault,
            criterion=made.criterion,
            verdicts=made.verdicts,
            level=made.level,
            seed=made.seed,
        )

    def _of_drops(self, made: Made, drop: float) -> "Campaign":
        from torchfault.recipes import drops

        score = self.scores[0]
        kind = Uniform() if score == "uniform" else Importance(score=score, floor=_FLOOR)
        return drops(
            made.engine,
            made.space,
            drop=drop,
            found=self.found,
            sampler=kind.build(made),
            stop=made.stop,
            fault=made.fault,
            level=made.level,
            seed=made.seed,
        )


class Vulnerability(Section):
    """Find the vulnerability factors of channels, layers and the model."""

    share: Annotated[float, BeforeValidator(_share)] | None = Field(
        default=None,
        description="Take whole words from this share of each site's channels, as DeepVigor+: `10%`, `0.1`, or `all`. "
        "Without it faults are drawn in all channels, until each site is known within half a point or as `stop` says.",
    )
    weights: Words = Field(
        default=12,
        description="With `share`: words of each channel of parameters to take on each input: a number, `log2` or "
        "`all`.",
    )
    neurons: Words = Field(default="log2", description="Likewise, of each channel of activations.")
    fresh: bool = Field(
        default=True,
        description="With `share`: take other words for each input; without it, factors of single words are known.",
    )
    audit: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="With `share`: the part of the outcomes that follow from others to run all the same.",
    )

    @model_validator(mode="after")
    def _belong_to_words(self) -> Self:
        _need(self, "share", ("weights", "neurons", "fresh", "audit"))
        return self

    def build(self, made: Made) -> "Campaign":
        """Return the campaign: on the layers among the chosen sites, or where these are none on the sites."""
        from torchfault.recipes import economy, layer_space, vulnerability

        space = made.space
        with suppress(VulnerabilityError):
            space = layer_space(made.space)
        if self.share is None:
            return economy(
                made.engine,
                space,
                half_width=made.goals or {"site": _HALF_WIDTH},
                stop=made.stop,
                criterion=made.criterion,
                level=made.level,
                seed=made.seed,
            )
        return vulnerability(
            made.engine,
            space,
            share=None if self.share == 1 else self.share,
            weights=self.weights,
            neurons=self.neurons,
            fresh=self.fresh,
            audit=self.audit,
            criterion=made.criterion,
            stop=made.stop,
            level=made.level,
            seed=made.seed,
        )


class Ra(Section):
    """Find how accurate the model is, given that an upset struck the accelerator that runs it."""

    accelerator: str = Field(
        default="output-stationary",
        min_length=1,
        description="A shipped accelerator, or a YAML file that describes one.",
    )
    proposal: Literal["strata", "UNIFORM", "MAC", "IS", "IS-B"] = Field(
        default="strata",
        description="How upsets are drawn: from `strata` that a pilot tells, or by a published one: `UNIFORM`, `MAC`, "
        "`IS`, `IS-B`.",
    )
    harden: Names = Field(default=(), description="Types of flip-flops that are hardened.")
    buffer: Names = Field(
        default=(), description="Unprotected memories of inputs, weights or outputs, such as `weight=524288` (bits)."
    )
    flip_flops: int | None = Field(
        default=None,
        ge=1,
        le=10**15,
        description="All flip-flops of the chip, where its description does not count them.",
    )
    protect: Names = Field(
        default=(), description="Layers to protect in the what-if table; the worst three unless given."
    )

    def build(self, made: Made) -> "Campaign":
        """Return the campaign."""
        from torchfault.hardware.upset_space import as_upsets
        from torchfault.recipes import upsets

        campaign = upsets(
            made.engine,
            self.chip(),
            proposal=self.proposal,
            inputs_per_fault=made.inputs_per_fault,
            stop=made.stop,
            seed=made.seed,
            level=made.level,
        )
        for layer in self.protect:
            as_upsets(campaign.space).positions(layer)
        return campaign

    def chip(self) -> "Accelerator":
        """Return the accelerator that the keys describe, or raise :class:`HardwareError`."""
        from torchfault.hardware.accelerator import find_accelerator, hardened, with_buffer

        chip = find_accelerator(self.accelerator)
        chip = chip if self.flip_flops is None else replace(chip, flip_flops=self.flip_flops)
        for one in self.harden:
            chip = hardened(chip, one)
        for one in self.buffer:
            holds, _, bits = one.partition("=")
            if holds not in ("input", "weight", "output") or not bits.isdecimal() or not 0 < int(bits) < 2**62:
                raise HardwareError(f"buffer {one}: expected input, weight or output = bits, such as weight=524288")
            if chip.flip_flops is None:
                raise HardwareError(f"a buffer is weighed against the flip-flops of '{chip.name}'; give --flip-flops")
            share = int(bits) / chip.flip_flops * sum(part.share for part in chip.types)
            chip = with_buffer(chip, f"{holds} buffer", holds=holds, share=share)  # type: ignore[arg-type]
        return chip
