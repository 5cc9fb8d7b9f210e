"""Every upset there is, written down one by one by loops over products: what the closed forms are held to."""

import itertools
import math

from torchfault.hardware.accelerator import Accelerator, FlipFlops
from torchfault.hardware.patterns import find_pattern
from torchfault.hardware.work import Product, Work

Upset = tuple[int, int, int, int, int, int, int, int]  # layer, type, bit, element, group, row, step, column
Scales = tuple[tuple[int, int], ...]
Place = tuple[int, int, int, int, int]  # element, group, row, step, column


def all_upsets(
    chip: Accelerator, works: list[Work], widths: list[tuple[int, int, int]], *, scales: list[Scales] | None = None
) -> dict[Upset, float]:
    """Return the probability of each upset of *chip* on *works*; random words count once.

    *scales* are the bits and the number of the scales of each kind; products of such outputs are summed in float32.
    """
    found: dict[Upset, float] = {}
    macs = sum(work.macs for work in works)
    fit = sum(one.share * one.fit for one in chip.types)
    for layer, (work, width) in enumerate(zip(works, widths, strict=True)):
        for kind, one in enumerate(chip.types):
            whole = work.macs / macs * one.share * one.fit / fit
            if one.holds == "control":
                found[layer, kind, -1, -1, -1, -1, -1, -1] = whole
                continue
            which = ("input", "weight", "output").index(one.holds)
            scale, count = scales[layer][which] if scales else (0, 0)
            bits = dict.fromkeys(range(width[which]), 1.0)
            if scale and find_pattern(one.pattern).effect in ("partial", "tile-partial"):
                bits = dict.fromkeys(range(32), 1.0)
            elif scale:  # of each bit there are so many, for each variable
                bits |= dict.fromkeys(range(64, 64 + scale), count / work.count(one.holds))
            if find_pattern(one.pattern).effect == "random":
                bits = {-1: 1.0}
            for bit, words in bits.items():
                for place, share in places(chip, work, one):
                    key = (layer, kind, bit, *place)
                    found[key] = found.get(key, 0) + whole * share * words / sum(bits.values())
    return found


def places(chip: Accelerator, work: Work, one: FlipFlops) -> list[tuple[Place, float]]:
    """Return each variable at each of its uses, with its share of the type's upsets; a place may come repeatedly."""
    effect, count, product = find_pattern(one.pattern).effect, work.count(one.holds), work.product
    if product is None or effect in ("everywhere", "word", "random"):
        return [((element, 0, 0, 0, 0), 1 / count) for element in range(count)]
    groups, rows, depth, columns = product.groups, product.rows, product.depth, product.columns
    if one.holds == "weight":
        found = []
        for group, row, step, column in itertools.product(*map(range, (groups, rows, depth, columns))):
            found.append(((weight(product, group, step, column), group, row, step, column), 1 / count / rows))
        return found
    if one.holds == "output":
        slots = list(range(depth))
        if effect == "tile-partial":  # idle rows of the last tile pass the whole sum on
            slots += [depth - 1] * (-depth % chip.height)
        found = []
        for group, row, column in itertools.product(range(groups), range(rows), range(columns)):
            element = output(product, group, row, column)
            found += [((element, group, row, step, column), 1 / count / len(slots)) for step in slots]
        return found
    uses: dict[int, list[tuple[int, int, int]]] = {element: [] for element in range(count)}
    for group, row, step in itertools.product(range(groups), range(rows), range(depth)):
        element = source(product, group, row, step)
        if element is not None:
            uses[element].append((group, row, step))
    found = []
    for element, served in uses.items():
        for use, column in itertools.product(served, range(columns)):
            found.append(((element, *use, column), 1 / count / len(served) / columns))
        if not served:
            place = product.convolution
            channel = element // math.prod(place.size)
            group, inner = divmod(channel, place.channels // groups)
            found.append(((element, group, -1, inner * math.prod(place.kernel), 0), 1 / count))
    return found


def weight(product: Product, group: int, step: int, column: int) -> int:
    """Return the flat element of a weight."""
    if product.convolution is not None or product.transposed:
        return group * product.columns * product.depth + column * product.depth + step
    return group * product.depth * product.columns + step * product.columns + column


def output(product: Product, group: int, row: int, column: int) -> int:
    """Return the flat element of an output."""
    if product.convolution is not None:
        return group * product.columns * product.rows + column * product.rows + row
    return group * product.rows * product.columns + row * product.columns + column


def source(product: Product, group: int, row: int, step: int) -> int | None:
    """Return the flat element of an input, None in the padding."""
    place = product.convolution
    if place is None:
        return group * product.rows * product.depth + row * product.depth + step
    outs = list(itertools.product(*map(range, place.out)))
    offsets = list(itertools.product(*map(range, place.kernel)))
    channel, offset = divmod(step, len(offsets))
    element = group * (place.channels // product.groups) + channel
    for axis, (out, inner) in enumerate(zip(outs[row], offsets[offset], strict=True)):
        at = out * place.stride[axis] + inner * place.dilation[axis] - place.before[axis]
        if not 0 <= at < place.size[axis]:
            return None
        element = element * place.size[axis] + at
    return element
