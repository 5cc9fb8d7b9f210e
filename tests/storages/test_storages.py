"""Storages: words and values agree with plain loops, also when faults put indices where none belong."""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.support.torch_types import skip_without
from torchfault.errors import StorageError
from torchfault.storages import Affine, BlockFloat, Bsr, Coo, Csr, keep, storage
from torchfault.testing import check_storage

NAMES = (
    *("int8", "uint8", "int8:tensor", "uint8:tensor", "int4:32", "int4:5", "uint4:7", "int2"),
    *("bfp8:16", "bfp4:5", "bfp2:3", "q3.4", "e4m3", "e2m1fn", "bfloat16", "float16", "float8_e4m3fn"),
    *("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e3m2", "mxfp6_e2m3", "mxfp4", "mxint8", "nvfp4", "mxfp4:5", "mxfp8_e5m2:3@0"),
    *("float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3fn[nan]", "nvfp4:4@0", "nvfp4[0.001]"),
    *("coo", "csr", "csr:int16", "coo:int8", "bsr:4x4", "bsr:1x3", "bsr:2x1:int64"),
)


@pytest.mark.parametrize("name", NAMES)
def test_every_storage_conforms_under_its_own_name(name):
    skip_without(name)
    assert storage(name).name == name
    assert storage(name) == storage(name)
    check_storage(storage(name))


@dataclass(frozen=True)
class Forgetful(Csr):
    """A storage whose words do not stand for its tensor."""

    def spread(self, words, shape, part, element, new):
        found = super().spread(words, shape, part, element, new)
        return None if found is None else (found[0], found[1] + 1)


@dataclass(frozen=True)
class Anywhere(Coo):
    """A storage that does not say where its indices end."""

    def parts(self, words, shape):
        return {name: replace(part, highest=()) for name, part in super().parts(words, shape).items()}


def test_the_suite_names_what_a_storage_does_wrong():
    with pytest.raises(AssertionError, match="spread tells the values"):
        check_storage(Forgetful())
    with pytest.raises(AssertionError, match="any words decode"):
        check_storage(Anywhere())


def drawn(rng, *shape, density=0.4):
    values = rng.standard_normal(shape) * (rng.random(shape) < density)
    return torch.from_numpy(values.astype(np.float32))


# Quantised codes, and blocks with an exponent.


@pytest.mark.parametrize("group", [None, 0, 5])
@pytest.mark.parametrize("symmetric", [True, False])
def test_quantised_codes_agree_with_loops(group, symmetric, rng):
    tensor = drawn(rng, 4, 3, 4, density=1)
    words = Affine(8, group, symmetric=symmetric).encode(tensor)
    rows = [tensor.flatten()] if group == 0 else list(tensor.flatten(1))
    codes = words[""].flatten() if group == 0 else words[""].flatten(1)
    scales, zeros = words["scale"].flatten().tolist(), iter(words.get("zero_point", torch.zeros(99)).flatten().tolist())
    pieces = [row[i : i + (group or 99)] for row in rows for i in range(0, len(row), group or 99)]
    assert len(scales) == len(pieces)
    got = iter(torch.cat([c.flatten() for c in codes.reshape(len(rows), -1)]).tolist())
    for piece, scale in zip(pieces, scales, strict=True):
        zero = int(next(zeros))
        low, high = min(0.0, float(piece.min())), max(0.0, float(piece.max()))
        expected = float(piece.abs().max()) / 127 if symmetric else (high - low) / 255
        assert math.isclose(scale, expected, rel_tol=1e-6)
        bounds = (-127, 127) if symmetric else (0, 255)
        for value in piece.tolist():
            code = min(max(round(np.float32(value) / np.float32(scale)) + zero, bounds[0]), bounds[1])
            assert next(got) == code


def test_a_group_of_zeros_and_the_least_numbers_have_codes():
    for tensor in (torch.zeros(2, 3), torch.full((2, 3), 1e-45)):
        for name in ("int8", "uint8", "bfp8:2"):
            assert keep(tensor, storage(name)).value().isfinite().all()


