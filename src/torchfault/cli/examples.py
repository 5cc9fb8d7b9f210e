"""Commands that work as they stand, for the help of each command; docs/command-line.md has more."""

from collections.abc import Mapping

__all__ = ["EXAMPLES", "epilog"]

_DEMO = "--model torchfault.demo:model --data torchfault.demo:data"
_OWN = "--model my_package.nets:resnet --checkpoint best.pt --data test.npz"

EXAMPLES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "demo": (
        ("torchfault demo", "20,000 faults, tables and a plot"),
        ("torchfault demo --trials 5000 --plot digits.svg", "fewer faults, another file"),
    ),
    "doctor": (
        ("torchfault doctor", "versions, devices, memory, and the engine against its reference"),
        ("torchfault doctor --json", "the same for a report of a problem"),
    ),
    "init": (
        (f"torchfault init {_DEMO}", "look at a model, write torchfault.yaml"),
        (f"torchfault init {_OWN} --output resnet.yaml", "your own"),
    ),
    "sites": (
        (f"torchfault sites {_DEMO}", "every tensor that faults can strike"),
        ("torchfault sites --model torchfault.zoo:resnet20 --shape 3,32,32 --kinds weight", "a shape is enough"),
    ),
    "plan": (
        (f"torchfault plan {_DEMO} --kinds weight", "what each method would cost"),
        ("torchfault plan examples/digits.yaml --margin 0.005", "for a narrower margin"),
    ),
    "run": (
        ("torchfault run examples/digits.yaml", "what a file describes"),
        (f"torchfault run {_OWN} --kinds weight --half-width 0.005", "weights, within half a point"),
        (
            f"torchfault run {_DEMO} --sampler adaptive --half-width layer=0.01 --name layers",
            "each layer within 1 %",
        ),
    ),
    "search": (
        ("torchfault search examples/digits.yaml --trials 5000", "as many failing faults as possible"),
        ("torchfault search examples/digits.yaml --kinds weight --drop 25%", "draws until one costs 25 % accuracy"),
        ("torchfault search --architecture 30 --data torchfault.demo:data", "architectures, robust ones too"),
    ),
    "vulnerability": (
        (f"torchfault vulnerability {_DEMO} --kinds weight", "every layer within half a point"),
        (f"torchfault vulnerability {_OWN} --share all --by channel", "the channels to protect"),
    ),
    "ra": (
        (f"torchfault ra {_DEMO} --accelerator nvdla-like", "accuracy, given an upset"),
        (f"torchfault ra {_DEMO} --accelerator output-stationary --harden control --flip-flops 120000", "FIT too"),
    ),
    "harden": (
        (f"torchfault harden {_DEMO} --method ranges --method invariant-bits", "what protection gains and costs"),
        (f"torchfault harden {_OWN} --method secded --method ranges:zero", "codes in the weights, and clipping"),
    ),
    "protect": (
        ("torchfault protect digits --budget 1%", "the bits in which protection ends most failures"),
        ("torchfault protect digits --by layer --budget 25% --json", "whole layers"),
    ),
    "resume": (
        ("torchfault resume digits", "go on where it stopped"),
        ("torchfault resume digits --trials 100000", "and farther"),
    ),
    "show": (
        ("torchfault show", "the only campaign, or a list of all"),
        ("torchfault show digits --by channel --top 20", "the worst channels"),
        ("torchfault show digits --by bit --plot bits.pdf", "a plot too"),
    ),
    "status": (
        ("torchfault status", "how far all campaigns of torchfault.db are"),
        ("torchfault status digits --every 5", "again and again, from another terminal"),
    ),
    "export": (
        ("torchfault export digits", "one row per fault in digits.csv"),
        ("torchfault export digits --flag failed --output failed.parquet", "those that failed"),
    ),
    "evidence": (
        ("torchfault evidence digits --fit-per-mbit weight=700 --output pack", "rows for an FMEDA in a folder"),
        ("torchfault evidence digits --detector due --confidence 0.99", "with the coverage of a detector"),
        ("torchfault evidence --check pack", "does it follow from the store?"),
    ),
    "report": (
        ("torchfault report digits", "one page: answers, plots, method"),
        ("torchfault report before after -o hardened.html", "two campaigns, compared by pairs"),
    ),
}


def epilog(command: str) -> str:
    """Return the examples of a command as the text below its help.

    >>> epilog("export").splitlines()[2]
    '[bold]torchfault export digits[/bold]  [dim]one row per fault in digits.csv[/dim]'
    """
    lines = [f"[bold]{line}[/bold]  [dim]{purpose}[/dim]" for line, purpose in EXAMPLES[command]]
    return "\n\n".join(["[dim]Examples[/dim]", *lines])
