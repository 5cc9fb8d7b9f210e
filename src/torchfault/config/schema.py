"""The settings of a campaign: every key, its type, its default and what it means; no torch needed."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from torchfault.config import notation
from torchfault.expressions import parse_criterion, parse_fault, parse_metric

__all__ = [
    "Checkpoint",
    "DataSource",
    "Model",
    "Sampler",
    "Section",
    "Selection",
    "Settings",
    "Shortcuts",
    "Stop",
]


def _checked(parse: Any) -> AfterValidator:
    """Keep the text as written once *parse* accepts it."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


_NARROWEST = 1e-7  # half-width: 1e14 trials

Patterns = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(strict=False)]
Numbers = Annotated[tuple[float, ...], Field(strict=False)]
Words = dict[str, Any]


class Section(BaseModel):
    """A mapping with known keys, of the very types asked for."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Model(Section):
    """The network under test."""

    factory: str = Field(
        min_length=1,
        description="What builds the model: `package.module:factory`, `torchvision:NAME`, `timm:NAME` or `hf:NAME`.",
    )
    kwargs: Words = Field(default_factory=dict, description="Keyword arguments of the factory.")
    pretrained: bool = Field(
        default=False,
        description="Let torchvision, timm or Hugging Face download their weights. Nothing is downloaded otherwise.",
    )


class Checkpoint(Section):
    """Trained weights."""

    path: Path = Field(
        strict=False,
        description="A file written by `torch.save` (read with `weights_only`) or a `.safetensors` file.",
    )
    key: str | None = Field(
        default=None,
        description="Where the weights stand in the file, such as `state_dict`; parts separated by dots. Found by "
        "itself where the name is a common one.",
    )
    prefix: str | None = Field(
        default=None,
        description="What every name in the file begins with and the model's do not, such as `module.`. Found by "
        "itself where it is a common one.",
    )


class DataSource(Section):
    """The inputs, and labels where there are any: exactly one of `path`, `factory` and `shape`."""

    path: Path | None = Field(
        default=None, strict=False, description="An `.npz` file, or a folder of images with one sub-folder per class."
    )
    factory: Annotated[str, AfterValidator(notation.check_imported)] | None = Field(
        default=None,
        description="`package.module:factory` that returns `torchfault.data.Data`, a data set of (input, label) "
        "pairs, an (inputs, labels) pair, or inputs alone.",
    )
    shape: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=1)] | None = Field(
        default=None,
        description="Make random inputs of this shape (without the batch axis) from the seed: for counting sites "
        "and for speed; they have no labels.",
    )
    kwargs: Words = Field(default_factory=dict, description="Keyword arguments of the factory.")
    inputs: str | None = Field(
        default=None, description="The array of inputs in an `.npz` file: by itself `inputs`, `images`, `x` or `data`."
    )
    labels: str | None = Field(
        default=None, description="The array of labels in an `.npz` file: by itself `labels`, `targets` or `y`, if any."
    )
    mean: Numbers = Field(default=(), description="Subtracted from each channel, once images are scaled to 0..1.")
    std: Numbers = Field(default=(), description="What each channel is then divided by.")
    size: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False, min_length=2, max_length=2)] | None = (
        Field(default=None, description="Height and width to which the images of a folder are scaled.")
    )
    grey: bool = Field(default=False, description="Read the images of a folder with one channel instead of three.")
    limit: int | None = Field(
        default=None,
        ge=1,
        le=10**12,
        description="Use the first so many inputs only (of a folder: classes taken in turn).",
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = [name for name in ("path", "factory", "shape") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of path, factory and shape, got {' and '.join(given) or 'none'}")
        if self.kwargs and self.factory is None:
            raise ValueError("kwargs belong to a factory, and there is none; remove them")
        if bool(self.mean) != bool(self.std):
            raise ValueError("mean and std belong together; give both or neither")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std need one number per channel, got {len(self.mean)} and {len(self.std)}")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"std needs numbers above 0, got {min(self.std):g}")
        return self


class Selection(Section):
    """A choice of sites: those that pass all of its filters. Several choices are united."""

    include: Patterns = Field(
        default=("*",), description="Site names to take: globs such as `layer1.*`, or regular expressions after `re:`."
    )
    exclude: Patterns = Field(default=(), description="Site names to leave out, written alike.")
    kinds: Patterns = Field(
        default=(),
        description="Kinds to take: `weight`, `bias`, `norm`, `buffer`, `data` (the inputs of the model), `input`, "
        "`output`; all unless given.",
    )
    types: Patterns = Field(default=(), description="Module types to take, such as `Conv2d`; globs; all unless given.")
    bits: Annotated[tuple[int | str, ...], BeforeValidator(notation.parse_bits), Field(strict=False)] = Field(
        default=(),
        description="Bits to take: positions, ranges such as `23-30`, or fields `sign`, `exponent`, `mantissa`, "
        "`magnitude`; all unless given.",
    )
    steps: Annotated[tuple[int, int] | None, BeforeValidator(notation.parse_steps)] = Field(
        default=None,
        description="Time steps to take in sites that have them: `5`, or a range such as `3:7` (steps 3 to 6); all "
        "unless given.",
    )


class Sampler(Section):
    """How faults are drawn."""

    kind: Literal[
        "uniform",
        "exhaustive",
        "bit-error-rate",
        "network-wise",
        "layer-wise",
        "data-unaware",
        "data-aware",
        "adaptive",
        "importance",
        "learned",
        "deviation",
        "search",
    ] = Field(
        default="uniform",
        description="`uniform` draws faults at random, `exhaustive` takes every fault on every input, `bit-error-rate` "
        "strikes each bit with probability `rate`; statistical injection draws samples of a fixed size without "
        "replacement: `network-wise`, `layer-wise` (each site), `data-unaware` (each bit of each site), `data-aware` "
        "(likewise, fewer where the weights tell that a bit matters less); `adaptive` draws where the outcomes so far "
        "leave most doubt, until every interval asked for is narrow enough; `importance` draws in "
        "proportion to a `score` of the faults, and `learned` corrects the score by the outcomes so far; `deviation` "
        "like `adaptive`, from strata of how far a flip moves its word and of how sure its input is; `search` finds as "
        "many faults that fail as it can.",
    )
    faults: int | None = Field(
        default=None, ge=1, le=10_000, description="With `uniform`: faults struck together per trial (1)."
    )
    rate: float | None = Field(
        default=None, ge=1e-18, le=1, description="With `bit-error-rate`: the probability that a bit is struck."
    )
    margin: float | None = Field(
        default=None,
        ge=1e-6,
        lt=1,
        description="With statistical injection: the error that each sample is large enough for, at 95 % (0.01).",
    )
    whole: float | None = Field(
        default=None,
        ge=_NARROWEST,
        lt=0.5,
        description="With `adaptive` and `deviation`: the half-width to reach for all faults together.",
    )
    site: float | None = Field(
        default=None,
        ge=_NARROWEST,
        lt=0.5,
        description="With `adaptive` and `deviation`: the half-width to reach for each site.",
    )
    bit: float | None = Field(
        default=None,
        ge=_NARROWEST,
        lt=0.5,
        description="With `adaptive`: the half-width to reach for each bit position.",
    )

    score: Annotated[str, Field(pattern=r"^(effect|joint|rising|[GELR]B[IR]N)$")] | None = Field(
        default=None,
        description="With `importance`: `effect` (first-order effect on the margin; the default), `joint` (sensitivity "
        "times derivative by the bit), `rising` (sensitive elements that become very large), or a code of ISimDL such "
        "as `GBIN` (Gradient, Exponential, Linear or Random bit; Important or Random neuron).",
    )
    floor: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="With `importance`: the share of trials that are drawn uniformly (0.5); with 0 some faults may be "
        "out of reach.",
    )
    images: int | None = Field(
        default=None, ge=1, le=10**12, description="With `importance`: the number of inputs from which scores come (8)."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.kind == "bit-error-rate" and self.rate is None:
            raise ValueError("kind bit-error-rate needs a rate, such as rate: 1e-7")
        if self.kind != "bit-error-rate" and self.rate is not None:
            raise ValueError(f"a rate goes with kind bit-error-rate, got kind {self.kind}; remove one of them")
        if self.kind != "uniform" and self.faults is not None:
            raise ValueError(f"faults goes with kind uniform, got kind {self.kind}; remove one of them")
        if self.margin is not None and not self.is_statistical:
            raise ValueError(f"a margin goes with statistical kinds, got kind {self.kind}; use kind: layer-wise")
        widths = [h for h in (self.whole, self.site, self.bit) if h is not None]
        if self.is_adaptive and not widths:
            raise ValueError(f"kind {self.kind} needs a half-width to reach, such as site: 0.01")
        if not self.is_adaptive and widths:
            raise ValueError(f"whole, site and bit go with kind adaptive, got kind {self.kind}; remove them")
        if self.kind not in ("importance", "learned") and any(
            one is not None for one in (self.score, self.floor, self.images)
        ):
            raise ValueError(
                f"score, floor and images go with kinds importance and learned, got kind {self.kind}; remove them"
            )
        if self.kind == "deviation" and self.bit is not None:
            raise ValueError("kind deviation reaches half-widths of whole and site; use kind adaptive for bits")
        return self

    @property
    def is_adaptive(self) -> bool:
        """Whether the sampler ends by itself, once intervals are narrow enough."""
        return self.kind in ("adaptive", "deviation")

    @property
    def is_statistical(self) -> bool:
        """Whether samples have a size that is fixed beforehand."""
        return self.kind in ("network-wise", "layer-wise", "data-unaware", "data-aware")


class Shortcuts(Section):
    """Ways to know the outcome of a trial without a lane of its own, under an assumption that is audited."""

    pool: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="Strike quiet faults together, at most so many per lane: a masked pool counts for all of them, a "
        "failing one is searched; assumes that errors do not cancel. 0: no pools.",
    )
    monotone: bool = Field(
        default=False,
        description="Let a masked flip vouch for the smaller flips of its word on the same input in the same "
        "direction, and a failing one for the larger ones.",
    )
    audit: float = Field(
        default=0.01, ge=0, le=1, description="The share of outcomes that others vouch for to run alone all the same."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.pool == 1:
            raise ValueError("a pool is 2 faults or more, got 1; use 0 for none")
        return self


class Stop(Section):
    """When the campaign ends: as soon as one of the rules is met. 10,000 trials unless a rule is given."""

    trials: int | None = Field(default=None, ge=1, le=10**15, description="Stop after so many trials.")
    half_width: float | None = Field(
        default=None,
        ge=_NARROWEST,
        lt=0.5,
        description="Stop once the interval of the whole is at most this far to either side.",
    )
    time: Annotated[float, BeforeValidator(notation.parse_seconds)] | None = Field(
        default=None, description="Stop after so much time: seconds, or text such as `90s`, `10m`, `1h30m`."
    )


class Settings(Section):
    """A campaign."""

    name: Annotated[str, Field(pattern=r"^[\w][\w.+-]*$", max_length=100)] | None = Field(
        default=None,
        description="The campaign's name in the store: letters, digits and `. _ + -`; by itself that of "
        "the configuration file, or of the model.",
    )
    model: Model = Field(description="The network under test; a text alone means its `factory`.")
    checkpoint: Checkpoint | None = Field(default=None, description="Trained weights; a text alone means their `path`.")
    storage: str | dict[str, str] | None = Field(
        default=None,
        description="How weights are kept, in a copy of the model: `int8`, `uint8`, `int4:32`, `bfp8:16`, `q3.12`, "
        "`e4m3`, `coo`, `csr`, `bsr:4x4`, ... for all of them, or a mapping of globs of parameters to these.",
    )
    activations: str | dict[str, str] | None = Field(
        default=None,
        description="How activations are kept, in the same copy: `q7.8`, `e4m3`, `bfloat16`, `bfp8:16`, `int8` (with "
        "the range that they have on the data), ... for the inputs and outputs of all layers with weights, or a "
        "mapping of globs such as `conv*:output` to these.",
    )
    data: DataSource = Field(description="Inputs and labels; a text alone means their `path` or `factory`.")
    sites: Annotated[tuple[Selection, ...], Field(strict=False, min_length=1)] = Field(
        default=(Selection(),),
        description="Where faults may land: a choice, or a list of choices that are united; every site unless given.",
    )
    fault: Annotated[str, _checked(parse_fault)] = Field(
        default="flip",
        description="How a struck word changes: `flip`, `stuck-at-0`, `stuck-at-1`, `random-word`, `burst:K` (K "
        "adjacent bits), `value:V`, `dead` and `saturated` (a neuron that never or always spikes, from its time step "
        "on), or `package.module:name` of a fault model.",
    )
    lasting: Annotated[int | Literal["end"] | None, BeforeValidator(notation.parse_lasting)] = Field(
        default=None,
        description="How long a fault stays in a site with time steps: `end` (permanent), or a number of steps; one "
        "step unless given.",
    )
    sampler: Sampler = Field(default=Sampler(), description="How faults are drawn; a text alone means its `kind`.")
    shortcuts: Shortcuts | None = Field(
        default=None, description="Find outcomes with fewer lanes than trials, by pools and monotone closure."
    )
    criterion: Annotated[str, _checked(parse_criterion)] | None = Field(
        default=None,
        description="What counts as a failure; by itself what fits the outputs. `top1` (the predicted class changes), "
        "`topk:K` (the golden class leaves the first K), `misclassified` (wrong by the label), `margin:X` (the margin "
        "drops by X), `error:X` (relative output error above X), `threshold:X` (a value changes sides), `tokens` (a "
        "generated token changes), `non-finite`, `boxes:X` and `masks:X` (a box, the masks overlap the golden ones by "
        "less than X), `perplexity:X` (rises beyond X times), `spike-count` and `first-spike` (another neuron spikes "
        "most often, or first), or `package.module:name`; joined by `&`, `|`, `~` and parentheses. Options follow by "
        "name: `top1:output=logits,axis=-1`.",
    )
    metric: Annotated[str, _checked(parse_metric)] | None = Field(
        default=None,
        description="Run every trial on the whole data set and record the drop of this metric: `accuracy`, "
        "`perplexity`, `mean-iou:CLASSES`, or `package.module:name`; with options by name: `perplexity:shift=1`, "
        "`accuracy:threshold=0`.",
    )
    stop: Stop = Field(default=Stop(), description="When the campaign ends; a number alone means its `trials`.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="The seed of everything random.")
    level: Annotated[float, AfterValidator(notation.check_level)] = Field(
        default=0.95, description="The confidence level of intervals."
    )
    interval: Literal["wilson", "clopper-pearson", "jeffreys"] = Field(
        default="wilson", description="The method of intervals."
    )
    executor: Literal["auto", "graph", "hooks"] = Field(
        default="auto", description="How lanes run: `graph` (fast), `hooks` (any module), or `auto`: graph if it can."
    )
    memory: Annotated[int, BeforeValidator(notation.parse_bytes)] = Field(
        default=2**30,
        description="The memory budget of the golden cache and of the lanes: bytes, or text such as `256MiB`.",
    )
    device: str = Field(default="cpu", min_length=1, description="Where the model runs: `cpu`, `cuda`, `cuda:1`, ...")
    threads: int | None = Field(
        default=None, ge=1, le=4096, description="CPU threads; torch's own choice unless given."
    )
    training: bool = Field(default=False, description="Keep batch norm and dropout in training mode.")
    buffers: bool = Field(default=False, description="Count buffers, such as running means, among the sites.")
    store: str = Field(
        default="torchfault.db",
        min_length=1,
        description="What keeps trials and outcomes: an SQLite file, by itself `torchfault.db` in the working "
        "directory, or the URL of another database.",
    )
