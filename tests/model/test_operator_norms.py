"""Norms of convolutions and residual blocks: no less than those of the dense matrices, and little more."""

import math

import pytest
import torch
from torch.nn import functional as F

from torchfault.model.operator_norms import convolution_norms, residual_norms

CASES = {
    "same": ((3, 5), (3, 3), (8, 8), (1, 1), (1, 1)),
    "one by one": ((4, 2), (3, 1), (6, 5), (1, 0), (1, 1)),
    "dilated": ((2, 3), (3, 3), (9, 9), (2, 1), (2, 1)),
    "points": ((3, 4), (1, 1), (5, 7), (0, 0), (1, 1)),
    "shifted": ((2, 4), (3, 1), (7, 7), (0, 1), (1, 1)),
}


@pytest.mark.parametrize(("channels", "kernels", "size", "paddings", "dilations"), CASES.values(), ids=CASES)
def test_a_residual_block_stretches_no_change_by_more(channels, kernels, size, paddings, dilations):
    """Half of the branch added to what it is of, for D the half, and all of it for any D of slopes from 0 to 1."""
    make, inputs = torch.Generator().manual_seed(2), channels[0]
    first = torch.randn(channels[1], inputs, kernels[0], kernels[0], generator=make, dtype=torch.float64)
    second = torch.randn(inputs, channels[1], kernels[1], kernels[1], generator=make, dtype=torch.float64)
    both = {"paddings": tuple([p] * 2 for p in paddings), "dilations": tuple([d] * 2 for d in dilations)}
    whole, columns = residual_norms((first, second), size, **both)
    rest = convolution_norms(first, size, dilation=both["dilations"][0])
    last = convolution_norms(second, size, dilation=both["dilations"][1])[0] / 2
    ones = torch.eye(inputs * size[0] * size[1], dtype=torch.float64).reshape(-1, inputs, *size)
    between = F.conv2d(ones, first, padding=paddings[0], dilation=dilations[0])
    tight = []
    for seed in range(6):
        slopes = torch.rand(between.shape[1:], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        slopes = torch.full_like(slopes, 0.5) if seed == 0 else (slopes > 0.5 if seed < 4 else slopes)
        made = (ones + F.conv2d(between * slopes, second, padding=paddings[1], dilation=dilations[1])).flatten(1)
        most, bound = float(torch.linalg.matrix_norm(made, 2)), whole + rest[0] * last
        assert most <= bound
        for channel, part in enumerate(made.chunk(inputs)):
            assert float(torch.linalg.matrix_norm(part, 2)) <= columns[channel] + rest[1][channel] * last
        tight.append(most / bound)
        if seed == 0:
            assert 0.6 < most / whole < 1.05  # but for the edges, where padding leaves values out
    assert max(tight) > 0.3


@pytest.mark.parametrize(("kernel", "groups"), [((1, 1), 1), ((1, 3), 2), ((3, 1), 1), ((1,), 4)], ids=str)
def test_filters_of_one_tap_have_the_norm_of_their_dense_matrix(kernel, groups):
    size, make = (6, 5)[: len(kernel)], torch.Generator().manual_seed(4)
    weight = torch.randn(8, 8 // groups, *kernel, generator=make, dtype=torch.float64)
    whole, columns = convolution_norms(weight, size, groups=groups, dilation=[1] * len(kernel))
    ones = torch.eye(8 * math.prod(size), dtype=torch.float64).reshape(-1, 8, *size)
    convolve = F.conv1d if len(kernel) == 1 else F.conv2d
    made = convolve(ones, weight, padding=[k // 2 for k in kernel], groups=groups).flatten(1)
    slack = 1.0 if max(kernel) == 1 else 1.35  # edges, where padding leaves values out
    assert 1 <= whole / float(torch.linalg.matrix_norm(made, 2)) < slack + 1e-6
    for column, part in zip(columns, made.chunk(8), strict=True):
        assert 1 <= column / float(torch.linalg.matrix_norm(part, 2)) < slack + 1e-6
