"""Layers as plain products of matrices, and one flipped float: what upsets are held to, product by product."""

import numpy as np
from torch import nn
from torch.nn import functional as F


class Product(nn.Module):
    """A product of two activations."""

    def forward(self, x):
        """Take (N, rows, depth)."""
        return x @ x.transpose(1, 2)


LAYERS = {
    "convolution": (lambda: nn.Conv2d(3, 6, 3, padding=1), (3, 6, 5)),
    "strided, dilated": (lambda: nn.Conv2d(2, 5, (3, 2), stride=2, padding=(2, 0), dilation=(2, 1)), (2, 9, 6)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), (6, 5, 5)),
    "grouped": (lambda: nn.Conv2d(4, 12, 3, groups=2), (4, 5, 6)),
    "linear": (lambda: nn.Linear(11, 7), (11,)),
    "tokens": (lambda: nn.Linear(5, 7, bias=False), (6, 5)),
    "activations": (Product, (6, 5)),
}


def products(layer, x):
    """Return the layer as products: operands (groups, rows, depth) and (groups, depth, columns), and the way back."""
    if isinstance(layer, nn.Conv2d):
        g, out = layer.groups, layer(x)
        columns = F.unfold(x, layer.kernel_size, layer.dilation, layer.padding, layer.stride)[0]
        a = columns.view(g, -1, columns.shape[-1]).transpose(1, 2)
        b = layer.weight.view(g, layer.out_channels // g, -1).transpose(1, 2)
        bias = 0 if layer.bias is None else layer.bias.view(1, -1, 1, 1)
        return a, b, lambda y: y.transpose(1, 2).reshape(out.shape) + bias
    if isinstance(layer, nn.Linear):
        a, b = x.reshape(1, -1, layer.in_features), layer.weight.t()[None]
        return a, b, lambda y: y.reshape(layer(x).shape) + (0 if layer.bias is None else layer.bias)
    return x, x.transpose(1, 2), lambda y: y


def flip(value, bit):
    """Flip a bit of one float32, by NumPy."""
    return float((np.float32(value).view(np.uint32) ^ np.uint32(1 << int(bit))).view(np.float32))
