"""timm's and torchvision's models with random weights, and a model trained by Lightning."""

import pytest
import torch
from common import agrees, images
from torch import Tensor, nn

import torchfault as tf
from torchfault.model.data import Data


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
