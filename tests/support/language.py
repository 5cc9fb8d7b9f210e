"""A causal language model of one layer in the form of those of Hugging Face, and texts for it, padded or not."""

import torch
from torch import Tensor, nn

from torchfault.data import Data

WORDS, LENGTHS, LONGEST, TOKENS = 30, (6, 3, 5, 2), 6, 4


class Attention(nn.Module):
    """One head of causal attention, which adds its keys and values to the *cache*, a list."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor, mask: Tensor, cache: list[Tensor]) -> Tensor:
        q, *new = self.mix(x).chunk(3, -1)
        cache[:] = [torch.cat([old, one], 1) for old, one in zip(cache, new, strict=True)] if cache else new
        keys, values = cache
        scores = q @ keys.transpose(1, 2) / 12**0.5
        behind = torch.ones(x.shape[1], keys.shape[1], dtype=torch.bool).triu(keys.shape[1] - x.shape[1] + 1)
        scores = scores.masked_fill(behind | (mask[:, None] == 0), -1e9)
        return self.out(scores.softmax(-1) @ values)


class Language(nn.Module):
    """A causal language model of one layer, in the form of those of Hugging Face."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place, self.attention = nn.Embedding(WORDS, 12), nn.Embedding(16, 12), Attention()
        self.head = nn.Linear(12, WORDS)

    def forward(self, input_ids, attention_mask=None, cache=None, use_cache=False, position_ids=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        places = mask.cumsum(-1) - 1 if position_ids is None else position_ids
        kept = [] if cache is None else cache
        x = self.embed(input_ids) + self.place(places.clamp(min=0))
        logits = self.head(x + self.attention(x, mask, kept))
        return {"logits": logits, "cache": kept} if use_cache else {"logits": logits}


def language() -> nn.Module:
    """Return the model, with weights that are not all alike."""
    torch.manual_seed(4)
    model = Language().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.8)
    return model


def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(1, WORDS, (length,), generator=generator) for length in LENGTHS]


def padded(*, left: bool) -> dict[str, Tensor]:
    ids, mask = torch.zeros(2, len(LENGTHS), LONGEST, dtype=torch.int64)
    for row, text in enumerate(texts()):
        where = slice(LONGEST - len(text), None) if left else slice(len(text))
        ids[row, where], mask[row, where] = text, 1
    return {"input_ids": ids, "attention_mask": mask}


def prompts() -> Data:
    """Return the texts, padded on the left."""
    return Data(padded(left=True))
