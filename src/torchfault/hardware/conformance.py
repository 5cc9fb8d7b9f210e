"""What every accelerator must hold to; :func:`torchfault.testing.check_accelerator` is this."""

import itertools

import numpy as np

from torchfault.errors import HardwareError
from torchfault.hardware.accelerator import Accelerator
from torchfault.hardware.measure import hardware_measure, layer_table, utilisation
from torchfault.hardware.patterns import SIZES, Grid, find_pattern, reach_of
from torchfault.hardware.work import Product, Work
from torchfault.space import FaultSpace, Site

__all__ = ["check_accelerator"]


def _site(name: str, *shape: int) -> Site:
    return Site(name, shape, kind="weight" if name.endswith("weight") else name.partition(":")[2])


_WORKS = (
    Work("a", "linear", 600, ("a:input",), ("a.weight",), ("a:output",), (60, 50, 30), Product(1, 6, 10, 5)),
    Work("b", "linear", 90, ("b:input",), ("b.weight",), ("b:output",), (3, 90, 30), Product(1, 1, 3, 30)),
    Work("c", "gru", 40, ("c:input",), ("c.weight",), ("c:output",), (4, 8, 5)),
)
_SPACE = FaultSpace(
    tuple(
        _site(f"{work.layer}{ending}", count)
        for work in _WORKS
        for ending, count in zip((":input", ".weight", ":output"), work.variables, strict=True)
    )
)


def check_accelerator(accelerator: Accelerator) -> None:
    """Raise AssertionError, naming the rule, where *accelerator* is none.

    The rules: a hashable value; type shares of upsets that sum to 1; a utilisation from 0 to 1 for every type and
    layer; probabilities over a model's faults and control that sum to 1, with the closed form's value for every fault;
    and patterns that reach at least one output, the struck one where that is told by the product, and stay in bounds,
    for layers smaller and larger than the array.

    >>> from torchfault.hardware.accelerator import FLAT
    >>> check_accelerator(FLAT)
    """
    _hold(accelerator, hash(accelerator) == hash(accelerator), "it is a hashable value")
    shares = [accelerator.weight_of(one.name) for one in accelerator.types]
    _hold(accelerator, abs(sum(shares) - 1) < 1e-12, "the types' shares of upsets sum to 1", f"got {sum(shares)}")
    for one, work in itertools.product(accelerator.types, _WORKS):
        used = utilisation(accelerator, work, one)
        _hold(accelerator, 0 <= used <= 1, "utilisation lies between 0 and 1", f"'{one.name}' has {used}")
    _check_probabilities(accelerator)
    for one in accelerator.types:
        for rows, columns in itertools.product(SIZES, SIZES):
            grid = Grid(rows, 3, columns, accelerator.height, accelerator.width)
            _check_reach(accelerator, one.name, grid)


def _check_probabilities(accelerator: Accelerator) -> None:
    measure = hardware_measure(accelerator, _WORKS, _SPACE)
    index = np.arange(len(measure.space))
    p = measure.probability(index)
    total = p.sum() + measure.control
    _hold(accelerator, abs(total - 1) < 1e-12, "probabilities sum to 1", f"got {total}")
    table = layer_table(accelerator, _WORKS)
    where = measure.space.locate(index)
    for at, site in enumerate(measure.space.sites):
        holds = "weight" if site.kind == "weight" else site.kind
        mine = table[(table["holds"] == holds) & (table["layer"] == site.name[0])]
        expected = mine["p_variable"].sum() / site.width
        seen = p[where.site == at]
        _hold(accelerator, np.allclose(seen, expected, rtol=1e-12, atol=0), "p = LP w / (V B)", f"got {seen[:1]}")


def _check_reach(accelerator: Accelerator, name: str, grid: Grid) -> None:
    pattern = accelerator.type_of(name).pattern
    row, column = (part.reshape(-1) for part in np.indices((grid.rows, grid.columns)))
    rule = f"the pattern of '{name}' stays within the outputs of the layer"
    try:
        found = reach_of(pattern, row, column, grid)
    except HardwareError as error:
        raise AssertionError(f"{accelerator.name} breaks the rule that {rule}: {error}") from error
    sizes = {len(part) for part in found}
    _hold(accelerator, sizes == {len(row)}, rule, f"got {sizes} rectangles for {len(row)} upsets")
    inside = (found.row <= row) & (row < found.row_end) & (found.column <= column) & (column < found.column_end)
    _hold(accelerator, inside.all(), f"the pattern of '{name}' reaches the output whose product is struck")
    single = find_pattern(pattern).effect in ("partial", "tile-partial", "word", "random")
    alone = (found.outputs == 1).all()
    _hold(accelerator, alone or not single, f"a register of one output, such as '{name}', reaches it alone")


def _hold(accelerator: Accelerator, holds: object, rule: str, seen: str = "got otherwise") -> None:
    if not holds:
        raise AssertionError(f"{accelerator.name} breaks the rule that {rule}: {seen}")
