"""Detectors that give lists of dictionaries, as models with a row for every input."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchfault as tf
from torchfault.adapters.detections import padded_detections
from torchfault.criteria import BoxChange, judge
from torchfault.errors import ModelError
from torchfault.faults import BitFlip
from torchfault.trials import strike


class Detector(nn.Module):
    """Scores a fixed box at each of nine places, and gives those that are likely: from none to all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(1, 2, 1)

    def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
        found = []
        corners = torch.cartesian_prod(torch.arange(3.0), torch.arange(3.0))
        for logits in self.head(images).flatten(2):
            best, label = logits.sigmoid().max(0)
            likely = best > 0.5
            places = 4 * corners[likely]
            found.append(
                {"boxes": torch.cat([places, places + 4], 1), "scores": best[likely], "labels": label[likely] + 1}
            )
        return found


@pytest.fixture
def detector() -> Detector:
    torch.manual_seed(0)
    model = Detector().eval()
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
        model.head.bias.fill_(-0.5)
    return model


def test_fewer_detections_are_filled_up_and_of_more_the_best_stay(detector: Detector) -> None:
    images = torch.tensor([[1.0, 0, 0, -2, 0, 3, 0, 0, 0], [0] * 9, [4, 5, 3, -7, 6, 0, 0, 0, 0]]).view(3, 1, 3, 3)
    plain, padded = detector(images), padded_detections(detector, most=4)(images)
    assert [len(one["scores"]) for one in plain] == [3, 0, 5]
    assert {name: tuple(x.shape) for name, x in padded.items()} == {
        "boxes": (3, 4, 4),
        "scores": (3, 4),
        "labels": (3, 4),
    }
    for name, tensor in padded.items():
        assert torch.equal(tensor[0, :3], plain[0][name])
        assert not tensor[0, 3:].any()
        assert not tensor[1].any()
        assert torch.equal(tensor[2], plain[2][name][[0, 1, 3, 4]])  # without the one of score sigmoid(2.5)
    assert [name for name, _ in padded_detections(detector).named_parameters()] == ["head.weight", "head.bias"]
    assert isinstance(detector(images), list)


def test_faults_that_change_a_detection_fail(detector: Detector) -> None:
    images = torch.tensor([[1.0, 0, 0, -2, 0, 3, 0, 0, 0], [0] * 9]).view(2, 1, 3, 3)
    engine = tf.Engine(padded_detections(detector, most=9), tf.Data(images), executor="hooks")
    space = engine.space.select("head.bias")
    bits = [(0, 31), (0, 0), (1, 31), (1, 30)]  # everything found of one class, nothing new, of the other, or nothing
    where = [space.number(np.array([0]), np.array([element]), np.array([bit]))[0] for element, bit in bits]
    trials = strike(
        space, space.locate(where), model=BitFlip(), rng=np.random.default_rng(0), inputs=np.array([1, 0, 1, 0])
    )
    changed = np.zeros(4, dtype=bool)
    for lanes in engine.run(trials):
        changed[lanes.trial] = judge(BoxChange(labels="labels"), lanes.golden, lanes.faulty, None).failed
    assert changed.tolist() == [True, False, True, True]


def test_other_outputs_are_refused(detector: Detector) -> None:
    with pytest.raises(ModelError, match="most = 0"):
        padded_detections(detector, most=0)
    with pytest.raises(ModelError, match="expected a list with a dictionary of tensors for each input, got Tensor"):
        padded_detections(nn.ReLU())(torch.ones(2))
    with pytest.raises(ModelError, match="a detector gives 'logits', got 'boxes', 'scores', 'labels'"):
        padded_detections(detector, scores="logits")(torch.ones(1, 1, 3, 3))
    with pytest.raises(ModelError, match="padded_detections does it for detectors"):
        tf.Engine(detector, tf.Data(torch.linspace(-1, 3, 36).view(4, 1, 3, 3)), executor="hooks")
