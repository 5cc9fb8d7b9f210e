"""The commands and their options; what they do stands in the modules beside this one."""

from pathlib import Path
from typing import Annotated, Any

import typer

import torchfault
from torchfault.cli.flags import configured
from torchfault.cli.screen import strays_aside
from torchfault.config import Settings

__all__ = ["app"]

app = typer.Typer(
    help="What does a neural network do when the hardware under it flips a bit?",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Store = Annotated[str, typer.Option("--store", metavar="FILE", help="The file (or URL) that keeps the campaigns.")]
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="The campaign; not needed where there is only one.")]
Level = Annotated[
    float | None, typer.Option(metavar="0.95", help="The confidence level; by itself the campaign's own.")
]
Interval = Annotated[
    str | None, typer.Option(metavar="wilson", help="The method of intervals: wilson, clopper-pearson or jeffreys.")
]
Grouping = Annotated[str, typer.Option(metavar="model|kind|layer|site|channel|bit", help="What each row stands for.")]
Format = Annotated[
    str,
    typer.Option(
        "--format", metavar="table|markdown|csv|json", help="How to write the table: all but the first in full."
    ),
]
Top = Annotated[int | None, typer.Option(metavar="N", min=1, help="Show only the N rows with the highest lower bound.")]
DEFAULT_STORE = "torchfault.db"


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"torchfault {torchfault.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """What does a neural network do when the hardware under it flips a bit?"""
    del version


@app.command()
def demo(
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where to save the plot: .png, .pdf or .svg.")] = Path(
        "torchfault-demo.png"
    ),
    trials: Annotated[int, typer.Option(metavar="N", min=100, help="How many faults to inject.")] = 20_000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="The seed of everything random.")] = 0,
) -> None:
    """See it work: a small CNN on handwritten digits, struck by bit flips."""
    from torchfault.cli.running import run_demo

    run_demo(output, trials=trials, seed=seed)


@app.command()
@configured("sites")
def sites(
    settings: Settings,
    form: Format = "table",
) -> None:
    """List the tensors in which faults can land, with their sizes."""
    from torchfault.cli.running import list_sites

    list_sites(settings, form)


@app.command()
@configured("plan")
def plan(
    settings: Settings,
    margin: Annotated[
        float, typer.Option(metavar="0.01", help="The error that each sample is large enough for.")
    ] = 0.01,
    speed: Annotated[
        float | None, typer.Option(metavar="N", help="Lanes per second; measured on a few unless given.")
    ] = None,
    form: Format = "table",
) -> None:
    """Tell what each method of statistical injection would cost, before it runs."""
    from torchfault.cli.planning import plan_campaigns

    plan_campaigns(settings, margin=margin, speed=speed, form=form)


@app.command()
@configured("ra")
def ra(
    settings: Settings,
    accelerator: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="A shipped accelerator, or a YAML file that describes one.")
    ] = "output-stationary",
    harden: Annotated[
        list[str] | None, typer.Option(metavar="TYPE", help="A type of flip-flop that is hardened; may be repeated.")
    ] = None,
    buffer: Annotated[
        list[str] | None,
        typer.Option(metavar="HOLDS=BITS", help="An unprotected memory, such as weight=524288; may be repeated."),
    ] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="A layer to protect in the what-if table; the worst three unless given."),
    ] = None,
    faults: Annotated[int, typer.Option(metavar="N", min=2, help="How many upsets to draw.")] = 3000,
    images: Annotated[int, typer.Option(metavar="N", min=0, help="Random inputs under each upset; 0 for all.")] = 1,
    estimator: Annotated[
        str, typer.Option(metavar="drop|UNIFORM|MAC|IS|IS-B|IS-B-drop", help="How upsets are drawn and weighed.")
    ] = "drop",
    flip_flops: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="All flip-flops, where the accelerator does not say.")
    ] = None,
    table: Annotated[
        str,
        typer.Option(metavar="summary|type|layer|bit|what-if", help="Which table formats other than 'table' write."),
    ] = "summary",
    form: Format = "table",
) -> None:
    """Tell how accurate a model is, given that an upset struck its accelerator."""
    from torchfault.cli.resiliency import show_resiliency

    show_resiliency(
        settings,
        accelerator=accelerator,
        harden=harden or (),
        buffers=buffer or (),
        protect=protect or (),
        faults=faults,
        images=images,
        estimator=estimator,
        flip_flops=flip_flops,
        table=table,
        form=form,
    )


@app.command()
@configured("vulnerability")
def vulnerability(
    settings: Settings,
    target: Annotated[str, typer.Option(metavar="weights|activations|both", help="What is struck.")] = "both",
    share: Annotated[str, typer.Option(metavar="10%", help="The channels of each layer to analyse.")] = "10%",
    complete: Annotated[bool, typer.Option("--complete", help="Analyse every channel.")] = False,
    weights: Annotated[
        str, typer.Option(metavar="N|log2|all", help="Weights of each filter to analyse on each input.")
    ] = "12",
    neurons: Annotated[
        str, typer.Option(metavar="N|log2|all", help="Words of each input channel to analyse on each input.")
    ] = "log2",
    layers: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Layers to analyse, by name; may be repeated.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="shape|per-image|exact|tails", help="A refinement to leave out; may be repeated."),
    ] = None,
    stored: Annotated[
        str | None, typer.Option(metavar="WORD", help="Think words stored in this format, such as int8.")
    ] = None,
    validate: Annotated[
        bool, typer.Option("--validate", help="Compare with injection into the same channels.")
    ] = False,
    by: Annotated[
        str,
        typer.Option(metavar="layer|channel|bit|model|plan|validation", help="The table, where a machine reads it."),
    ] = "layer",
    top: Annotated[
        int, typer.Option(metavar="N", min=1, help="How many of the most vulnerable channels to show.")
    ] = 10,
    form: Format = "table",
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Save a plot: .png, .pdf or .svg.")] = None,
    keep: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What keeps the analysis; by itself NAME.vulnerability.npz.")
    ] = None,
) -> None:
    """Tell how vulnerable each layer and channel is, by searching the changes that matter."""
    from torchfault.cli.vulnerability import Request, analyse_model

    request = Request(
        target=target,
        share=share,
        complete=complete,
        weights=weights,
        neurons=neurons,
        layers=tuple(layers or ()),
        without=tuple(without or ()),
        stored=stored,
        validate=validate,
        by=by,
        top=top,
        form=form,
        plot=plot,
        keep=keep,
    )
    analyse_model(settings, request)


@app.command()
@configured("run")
def run(settings: Settings) -> None:
    """Strike a model fault by fault; estimate how vulnerable it is."""
    from torchfault.cli.running import run_campaign

    run_campaign(settings)


@app.command()
@configured("search")
def search(
    settings: Settings,
    top: Annotated[int, typer.Option(metavar="N", min=0, help="List the N faults found last.")] = 10,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Save the curves: .png, .pdf or .svg.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write all faults found to a .csv file.")] = None,
    form: Format = "table",
) -> None:
    """Find as many faults that fail as possible, each struck once."""
    from torchfault.cli.searching import search_faults

    search_faults(settings, top=top, plot=plot, output=output, form=form)


@app.command()
def resume(
    name: Name = None,
    store: Store = DEFAULT_STORE,
    trials: Annotated[int | None, typer.Option(metavar="N", help="Stop after so many trials in all.")] = None,
    half_width: Annotated[float | None, typer.Option(metavar="0.01", help="Stop at this half-width.")] = None,
    time: Annotated[str | None, typer.Option(metavar="10m", help="Stop after so much time in all.")] = None,
    device: Annotated[str | None, typer.Option(metavar="cpu|cuda", help="Where to go on.")] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", help="CPU threads.")] = None,
    memory: Annotated[str | None, typer.Option(metavar="1GiB", help="The memory budget.")] = None,
    checkpoint: Annotated[str | None, typer.Option(metavar="FILE", help="Where the checkpoint lies now.")] = None,
    data: Annotated[str | None, typer.Option(metavar="FILE|FOLDER", help="Where the data lie now.")] = None,
) -> None:
    """Go on with a campaign that was interrupted, or extend one."""
    from torchfault.cli.running import resume_campaign

    given: dict[str, Any] = {"stop.trials": trials, "stop.half_width": half_width, "stop.time": time}
    given |= {"device": device, "threads": threads, "memory": memory, "checkpoint.path": checkpoint, "data.path": data}
    with strays_aside():
        resume_campaign(name, store, {key: value for key, value in given.items() if value is not None})


@app.command()
def show(
    name: Name = None,
    store: Store = DEFAULT_STORE,
    by: Grouping = "layer",
    form: Format = "table",
    top: Top = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Save a plot too: .png, .pdf or .svg.")] = None,
    level: Level = None,
    interval: Interval = None,
    diagnostics: Annotated[
        bool,
        typer.Option("--diagnostics", help="Show how the trials were spent: weights, allocation, warnings."),
    ] = False,
) -> None:
    """Show what a campaign found, by layer, site, channel, bit or kind."""
    from torchfault.cli.showing import show_campaign, show_diagnostics

    if diagnostics:
        show_diagnostics(name, store, form=form, level=level)
        return
    show_campaign(name, store, by=by, form=form, top=top, plot=plot, level=level, interval=interval)


@app.command()
def export(
    name: Name = None,
    store: Store = DEFAULT_STORE,
    output: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A .csv or .parquet file; by itself NAME.csv.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
) -> None:
    """Write every trial of a campaign to a CSV or Parquet file."""
    from torchfault.cli.showing import export_campaign

    export_campaign(name, store, output=output, force=force)
