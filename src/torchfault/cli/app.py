"""The commands and their options; what they do stands in the modules beside this one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

import torchfault
from torchfault.cli.examples import epilog
from torchfault.cli.flags import begun, configured, resumed
from torchfault.cli.valueless import Command, Commands
from torchfault.config import Override, Settings

__all__ = ["app"]

app = typer.Typer(
    cls=Commands,
    help="What does a neural network do when the hardware under it flips a bit?",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
_SHOWN = "Results"

Store = Annotated[str, typer.Option("--store", metavar="FILE", help="The file (or URL) that keeps the campaigns.")]
Name = Annotated[str | None, typer.Argument(metavar="NAME", help="The campaign; not needed where there is only one.")]
By = Annotated[
    str | None,
    typer.Option(
        metavar="layer|site|channel|bit|...",
        help="The table to show: what each row stands for. Another name lists what there is.",
        rich_help_panel=_SHOWN,
    ),
]
FlagOf = Annotated[
    str,
    typer.Option(
        "--flag",
        metavar="failed|due|...",
        help="The outcome that tables and plots are about: failed, due, crash, or a verdict of the configuration.",
        rich_help_panel=_SHOWN,
    ),
]
Top = Annotated[
    int | None,
    typer.Option(metavar="N", min=1, help="Only the N rows with the highest lower bounds.", rich_help_panel=_SHOWN),
]
Format = Annotated[
    str,
    typer.Option(
        "--format",
        metavar="table|markdown|latex|csv|json",
        help="How to write the table: all but the first in full.",
        rich_help_panel=_SHOWN,
    ),
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Save a plot too: .png, .pdf or .svg.", rich_help_panel=_SHOWN)
]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that exists.", rich_help_panel=_SHOWN)]
Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object on standard output, for programs, and nothing else there.")
]
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


def _command(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return app.command(name, cls=Command, epilog=epilog(name))


@_command("demo")
def demo(
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to save the plot; by itself torchfault-demo.png.")
    ] = None,
    trials: Annotated[int, typer.Option(metavar="N", min=100, max=10**9, help="How many faults to inject.")] = 20_000,
    seed: Annotated[int, typer.Option(metavar="N", min=0, max=2**63 - 1, help="The seed of everything random.")] = 0,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """See it work: a small CNN on handwritten digits, struck by bit flips."""
    from torchfault.cli.running import run_demo

    run_demo(plot, trials=trials, seed=seed, force=force, as_json=as_json)


@_command("doctor")
def doctor(as_json: Json = False) -> None:
    """Look at this installation, and check the engine against its reference: exit status 3 where something is wrong."""
    from torchfault.cli.doctor import examine

    examine(as_json=as_json)


@_command("init")
@begun
def init(
    settings: Settings,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The configuration file to write.")
    ] = Path("torchfault.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
    as_json: Json = False,
) -> None:
    """Look at a model and write a commented configuration for it."""
    from torchfault.cli.init import write_configuration

    write_configuration(settings, output, force=force, as_json=as_json)


@_command("sites")
@configured("sites")
def sites(settings: Settings, form: Format = "table", as_json: Json = False) -> None:
    """List the tensors in which faults can land, with their sizes."""
    from torchfault.cli.sites import list_sites

    list_sites(settings, form, as_json=as_json)


@_command("plan")
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
    as_json: Json = False,
) -> None:
    """Tell what each method of statistical injection would cost, before it runs."""
    from torchfault.cli.sites import plan_campaigns

    plan_campaigns(settings, margin=margin, speed=speed, form=form, as_json=as_json)


def _recipe(name: str, purpose: str) -> Callable[..., None]:
    """Return the command that runs campaigns of a recipe."""

    def command(
        settings: Settings,
        by: By = None,
        flag: FlagOf = "failed",
        top: Top = None,
        form: Format = "table",
        plot: Plot = None,
        force: Force = False,
        as_json: Json = False,
    ) -> None:
        from torchfault.cli.running import run_campaign
        from torchfault.cli.views import Wanted

        run_campaign(settings, Wanted(by=by, flag=flag, top=top, form=form, plot=plot, force=force, as_json=as_json))

    command.__name__, command.__doc__ = name, purpose
    return configured(name)(command)


for _name, _purpose in (
    ("run", "Strike a model fault by fault; estimate how vulnerable it is."),
    ("search", "Find as many faults that fail as possible, each struck once."),
    ("vulnerability", "Tell how vulnerable each layer and channel is."),
    ("ra", "Tell how accurate a model is, given that an upset struck its accelerator."),
):
    _command(_name)(_recipe(_name, _purpose))


@_command("harden")
@configured("harden")
def harden(
    settings: Settings,
    method: Annotated[
        list[str],
        typer.Option(
            metavar="ranges|invariant-bits|...",
            help="How to harden, such as ranges:channel; may be repeated. Another name lists what there is.",
        ),
    ],
    trials: Annotated[int, typer.Option(metavar="N", min=1, max=10**9, help="Faults of each kind, in both.")] = 2000,
    known: Annotated[
        float, typer.Option(metavar="0.5", help="The share of the inputs that golden ranges come from.")
    ] = 0.5,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where to save the hardened model.")] = Path(
        "hardened.safetensors"
    ),
    form: Format = "table",
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Protect a model, and tell what that gains and costs by the same faults before and after."""
    from torchfault.cli.hardened import harden_model

    harden_model(settings, method, trials=trials, known=known, output=output, form=form, force=force, as_json=as_json)


