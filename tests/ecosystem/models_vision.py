"""timm's and torchvision's models with random weights, and a model trained by Lightning."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchfault as tf
from tests.ecosystem.common import agrees, images
from torchfault.adapters.load import load_model
from torchfault.criteria import BoxChange, judge
from torchfault.data import Data
from torchfault.trials import strike


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", ["resnet10t", "mixer_s32_224", "vit_tiny_patch16_224"])
def test_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    options = {"img_size": 32} if "resnet" not in name else {}
    agrees(timm.create_model(name, num_classes=5, **options), Data(images(3, 32)), trials=12)


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_torchvision_classifiers(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    agrees(torchvision.models.get_model(name, num_classes=5), Data(images(3, 32)), trials=20)


def test_torchvision_segmenter() -> None:
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=4)
    agrees(model, Data(images(2, 32)), trials=12)


def test_torchvision_detector_by_its_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    extension = pytest.importorskip("torchvision.extension")
    monkeypatch.setattr(extension, "_has_ops", lambda: True)  # nms is ours, in common
    sizes = {"num_classes": 4, "topk_candidates": 20, "detections_per_img": 30}
    model = load_model("torchvision:ssdlite320_mobilenet_v3_large", kwargs=sizes)
    raw, model.transform.fixed_size = type(model).__mro__[1], (96, 96)  # a tenth of the time of its 320 x 320
    pictures = images(2, 48).sigmoid()
    engine = tf.Engine(model, Data(pictures), executor="hooks")
    assert "backbone.features.0.0.0.weight" in engine.space.names
    assert "head.classification_head.module_list.5.1:output" in engine.space.names
    space = engine.space.select(["backbone*.weight", "head*.weight"], bits=[20, 23, 30])
    rng, count = np.random.default_rng(0), 12
    where, inputs = space.locate(rng.integers(0, len(space), count)), rng.integers(0, 2, count)
    trials = strike(space, where, model=tf.BitFlip(), rng=rng, inputs=inputs)
    criterion = BoxChange(labels="labels", threshold=0.1)
    changed, expected = np.zeros(count, dtype=bool), []
    for lanes in engine.run(trials):
        changed[lanes.trial] = judge(criterion, lanes.golden, lanes.faulty, None).failed
    for trial, which in enumerate(inputs):
        given = pictures[which : which + 1]
        with torch.no_grad():
            (before,) = raw.forward(model, given)
            with tf.inject(model, trials.take(np.array([trial]))):
                (after,) = raw.forward(model, given)
        expected.append(not paired(before, after) or not paired(after, before))
    assert changed.tolist() == expected
    assert 0 < changed.sum() < count
    campaign = tf.Campaign(engine, space, criterion=criterion, stop=tf.MaxTrials(5))
    assert tf.run(campaign).table("site").trials.sum() == 5


def paired(one: dict[str, Tensor], two: dict[str, Tensor], threshold: float = 0.1) -> bool:
    """Whether each detection of *one* overlaps one of its class in *two* by half or more."""
    columns = [[side[name].tolist() for name in ("boxes", "labels", "scores")] for side in (one, two)]
    found = [[(b, k) for b, k, s in zip(*side, strict=True) if s >= threshold] for side in columns]

    def overlap(a: list[float], b: list[float]) -> float:
        sides = [max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in range(2)]
        area = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
        return 1.0 if a == b else sides[0] * sides[1] / (area - sides[0] * sides[1])

    return all(any(k == kind and overlap(box, b) >= 0.5 for b, k in found[1]) for box, kind in found[0])


class Head(nn.Module):
    """A plain classifier of images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().mean((2, 3)))


def test_lightning() -> None:
    lightning = pytest.importorskip("lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.head = Head()

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x)

        def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    model, pictures = Classifier(), images(12, 16)
    loader = torch.utils.data.DataLoader(list(zip(pictures, torch.arange(12) % 3, strict=True)), batch_size=4)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    lightning.Trainer(max_epochs=1, accelerator="cpu", **quiet).fit(model, loader)
    engine = agrees(model, Data(pictures))
    found = tf.run(tf.Campaign(engine, engine.space.select("*.weight"), stop=tf.MaxTrials(200))).estimate()
    assert found.trials == 200
