"""Blocks of neighbours, and the largest magnitude in each."""

import pytest
import torch

from torchfault.storages.blocks import cut, largest_in


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("length", [12, 13])
def test_the_largest_magnitude_is_that_of_the_values(dtype, length):
    torch.manual_seed(0)
    rows = torch.randn(9, length).to(dtype)
    rows[1], rows[2, 3], rows[3, 4], rows[4, 5], rows[5] = 0.0, torch.inf, -torch.inf, torch.nan, -0.0
    rows[6] = -torch.tensor(1e-39, dtype=dtype)  # subnormal where it is float32
    rows[7, 0], rows[7, 1] = torch.nan, torch.inf
    blocks = cut(rows, 4)
    wanted = blocks.abs().amax(2)
    torch.testing.assert_close(largest_in(blocks), wanted, rtol=0, atol=0, equal_nan=True)
