"""The settings of a campaign: every key, its type, its default and what it means; no torch needed."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from torchfault.config import notation
from torchfault.config.recipes import Ra, Search, Vulnerability
from torchfault.config.resolvers import AnyResolver
from torchfault.config.samplers import AnySampler, Uniform
from torchfault.config.section import Names, Section, listed
from torchfault.expressions import beside_metric, parse_criterion, parse_fault, parse_metric

__all__ = ["RECIPES", "Checkpoint", "DataSource", "Generation", "Model", "Selection", "Settings", "Stop"]

RECIPES = ("run", "search", "vulnerability", "ra")
_FIXED = (  # what a search for architectures decides by itself
    *("checkpoint", "storage", "activations", "sites", "fault", "lasting", "sampler", "resolver", "criterion"),
    *(
        "generation",
        "verdicts",
        "metric",
        "inputs_per_fault",
        "stop",
        "executor",
        "device",
        "workers",
        "training",
        "buffers",
        "monitor",
    ),
)


def _checked(parse: Any) -> AfterValidator:
    """Keep the text as written once *parse* accepts it."""

    def check(text: str) -> str:
        parse(text)
        return text

    return AfterValidator(check)


def _every(value: object) -> object:
    return None if value == "all" else value


def _measure(text: str) -> str:
    return text if text == "uniform" else notation.check_imported(text)


Numbers = Annotated[tuple[float, ...], Field(strict=False)]
Words = dict[str, Any]
Size = Annotated[int, Field(ge=1, le=2**31)]


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


class Generation(Section):
    """How a causal language model continues texts."""

    tokens: int = Field(
        ge=1,
        le=2**16,
        description="Let a causal language model continue each text greedily, by so many tokens. Activations are then "
        "struck at one step of it: `sites.steps` chooses which, 0 for the prefill.",
    )
    end: int | None = Field(default=None, ge=0, description="The token behind which there is nothing but `pad`.")
    pad: int = Field(default=0, ge=0, description="The token for padding.")


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
    shape: Annotated[tuple[Annotated[int, Field(ge=1, le=2**31)], ...], Field(strict=False, min_length=1)] | None = (
        Field(
            default=None,
            description="Make random inputs of this shape (without the batch axis) from the seed: for counting sites "
            "and for speed; they have no labels.",
        )
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
    size: (
        Annotated[tuple[Annotated[int, Field(ge=1, le=2**16)], ...], Field(strict=False, min_length=2, max_length=2)]
        | None
    ) = Field(default=None, description="Height and width to which the images of a folder are scaled.")
    grey: bool = Field(default=False, description="Read the images of a folder with one channel instead of three.")
    limit: int | None = Field(
        default=None,
        ge=1,
        le=2**31,
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

    include: Names = Field(
        default=("*",), description="Site names to take: globs such as `layer1.*`, or regular expressions after `re:`."
    )
    exclude: Names = Field(default=(), description="Site names to leave out, written alike.")
    kinds: Names = Field(
        default=(),
        description="Kinds to take: `weight`, `bias`, `norm`, `buffer`, `data` (the inputs of the model), `input`, "
        "`output`; all unless given.",
    )
    types: Names = Field(default=(), description="Module types to take, such as `Conv2d`; globs; all unless given.")
    bits: Annotated[tuple[int | str, ...], BeforeValidator(notation.parse_bits), Field(strict=False)] = Field(
        default=(),
        description="Bits to take: positions, ranges such as `23-30`, or fields `sign`, `exponent`, `mantissa`, "
        "`magnitude`; all unless given.",
    )
    steps: Annotated[tuple[int, int] | None, BeforeValidator(notation.parse_steps)] = Field(
        default=None,
        description="Time steps to take in sites that have them: `5`, or a range such as `3:7` (steps 3 to 6); all "
        "unless given. With `generation`, steps of it.",
    )


class Stop(Section):
    """When the campaign ends: as soon as one of the rules is met. 10,000 trials unless a rule is given."""

    trials: int | None = Field(default=None, ge=1, le=10**15, description="Stop after so many trials.")
    half_width: Annotated[
        dict[str, Annotated[float, Field(ge=1e-7, lt=0.5)]], BeforeValidator(notation.parse_widths)
    ] = Field(
        default_factory=dict,
        description="Stop once intervals are at most this far to either side: of the model (`0.01`), or by a grouping "
        "such as `site=0.01`, `layer=0.01`, `bit=0.01`; of several all have to be reached.",
    )
    time: Annotated[float, BeforeValidator(notation.parse_seconds)] | None = Field(
        default=None, description="Stop after so much time: seconds, or text such as `90s`, `10m`, `1h30m`."
    )


class Settings(Section):
    """A campaign, of any recipe."""

    name: Annotated[str, Field(pattern=r"^[\w][\w.+-]*$", max_length=100)] | None = Field(
        default=None,
        description="The campaign's name in the store: letters, digits and `. _ + -`; by itself that of "
        "the configuration file, or of the model, with the recipe behind it unless that is `run`.",
    )
    recipe: Literal["run", "search", "vulnerability", "ra"] = Field(
        default="run",
        description="What to do: `run` (strike faults as `sampler` draws them), `search`, `vulnerability` or `ra`, "
        "each with a section below; the commands of these names go before it.",
    )
    model: Model = Field(description="The network under test; a text alone means its `factory`.")
    checkpoint: Checkpoint | None = Field(default=None, description="Trained weights; a text alone means their `path`.")
    generation: Generation | None = Field(
        default=None, description="Greedy generation; a number alone means its `tokens`. None unless given."
    )
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
    sampler: AnySampler = Field(
        default=Uniform(),
        description="How faults are drawn: a kind, or a kind with its keys, as in `layer-wise:margin=0.02` (commas "
        "between them); a value without a name is that of the kind's first key, as in `bit-error-rate:1e-6`.",
    )
    measure: Annotated[str, AfterValidator(_measure)] = Field(
        default="uniform",
        description="How likely each fault is: `uniform`, or `package.module:name` of a measure of your own.",
    )
    resolver: Annotated[tuple[AnyResolver, ...], BeforeValidator(listed), Field(strict=False)] = Field(
        default=(),
        description="How outcomes become known with fewer lanes than trials, by proof or under assumptions that are "
        "audited: kinds written as those of samplers, the outermost first, as in `[pooled:64, monotone]`; each trial "
        "has a lane of its own unless given.",
    )
    criterion: Annotated[str, _checked(parse_criterion)] | None = Field(
        default=None,
        description="What counts as a failure; by itself what fits the outputs. `top1` (the predicted class changes), "
        "`topk:K` (the golden class leaves the first K), `misclassified` (wrong by the label), `margin:X` (the margin "
        "drops by X), `error:X` (relative output error above X), `threshold:X` (a value changes sides), `tokens` (a "
        "generated token changes), `non-finite`, `boxes:X` and `masks:X` (a box, the masks overlap the golden ones by "
        "less than X), `perplexity:X` (rises beyond X times), `spike-count` and `first-spike` (another neuron spikes "
        "most often, or first), or `package.module:name`; joined by `&`, `|`, `~` and parentheses. Options follow by "
        "name, with commas between them: `top1:axis=-1`.",
    )
    verdicts: dict[
        Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=40)], Annotated[str, _checked(parse_criterion)]
    ] = Field(
        default_factory=dict,
        description="Further criteria to record of each trial, by names of yours: `{wrong: misclassified}`; tables by "
        "`--flag wrong`.",
    )
    metric: Annotated[str, _checked(parse_metric)] | None = Field(
        default=None,
        description="Run every trial on the whole data set and record the drop of this metric: `accuracy`, "
        "`perplexity`, `mean-iou:CLASSES`, or `package.module:name`; with options by name: `perplexity:shift=1`, "
        "`accuracy:threshold=0`.",
    )
    inputs_per_fault: Annotated[Size | None, BeforeValidator(_every)] = Field(
        default=1, description="On how many random inputs each drawn fault runs; `all` for every one."
    )
    monitor: bool = Field(
        default=False, description="Watch every lane on its way, and record how far its error came; lanes are dearer."
    )
    stop: Stop = Field(default=Stop(), description="When the campaign ends; a number alone means its `trials`.")
    search: Search = Field(default=Search(), description="What goes with the recipe `search`.")
    vulnerability: Vulnerability = Field(
        default=Vulnerability(), description="What goes with the recipe `vulnerability`."
    )
    ra: Ra = Field(default=Ra(), description="What goes with the recipe `ra`.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="The seed of everything random.")
    level: Annotated[float, AfterValidator(notation.check_level)] = Field(
        default=0.95, description="The confidence level of intervals."
    )
    method: Literal["wilson", "clopper-pearson", "jeffreys"] = Field(
        default="wilson", description="The method of intervals: `wilson`, `clopper-pearson` or `jeffreys`."
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
        default=None, ge=1, le=4096, description="CPU threads; torch's own choice unless given. Of workers, of each."
    )
    workers: int = Field(
        default=0,
        ge=0,
        le=100_000,
        description="How many workers run the lanes, with the same results: processes of this machine, unless "
        "`cluster` says otherwise; 0 for this process alone. Each holds the model and `memory` of its own.",
    )
    cluster: str | None = Field(
        default=None,
        min_length=1,
        description="Where workers run: `local` (Ray, started here), `slurm`, or the address of a Ray cluster, such as "
        "`auto` or `ray://head:10001`.",
    )
    gpus_per_worker: float = Field(default=0, ge=0, le=64, description="GPUs that the cluster gives each worker.")
    training: bool = Field(default=False, description="Keep batch norm and dropout in training mode.")
    buffers: bool = Field(default=False, description="Count buffers, such as running means, among the sites.")
    store: str = Field(
        default="torchfault.db",
        min_length=1,
        description="What keeps trials and outcomes: an SQLite file, by itself `torchfault.db` in the working "
        "directory, or the URL of another database.",
    )

    @property
    def looks_for_drops(self) -> bool:
        """Whether this is a search for faults that lower the accuracy by a share."""
        return self.recipe == "search" and self.search.drop is not None

    def searches(self) -> "dict[str, Settings]":
        """Return the settings of a search for each of its scores, by their names; their campaigns have these too."""
        return {
            score: self.model_copy(
                update={"name": f"{self.name}-{score}", "search": self.search.model_copy(update={"scores": (score,)})}
            )
            for score in self.search.scores
        }

    @model_validator(mode="after")
    def _has_goals(self) -> Self:
        if self.recipe == "run" and self.sampler.kind == "adaptive" and not self.stop.half_width:
            raise ValueError("sampler adaptive draws towards half-widths, got none; give --half-width site=0.01")
        return self

    @model_validator(mode="after")
    def _trains_its_own(self) -> Self:
        if self.recipe == "search" and self.search.architecture is not None:
            fields = type(self).model_fields
            idle = [
                name for name in _FIXED if getattr(self, name) != fields[name].get_default(call_default_factory=True)
            ]
            if idle:
                raise ValueError(
                    "a search for architectures trains and strikes networks of its own, so that "
                    f"{' and '.join(idle)} would have no say; leave that out"
                )
        return self

    @model_validator(mode="after")
    def _metric_alone(self) -> Self:
        if (self.recipe == "run" and self.metric is not None) or self.looks_for_drops:
            conflict = beside_metric(
                criterion=self.criterion is not None,
                verdicts=bool(self.verdicts),
                inputs_per_fault=self.inputs_per_fault not in (1, None),
            )
            if conflict:
                raise ValueError(conflict)
        return self
