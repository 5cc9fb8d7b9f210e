"""An accelerator of one's own in one file: its flip-flops, a fault pattern that it alone makes, and the check.

Run it with `python examples/dot_engine.py`, or with pytest; `torchfault ra` takes the same description as YAML.
"""

import numpy as np

from torchfault.hardware.accelerator import Accelerator, FlipFlops
from torchfault.hardware.patterns import Grid, Pattern, Reach
from torchfault.testing import check_accelerator

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def two_rows(row: Ints, column: Ints, grid: Grid) -> Reach:
    """A weight register that serves two rows of outputs, the even one first: struck at once, it spoils both."""
    end = np.minimum(row + 2 - row % 2, grid.rows)
    return Reach(row, end, column, column + 1)


DOT_ENGINE = Accelerator(
    name="dot-engine",
    dataflow="weight-stationary",
    height=16,
    width=8,
    utilisation="tile",
    flip_flops=14_200,
    types=(
        FlipFlops(name="input", holds="input", share=4_096, pattern="16 channels"),
        FlipFlops(name="weight", holds="weight", share=4_096, pattern=Pattern("operand", two_rows)),
        FlipFlops(name="sum", holds="output", share=4_096, pattern="weight-stationary sum", fit=200.0),
        FlipFlops(name="control", holds="control", share=1_912, pattern="crash"),
    ),
)


def test_it_keeps_the_rules() -> None:
    """Probabilities sum to 1 and follow the closed form; patterns stay within the outputs of any layer."""
    check_accelerator(DOT_ENGINE)


if __name__ == "__main__":
    test_it_keeps_the_rules()
    print(f"{DOT_ENGINE.name} keeps the rules")
