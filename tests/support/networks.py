"""Small networks of every kind that the executors must agree on, each from a fixed seed, in evaluation mode."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchfault import zoo
from torchfault.data import Data


class Depthwise(nn.Module):
    """A depthwise-separable CNN (MobileNet's block): images (N, 3, 12, 12) to logits (N, 5)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depth = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 12, 1)
        self.act = nn.ReLU6(inplace=True)
        self.drop = nn.Dropout(0.2)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.act(self.point(self.act(self.depth(x))) * 2)
        return self.head(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class Transformer(nn.Module):
    """A transformer encoder over tokens, with a padding mask: ids and mask (N, 6) to a dictionary of logits (N, 4)."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.embed = nn.Embedding(20, 16)
        self.place = nn.Parameter(torch.randn(6, 16) * 0.1)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 4)

    def forward(self, ids: Tensor, padding: Tensor) -> dict[str, Tensor]:
        x = self.embed(ids) + self.place
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.encoder(x, src_key_padding_mask=padding)
        return {"logits": self.head(x.mean(1 if self.batch_first else 0)), "hidden": x if self.batch_first else x[0]}


class Recurrent(nn.Module):
    """A two-layer LSTM over sequences (N, 7, 6), to logits (N, 3) and the last hidden state (N, 10)."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.lstm = nn.LSTM(6, 10, 2, batch_first=batch_first)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        _, (hidden, _) = self.lstm(x if self.batch_first else x.transpose(0, 1))
        return self.head(torch.relu(hidden[-1])), hidden[-1]


class Folded(nn.Module):
    """Frames folded into the batch and back: video (N, 4, 3, 6, 6) to logits (N, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.shared = nn.ReLU()
        self.head = nn.Linear(5 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        frames = self.shared(self.conv(x.flatten(0, 1)))
        pooled = self.shared(frames.view(x.shape[0], 4, -1).mean(1) - 0.1)
        return self.head(pooled)


class Swish(nn.Module):
    """A module without children that is two operations."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class Tied(nn.Module):
    """A weight read twice, and modules under two names: (N, 8) to (N, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(8, 8)
        self.act = Swish()
        self.again = self.act
        self.decode = nn.Linear(8, 8)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.encode(x)) + x
        x += 1
        return self.again(self.decode(x)).softmax(-1)


class Causal(nn.Module):
    """A causal language model that reads its embedding again as its head: ids (N, 6) to logits (N, 6, 20)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.place = nn.Parameter(torch.randn(6, 16) * 0.1)
        self.mix, self.bias = nn.Parameter(torch.randn(16, 48) * 0.3), nn.Parameter(torch.randn(48) * 0.1)
        self.out = nn.Parameter(torch.randn(16, 16) * 0.3)
        self.norm = nn.LayerNorm(16)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place
        mixed = torch.addmm(self.bias, self.norm(x).view(-1, 16), self.mix).view(*ids.shape, 48)
        q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in mixed.split(16, -1))
        heads = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + heads.transpose(1, 2).flatten(2) @ self.out
        return x @ self.embed.weight.t()


def _seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.2, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(11))


def _tokens(n: int) -> dict[str, Tensor]:
    ids = torch.randint(0, 20, (n, 6), generator=torch.Generator().manual_seed(3))
    return {"ids": ids, "padding": torch.arange(6)[None] >= torch.tensor([6, 4, 5, 3, 6, 2])[torch.arange(n) % 6, None]}


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Data]]] = {
    "digits": lambda: (_seeded(zoo.digits_cnn), Data(_noise(6, 1, 8, 8))),
    "depthwise": lambda: (_seeded(Depthwise), Data(_noise(6, 3, 12, 12))),
    "transformer": lambda: (_seeded(lambda: Transformer(batch_first=True)), Data(_tokens(6))),
    "transformer-time-first": lambda: (_seeded(lambda: Transformer(batch_first=False)), Data(_tokens(6))),
    "lstm": lambda: (_seeded(lambda: Recurrent(batch_first=True)), Data((_noise(6, 7, 6),))),
    "lstm-time-first": lambda: (_seeded(lambda: Recurrent(batch_first=False)), Data((_noise(6, 7, 6),))),
    "folded": lambda: (_seeded(Folded), Data(_noise(6, 4, 3, 6, 6))),
    "tied": lambda: (_seeded(Tied), Data(_noise(6, 8))),
    "causal": lambda: (_seeded(Causal), Data(_tokens(6)["ids"])),
}
"""Each entry builds a network in evaluation mode and six inputs for it."""