@_command("resume")
@resumed
def resume(
    overrides: list[Override],
    name: Name = None,
    store: Store = DEFAULT_STORE,
    trust: Annotated[
        bool, typer.Option("--trust", help="Import and run what the store names, though you did not begin it here.")
    ] = False,
    by: By = None,
    flag: FlagOf = "failed",
    top: Top = None,
    form: Format = "table",
    plot: Plot = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Go on with a campaign that was interrupted, or extend one."""
    from torchfault.cli.running import resume_campaign
    from torchfault.cli.views import Wanted

    wanted = Wanted(by=by, flag=flag, top=top, form=form, plot=plot, force=force, as_json=as_json)
    resume_campaign(name, store, overrides, wanted, trust=trust)


@_command("show")
def show(
    name: Name = None,
    store: Store = DEFAULT_STORE,
    by: By = None,
    flag: FlagOf = "failed",
    top: Top = None,
    form: Format = "table",
    plot: Plot = None,
    force: Force = False,
    level: Annotated[
        float | None, typer.Option(metavar="0.95", help="The confidence level; by itself the campaign's own.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(metavar="wilson", help="The method of intervals: wilson, clopper-pearson or jeffreys."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a campaign found: by layer, site, channel, bit, or as its recipe tells."""
    from torchfault.cli.showing import show_campaign
    from torchfault.cli.views import Wanted

    shown = Wanted(by=by, flag=flag, top=top, form=form, plot=plot, force=force, as_json=as_json)
    wanted = replace(shown, level=level, method=method)
    show_campaign(name, store, wanted)


@_command("status")
def status(
    name: Name = None,
    store: Store = DEFAULT_STORE,
    every: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Look again so often, until no campaign runs any more.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell how far the campaigns of a store are, also while they run."""
    from torchfault.cli.status import show_status

    show_status(name, store, every=every, as_json=as_json)


@_command("protect")
def protect(
    budget: Annotated[str, typer.Option(metavar="1%", help="The share of all bits that may be protected.")],
    name: Name = None,
    store: Store = DEFAULT_STORE,
    by: Annotated[
        list[str] | None,
        typer.Option(
            metavar="layer|site|channel|word|bit",
            help="What is protected together; may be repeated. By itself each bit of a site.",
        ),
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Take the best ratio again and again, instead of the best choice.")
    ] = False,
    level: Annotated[float, typer.Option(metavar="0.95", help="The confidence level of each bound.")] = 0.95,
    form: Format = "table",
    as_json: Json = False,
) -> None:
    """Choose what to protect for a budget, from what a campaign found, and bound what is left."""
    from torchfault.cli.protecting import choose

    choose(name, store, tuple(by or ("site", "bit")), budget, exact=not greedy, level=level, form=form, as_json=as_json)


@_command("export")
def export(
    name: Name = None,
    store: Store = DEFAULT_STORE,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="A .csv or .parquet file; by itself NAME.csv.")
    ] = None,
    flag: Annotated[
        str | None, typer.Option(metavar="failed|due|...", help="Only the trials with this outcome.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write every trial of a campaign to a CSV or Parquet file."""
    from torchfault.cli.showing import export_campaign

    export_campaign(name, store, output=output, flag=flag, force=force, as_json=as_json)


@_command("evidence")
def evidence(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="The campaigns; none where there is only one.")
    ] = None,
    store: Store = DEFAULT_STORE,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="The folder to write, with JSON and a spreadsheet.")
    ] = Path("evidence"),
    check: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Recompute a pack from the store: exit status 3 if it differs."),
    ] = None,
    confidence: Annotated[float, typer.Option(metavar="0.95", help="The confidence of each one-sided bound.")] = 0.95,
    detector: Annotated[
        str | None,
        typer.Option(
            metavar="due|VERDICT", help="What a detector tells: due (NaN, infinity, exceptions) or a verdict."
        ),
    ] = None,
    fit_per_mbit: Annotated[
        list[str] | None,
        typer.Option(metavar="[KIND=]FIT", help="Raw FIT per Mbit (2^20 bits) of a kind or glob of sites; repeatable."),
    ] = None,
    flip_flops: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="All flip-flops of the chip, for campaigns of upsets.")
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write rows for an FMEDA, with bounds and a trace to the trials; or check such a folder."""
    from torchfault.cli.evidence import check_evidence, rates_of, write_evidence
    from torchfault.report.evidence import Asked

    if check is not None:
        if names:
            raise typer.BadParameter(f"a whole folder is checked; leave '{names[0]}' out", param_hint="--check")
        check_evidence(check, store, as_json=as_json)
        return
    asked = Asked(confidence, detector, rates_of(fit_per_mbit or ()), flip_flops)
    write_evidence(names or (), store, output, asked, force=force, as_json=as_json)


@_command("report")
def report(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME", help="The campaigns; the first is what the others are compared with."),
    ] = None,
    store: Store = DEFAULT_STORE,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="The .html file; by itself NAME.html.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that exists.")] = False,
    as_json: Json = False,
) -> None:
    """Write what campaigns found as one HTML page: answers, plots, method, and how to repeat them."""
    from torchfault.cli.report import report_campaigns

    report_campaigns(names or (), store, output=output, force=force, as_json=as_json)