@pytest.mark.parametrize(("width", "block"), [(8, 16), (4, 5), (2, 3)])
def test_block_floating_point_agrees_with_exact_fractions(width, block, rng):
    tensor = drawn(rng, 3, 13, density=0.8) * torch.tensor([[1e-3], [1.0], [3e4]])
    words = BlockFloat(width, block).encode(tensor)
    bound = (1 << width - 1) - 1
    value = keep(tensor, BlockFloat(width, block)).value()
    for row in range(3):
        for start in range(0, 13, block):
            piece = tensor[row, start : start + block].tolist()
            top = max(map(abs, piece))
            exponent = math.frexp(top)[1] - 1 if top else -127
            assert int(words["exponent"][row, start // block]) == exponent + 127
            step = Fraction(2) ** (exponent - width + 2)
            for i, x in enumerate(piece):
                code = min(max(round(Fraction(x) / step), -bound), bound)
                assert int(words[""][row, start + i]) == code
                assert value[row, start + i].item() == float(code * step)


def test_a_flipped_exponent_moves_its_block_by_a_power_of_two_and_no_other(rng):
    tensor = drawn(rng, 2, 32, density=1)
    stored = keep(tensor, BlockFloat(8, 16))
    exponents = stored.words["exponent"].clone()
    exponents[1, 0] ^= 1 << 2
    step = int(exponents[1, 0]) - int(stored.words["exponent"][1, 0])
    moved, golden = stored.value({"exponent": exponents}), stored.value()
    assert torch.equal(moved[1, :16], golden[1, :16] * 2.0**step)
    moved[1, :16] = golden[1, :16]
    assert torch.equal(moved, golden)


# Values and indices.


def loop_coo(words, rows, columns):
    dense = np.zeros((rows, columns), dtype=np.float32)
    for value, row, column in zip(words["values"].tolist(), *words["indices"].tolist(), strict=True):
        dense[row, column] += np.float32(value)
    return dense


def loop_rows(words, down, right, height, width):
    """Read compressed rows as a reader in C would: row by row, from one pointer to the next."""
    dense = np.zeros((down * height, right * width), dtype=np.float32)
    pointers, columns = words["crow_indices"].tolist(), words["col_indices"].tolist()
    values = words["values"].reshape(-1, height, width).numpy()
    for row in range(down):
        for entry in range(pointers[row], pointers[row + 1]):
            corner = columns[entry] * width
            dense[row * height : (row + 1) * height, corner : corner + width] += values[entry]
    return dense


READERS = {
    "coo": lambda words, rows, columns: loop_coo(words, rows, columns),
    "csr": lambda words, rows, columns: loop_rows(words, rows, columns, 1, 1),
    "bsr:2x3": lambda words, rows, columns: loop_rows(words, -(-rows // 2), -(-columns // 3), 2, 3)[:rows, :columns],
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("shape", [(6, 9), (5, 2, 2, 2), (1, 1), (4, 6)])
def test_what_is_stored_is_read_as_a_loop_reads_it(name, shape, rng):
    tensor = drawn(rng, *shape)
    stored = keep(tensor, storage(name))
    assert torch.equal(stored.value(), tensor)
    rows, columns = shape[0], math.prod(shape[1:])
    assert np.array_equal(READERS[name](stored.words, rows, columns).reshape(shape), tensor.numpy())


@pytest.mark.parametrize("name", READERS)
def test_faulty_indices_are_read_as_a_loop_reads_them(name, rng):
    tensor = drawn(rng, 7, 11)
    stored = keep(tensor, storage(name))
    tried = 0
    for _ in range(300):
        words = {part: held.clone() for part, held in stored.words.items()}
        for part in words:
            if stored.parts[part].highest:
                for place in rng.integers(0, words[part].numel(), rng.integers(0, 4)):
                    row = (
                        place // max(math.prod(words[part].shape[1:]), 1) if len(stored.parts[part].highest) > 1 else 0
                    )
                    words[part].view(-1)[place] = int(rng.integers(0, stored.parts[part].highest[row] + 1))
        tried += 1
        expected = READERS[name](words, 7, 11)
        assert np.allclose(stored.value(words).numpy(), expected, rtol=1e-6, atol=1e-6)
    assert tried == 300


@pytest.mark.parametrize("name", READERS)
def test_an_index_astray_is_detected_and_allocates_nothing(name, rng):
    stored = keep(drawn(rng, 7, 11), storage(name))
    for part, what in stored.parts.items():
        for wrong in (-1, 2**30, max(what.highest, default=0) + 1) if what.highest else ():
            words = stored.words[part].clone()
            words.view(-1)[-1] = wrong
            with pytest.raises(StorageError, match=f"an index of '{part}' became {wrong}"):
                stored.value({part: words})


def test_a_moved_index_moves_the_weight():
    tensor = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0]])
    stored = keep(tensor, Csr())
    moved = stored.value({"col_indices": torch.tensor([2, 0], dtype=torch.int32)})
    assert moved.tolist() == [[0.0, 0.0, 2.0], [3.0, 0.0, 0.0]]
    below = stored.value({"crow_indices": torch.tensor([0, 0, 2], dtype=torch.int32)})
    assert below.tolist() == [[0.0, 0.0, 0.0], [3.0, 2.0, 0.0]]
    again = stored.value({"crow_indices": torch.tensor([0, 2, 1], dtype=torch.int32)})  # the second row is empty
    assert again.tolist() == [[3.0, 2.0, 0.0], [0.0, 0.0, 0.0]]


def test_an_empty_matrix_has_no_values():
    for name in ("coo", "csr", "bsr:2x2"):
        stored = keep(torch.zeros(3, 4), storage(name))
        assert stored.words["values"].numel() == 0
        assert torch.equal(stored.value(), torch.zeros(3, 4))


@pytest.mark.parametrize(
    ("attempt", "message"),
    [
        (lambda: storage("int9"), "no storage is called 'int9'; use int8"),
        (lambda: keep(torch.ones(2), storage("csr:int12")), "indices are int8, int16, int32, int64, got"),
        (lambda: Affine(9), "codes have 2 to 8 bits"),
        (lambda: Bsr(0, 1), "blocks have 1 to 4096 rows and columns, got 0x1"),
        (lambda: keep(torch.ones(3, 300), Coo("int8")), "int8 indices reach 127, got 300"),
        (lambda: keep(torch.ones(3, dtype=torch.int32), Coo()), "dense floating-point tensors, got torch.int32"),
        (lambda: keep(torch.tensor([math.nan]), Affine()), "finite values"),
    ],
)
def test_what_cannot_be_stored_is_refused(attempt, message):
    with pytest.raises(StorageError, match=message):
        attempt()
