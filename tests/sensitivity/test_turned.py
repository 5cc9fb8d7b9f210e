"""Words turned as batch norms turn what they change: which ones, and that directions behind the norm are parted."""

import numpy as np
import pytest
import torch
from torch import nn

from torchfault.data import Data
from torchfault.engine import Engine
from torchfault.sampling import Deviations, Population
from torchfault.sensitivity import turned
from torchfault.space import FaultSpace, Site

SIGN = np.uint32(1 << 31)


class Net(nn.Module):
    """A convolution and a linear layer with norms of both signs, one without a norm, and one that two things read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(2, 4, 3, groups=2), nn.BatchNorm1d(4)
        self.plain = nn.Conv1d(4, 3, 1)
        self.read, self.norm2 = nn.Conv1d(3, 3, 1), nn.BatchNorm1d(3)
        self.fc, self.norm3 = nn.Linear(3, 2), nn.BatchNorm1d(2, affine=True)

    def forward(self, x):
        x = torch.relu(self.plain(torch.relu(self.norm(self.conv(x)))))
        y = self.read(x)
        return self.norm3(self.fc((self.norm2(y) + y).mean(2)))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(3)
    model = Net().eval()
    for norm, signs in ((model.norm, [1, -1, -1, 1]), (model.norm2, [-1, -1, 1]), (model.norm3, [-1, 1])):
        norm.weight.data = torch.tensor(signs) * (torch.rand(len(signs)) + 0.5)
    return Engine(model, Data(torch.randn(6, 2, 8).abs()))


def test_words_are_turned_where_a_norm_that_alone_reads_their_layer_is_negative(net):
    space = net.space.select(["conv.*", "plain.weight", "read.weight", "fc.*", "norm.weight", "plain:input"])
    words = net.words(space)
    found = turned(words, space, net.captured)
    negative = {name: (found[name] ^ words[name] == SIGN)[0].tolist() for name in space.names}
    assert negative.pop("conv.weight") == [False] * 3 + [True] * 6 + [False] * 3
    assert negative.pop("conv.bias") == [False, True, True, False]
    assert negative.pop("fc.weight") == [True] * 3 + [False] * 3
    assert negative.pop("fc.bias") == [True, False]
    for name in negative:
        np.testing.assert_array_equal(found[name], words[name], err_msg=name)


def test_words_without_a_sign_bit_stay_as_they_are(net):
    space = FaultSpace((Site("conv.weight", (4, 1, 3), word="int8"),))
    words = {"conv.weight": np.arange(12, dtype=np.uint8)[None]}
    np.testing.assert_array_equal(turned(words, space, net.captured)["conv.weight"], words["conv.weight"])


def test_flips_upwards_in_turned_words_move_what_the_norm_gives_upwards(net):
    """Inputs are positive here: beyond the last edge label 3 holds flips upwards behind the norm, 4 those downwards."""
    space = net.space.select("conv.weight")
    words = turned(net.words(space), space, net.captured)
    cutting = Deviations(words).cut(Population(space, goals={"site": 0.1}))
    counts = np.where(np.isin(cutting.label, (3, 4)), 40, 0)
    index, stratum, _ = cutting.draw(counts, rng=np.random.default_rng(0))
    struck, before, weight = space.locate(index), given(net), net.model.conv.weight
    held = weight.detach().clone()
    for element, bit, label in zip(struck.element, struck.bit, cutting.label[stratum], strict=True):
        weight.detach().view(-1).numpy().view(np.uint32)[element] ^= np.uint32(1 << int(bit))
        moved = given(net) - before
        weight.data.copy_(held)
        assert moved.abs().max() > 0
        assert bool((moved >= 0).all()) == (label == 3)


def given(net):
    """Return what the first norm gives for all inputs."""
    with torch.no_grad():
        return net.model.norm(net.model.conv(net.data.inputs))
