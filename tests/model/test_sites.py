"""Sites are found on any module, and finding them leaves no trace."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.networks import NETWORKS
from torchfault.data import Data
from torchfault.errors import ModelError
from torchfault.model.discover import check_inference, find, module_sites, parameter_sites
from torchfault.model.disturb import undisturbed
from torchfault.model.lane_axis import LaneAxis
from torchfault.zoo import resnet20


def test_parameters_by_name_kind_and_channel():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.up = nn.ConvTranspose2d(4, 2, 3, bias=False)
            self.norm = nn.BatchNorm2d(2)
            self.cell = nn.LSTM(2, 3)
            self.table = nn.Embedding(5, 2, dtype=torch.bfloat16)
            self.tied = nn.Embedding(5, 2, dtype=torch.bfloat16)
            self.tied.weight = self.table.weight
            self.scale = nn.Parameter(torch.tensor(1.0))

    sites = {site.name: site for site in parameter_sites(Mixed())}
    assert {name: (s.kind, s.channel) for name, s in sites.items()} == {
        "scale": ("weight", None),
        "conv.weight": ("weight", 0),
        "conv.bias": ("bias", 0),
        "up.weight": ("weight", 1),
        "norm.weight": ("norm", 0),
        "norm.bias": ("norm", 0),
        "cell.weight_ih_l0": ("weight", 0),
        "cell.weight_hh_l0": ("weight", 0),
        "cell.bias_ih_l0": ("bias", 0),
        "cell.bias_hh_l0": ("bias", 0),
        "table.weight": ("weight", 1),
    }
    assert (sites["table.weight"].word, sites["table.weight"].width) == ("bfloat16", 16)
    assert (sites["conv.weight"].module, sites["conv.weight"].module_type) == ("conv", "Conv2d")
    with_buffers = {site.name: site for site in parameter_sites(Mixed(), buffers=True)}
    added = {name: (with_buffers[name].kind, with_buffers[name].word) for name in with_buffers.keys() - sites.keys()}
    assert added == {
        "norm.running_mean": ("buffer", "float32"),
        "norm.running_var": ("buffer", "float32"),
        "norm.num_batches_tracked": ("buffer", "int64"),
    }


def test_a_parameter_without_a_shape_is_refused():
    with pytest.raises(ModelError, match=r"'0.weight' has no shape yet; run the model once"):
        parameter_sites(nn.Sequential(nn.LazyLinear(3)))


def test_the_counts_of_resnet20_follow_from_its_definition():
    space = find(resnet20(), torch.randn(3, 3, 32, 32)).space
    convs = space.select(types="Conv2d")
    # 3 -> 16, six 16 -> 16, 16 -> 32, five 32 -> 32, 32 -> 64, five 64 -> 64; 3x3 kernels (He et al. 2016).
    weights = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    assert len(convs.select(kinds="weight")) == 32 * weights
    inputs = 3 * 1024 + 7 * 16 * 1024 + 6 * 32 * 256 + 5 * 64 * 64
    assert len(convs.select(kinds="input")) == 32 * inputs


def test_modules_come_in_the_order_of_their_calls_with_numbers_for_more():
    model, data = NETWORKS["folded"]()
    assert [(s.name, s.shape, s.channel) for s in module_sites(model, data)] == [
        ("conv:input", (4, 3, 6, 6), 1),
        ("conv:output", (4, 5, 4, 4), 1),
        ("shared:input", (4, 5, 4, 4), 1),
        ("shared:output", (4, 5, 4, 4), 1),
        ("shared@1:input", (80,), 0),
        ("shared@1:output", (80,), 0),
        ("head:input", (80,), 0),
        ("head:output", (3,), 0),
    ]
    layouts = find(model, data).layouts
    assert layouts["conv:output"] == LaneAxis(0, inner=4)
    assert layouts["head:output"] == LaneAxis(0)


def test_several_inputs_and_outputs_and_a_batch_axis_in_the_middle():
    model, data = NETWORKS["lstm-time-first"]()
    found = find(model, data)
    shapes = {site.name: site.shape for site in found.space.select("lstm:*", exclude="*state*").sites}
    states = found.space.select(kinds="state").sites
    assert [(site.name, site.shape, site.steps) for site in states] == [
        (f"lstm:state.{one}_l{layer}", (7, 10), (0, 7)) for layer in range(2) for one in "hc"
    ]
    assert shapes == {
        "lstm:input": (7, 6),
        "lstm:output": (7, 10),
        "lstm:output1": (2, 10),
        "lstm:output2": (2, 10),
    }
    assert {found.layouts[name].axis for name in shapes} == {1}


def test_functional_operations_stand_beside_modules():
    model, data = NETWORKS["tied"]()
    names = find(model, data).space.names
    assert names == (
        "x:data", "encode.weight", "encode.bias", "encode:input", "encode:output",
        "act.sigmoid:input", "act.sigmoid:output", "act.mul:input", "act.mul:input1", "act.mul:output",
        "add:input", "add:input1", "add:output", "add@1:input", "add@1:output",
        "decode.bias", "decode:input", "decode:output",
        "act@1.sigmoid:input", "act@1.sigmoid:output", "act@1.mul:input", "act@1.mul:input1", "act@1.mul:output",
        "softmax:input", "softmax:output",
    )  # fmt: skip


def test_what_has_no_batch_axis_is_told():
    class Offset(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Embedding(4, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.place(torch.arange(4)).mean(0))

    found = find(Offset().eval(), torch.randn(3, 4))
    assert set(found.left_out) == {"place:output", "mean:input", "mean:output", "add:input1"}
    assert found.space.names[-4:] == ("head.weight", "head.bias", "head:input", "head:output")
    assert not found.mixes


def test_rows_that_depend_on_each_other_are_noticed():
    class Centred(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - x.mean(0)

    assert find(nn.Sequential(nn.Linear(3, 3), Centred()), torch.randn(5, 3)).mixes
    assert find(nn.Sequential(nn.Linear(3, 3), Centred()), torch.zeros(1, 3)).mixes  # a single input is varied
    assert not find(nn.Sequential(nn.Linear(3, 3), nn.Softmax(-1)), torch.randn(5, 3)).mixes
    assert find(nn.Sequential(nn.BatchNorm1d(3)), torch.randn(5, 3)).mixes
    assert not find(nn.Sequential(nn.BatchNorm1d(3)).eval(), torch.randn(5, 3)).mixes


def test_owners_are_the_only_readers():
    class Shares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
            self.c.weight = self.b.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.c(self.b(self.a(x)))
            return F.linear(x, self.a.weight * 2)

    owners = find(Shares().eval(), torch.randn(3, 3)).owners
    assert owners == {"a.bias": "a", "b.bias": "b", "c.bias": "c"}


def test_finding_leaves_no_trace():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU(inplace=True)).train()
    model[3].eval()
    twin = copy.deepcopy(model)
    random = torch.get_rng_state()
    grad = torch.is_grad_enabled()
    found = find(model, torch.randn(5, 4))
    torch.randn(5, 4)
    assert found.space.names[-2:] == ("3:input", "3:output")
    assert [m.training for m in model.modules()] == [m.training for m in twin.modules()]
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), twin.state_dict().values(), strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    torch.set_rng_state(random)
    torch.randn(5, 4)
    assert torch.is_grad_enabled() is grad
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_scope_without_traces_brings_attributes_buffers_and_chance_back():
    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(2))
            self.register_buffer("swapped", torch.zeros(2))
            self.memory: Tensor | None = None

    model = Stateful()
    before, held = torch.get_rng_state(), model.swapped
    with undisturbed(model) as changed:
        assert not changed()
        model.count += float("nan")
        assert changed()
        model.swapped = torch.ones(3)
        model.memory, model.extra = torch.ones(1), 5
        torch.rand(3)
    assert model.count.tolist() == [0, 0]
    assert model.swapped is held
    assert model.memory is None
    assert not hasattr(model, "extra")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.BatchNorm2d(3), r"'1' \(BatchNorm2d\) is in training mode"),
        (nn.Dropout(0.1), r"'1' \(Dropout\) is in training mode"),
        (nn.LSTM(3, 3, 2, dropout=0.5), r"'1' \(LSTM\) is in training mode"),
        (nn.MultiheadAttention(4, 2, dropout=0.5), r"'1' \(MultiheadAttention\)"),
        (nn.RReLU(), r"'1' \(RReLU\)"),
        (nn.BatchNorm2d(3, track_running_stats=False).eval(), r"'1' .* keeps no statistics"),
        (nn.Sequential(*(nn.Dropout() for _ in range(5))), r"'1.0' .*'1.2' \(Dropout\) and 2 more are in training"),
    ],
)
def test_layers_that_vary_are_named_with_the_remedy(layer, message):
    model = nn.Sequential(nn.Linear(2, 2), layer)
    with pytest.raises(ModelError, match=message + r".*(call model\.eval\(\)|track_running_stats=True)"):
        check_inference(model)


def test_layers_that_do_not_vary_pass_in_training_mode():
    check_inference(
        nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Dropout(0.0), nn.InstanceNorm1d(2), nn.LSTM(2, 2))
    )
    check_inference(nn.Sequential(nn.BatchNorm2d(3), nn.Dropout()).eval())


def test_a_few_equal_inputs_are_enough():
    model, data = NETWORKS["transformer"]()
    assert find(model, data.take(slice(0, 1))).space.names == find(model, data).space.names
    assert isinstance(data, Data)


class Written(nn.Module):
    """Writes into a tensor that a module has given, as the version counter of tensors does not tell."""

    def __init__(self, write):
        super().__init__()
        self.first, self.second, self.write = nn.Linear(3, 4), nn.Linear(4, 2), write

    def forward(self, x):
        held = self.first(x)
        self.write(held)
        return self.second(held)


@pytest.mark.parametrize("write", [lambda held: held.data.mul_(3), lambda held: held.numpy().fill(7), torch.relu_])
def test_what_is_written_to_between_two_modules_is_seen_anew(write):
    model = Written(write).eval()
    assert {"first:output", "second:input"} <= set(find(model, Data(torch.randn(5, 3))).space.names)
