"""Errors of single bit flips against a slow reference that knows words by struct and bins by comparison."""

import math
import struct

import pytest
import torch

from benchmarks.deepvigor.distribution import (
    BINS,
    NOT_FINITE,
    candidates,
    error_histogram,
    flipped_deltas,
    histogram_share,
    share_beyond,
)
from torchfault.errors import VulnerabilityError, WordError

STRUCT = {"float64": ("<d", "<Q"), "float32": ("<f", "<I"), "float16": ("<e", "<H"), "int8": ("<b", "<B")}
EDGES = [2.0**rho for rho in range(-10, 11)]


def reinterpreted(value, bit, name):
    """Flip one bit of *value* by packing and unpacking bytes."""
    if name == "bfloat16":  # the upper half of a float32
        return reinterpreted(value, bit + 16, "float32")
    own, unsigned = STRUCT[name]
    word = struct.unpack(unsigned, struct.pack(own, value))[0] ^ (1 << bit)
    return struct.unpack(own, struct.pack(unsigned, word))[0]


def bin_by_hand(error, largest=3.4028235677973366e38):
    """Find the bin by walking along the candidates; from *largest* on float32 rounds to infinity."""
    if not math.isfinite(error) or abs(error) >= largest:
        return 43
    place = 21
    for edge in EDGES:
        if error >= edge:
            place += 1
        if error <= -edge:
            place -= 1
    return place


def same(one, two):
    return one == two or (math.isnan(one) and math.isnan(two))


@pytest.mark.parametrize("name", ["float64", "float32", "float16", "bfloat16"])
def test_deltas_of_floats_are_those_of_the_bytes(name):
    values = [0.0, -0.0, 1.0, -1.5, 0.1, -3e-5, 6.1e-5, 1e4, math.inf, math.nan]
    held = torch.tensor(values, dtype=getattr(torch, name))
    found = flipped_deltas(held, name)
    for row, value in enumerate(held.double().tolist()):
        for bit in range(found.shape[1]):
            expected = reinterpreted(value, bit, name) - value
            # A NaN is packed with one payload and held with another, and both stay NaN or become finite.
            assert same(found[row, bit].item(), expected) or math.isnan(value), (value, bit)
    assert found[:2].isfinite().all()
    assert not found[8:].isfinite().any()


def test_deltas_of_int8_are_steps_of_the_scale():
    held = torch.tensor([[3, -128], [127, 0]], dtype=torch.int8)
    scale = torch.tensor([[0.5], [2.0]])
    found = flipped_deltas(held, "int8", scale=scale)
    for row, (value, step) in enumerate(zip([3, -128, 127, 0], [0.5, 0.5, 2, 2], strict=True)):
        assert found[row].tolist() == [(reinterpreted(value, bit, "int8") - value) * step for bit in range(8)]


def test_deltas_refuse_another_type():
    with pytest.raises(WordError, match="float32 words need"):
        flipped_deltas(torch.zeros(2, dtype=torch.float16), "float32")


def test_candidates_are_the_powers_of_two():
    assert candidates().tolist() == EDGES


def test_histogram_counts_what_walking_finds():
    generator = torch.Generator().manual_seed(0)
    deltas = flipped_deltas(torch.randn(6, generator=generator) * 0.1, "float32")
    operand = torch.randn(5, 6, 7, generator=generator).relu()
    found = error_histogram(deltas, operand, at_once=50)  # in many small parts
    expected = torch.zeros(5, BINS, dtype=torch.int64)
    for image, element, place in torch.cartesian_prod(*map(torch.arange, operand.shape)).tolist():
        for delta in deltas[element].tolist():
            expected[image, bin_by_hand(delta * operand[image, element, place].item())] += 1
    assert found.tolist() == expected.tolist()
    assert found.sum(1).tolist() == [6 * 32 * 7] * 5
    assert torch.equal(found, error_histogram(deltas, operand))


def test_histogram_of_deltas_alone_places_every_edge():
    below = [math.nextafter(edge, 0) for edge in EDGES]
    errors = [*EDGES, *(-e for e in EDGES), *below, *(-e for e in below), 0.0, -0.0, 5e-324, 1e38, -1e38, 1e39, -1e300]
    errors += [math.inf, -math.inf, math.nan]
    for error in errors:
        row = error_histogram(torch.tensor([[error]], dtype=torch.float64))
        assert row.nonzero().tolist() == [[0, bin_by_hand(error)]], error


def test_what_overflows_depends_on_the_type_that_sums():
    big = torch.tensor([[1e5]], dtype=torch.float64)
    assert error_histogram(big, dtype=torch.float16).argmax().item() == NOT_FINITE
    assert error_histogram(big).argmax().item() == 42


@pytest.mark.parametrize("with_operand", [False, True])
def test_share_counts_errors_at_or_beyond(with_operand):
    generator = torch.Generator().manual_seed(1)
    deltas = flipped_deltas(torch.randn(9, generator=generator), "float32")
    deltas[0, 3] = 0.5  # exactly at a threshold
    operand = torch.randn(4, 9, 3, generator=generator) if with_operand else None
    positive, negative = torch.tensor([0.5, 2.0, math.inf, 3e-3]), torch.tensor([-0.1, -math.inf, -math.inf, -7.0])
    counted = torch.tensor([True, False, True, False])
    found = share_beyond(deltas, positive, negative, operand=operand, not_finite=counted, at_once=40)
    for image in range(4):
        for bit in range(32):
            factors = [[1.0]] * 9 if operand is None else operand[image].double().tolist()
            errors = [d * x for d, row in zip(deltas[:, bit].tolist(), factors, strict=True) for x in row]
            high, low, bad = positive[image].item(), negative[image].item(), counted[image].item()
            hits = [bad if bin_by_hand(e) == 43 else e >= high or e <= low for e in errors]
            assert found[image, bit].item() == pytest.approx(sum(hits) / len(hits), abs=1e-15)


def test_every_flip_counts_once_where_the_values_cross():
    deltas = flipped_deltas(torch.tensor([0.5, -0.25], dtype=torch.float16), "float16")
    everything = share_beyond(deltas, torch.zeros(1), torch.zeros(1))
    assert torch.equal(everything, torch.ones(1, 16, dtype=torch.float64))


def test_share_of_a_histogram_is_the_share_at_a_candidate():
    generator = torch.Generator().manual_seed(2)
    deltas = flipped_deltas(torch.randn(20, generator=generator).bfloat16(), "bfloat16")
    operand = torch.randn(3, 20, generator=generator)
    histogram = error_histogram(deltas, operand)
    positive, negative = torch.tensor([0, 12, 21]), torch.tensor([20, 21, 8])
    values = torch.cat([candidates(), torch.tensor([math.inf], dtype=torch.float64)])
    exact = share_beyond(
        deltas, values[positive], -values[negative], operand=operand, not_finite=torch.zeros(3, dtype=torch.bool)
    )
    assert torch.allclose(histogram_share(histogram, positive, negative), exact.mean(1), atol=1e-15)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(VulnerabilityError, match=r"operand is \(images, elements\)"):
        error_histogram(torch.zeros(3, 32), torch.zeros(5, 4))
