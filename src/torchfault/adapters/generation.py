"""Causal language models as they generate: greedy decoding step by step, and faults at one of the steps."""

import functools
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from torchfault.adapters.stand_in import stand_in
from torchfault.errors import ModelError, SpaceError
from torchfault.model.wrappers import unwrapped
from torchfault.site import Site
from torchfault.space import FaultSpace

__all__ = ["at_step", "greedy", "next_tokens"]


def greedy(model: nn.Module, *, tokens: int, end: int | None = None, pad: int = 0) -> nn.Module:
    """Return a causal language *model* as one that continues texts by so many *tokens*, each the one that scores best.

    *model* takes ``input_ids`` (N, T), ``attention_mask``, ``cache`` (or ``past_key_values``) and ``use_cache``, and
    ``position_ids`` if it knows them, and gives ``logits`` (N, T, words) and its cache, as those of Hugging Face do.
    The result takes ``input_ids`` and, for texts padded on the left, ``attention_mask`` (N, T), 0 for padding; it gives
    ``sequences``, the new tokens (N, tokens), and ``best``, their scores (N, tokens), in which a NaN or an infinity
    shows. Behind the token *end* there is nothing but *pad*.

    The first step reads the whole text (the prefill), each later one the last token, with the keys and values of all
    before: it is a call of every module of its own, so that its activations are sites of their own (:func:`at_step`).
    The returned module shares all modules, parameters and names with *model*, which stays as it is. Raises
    :class:`ModelError` for no tokens at all, for a model that takes no tokens or no cache, and, when it runs, for one
    that gives no cache.

    >>> class Next(nn.Module):  # to whom the word behind word n is n + 1, and its cache how many words there are
    ...     def forward(self, input_ids, attention_mask, cache, use_cache):
    ...         scores = nn.functional.one_hot((input_ids + 1) % 9, 9).float()
    ...         return {"logits": scores, "cache": (cache or 0) + input_ids.shape[1]}
    >>> greedy(Next(), tokens=3)(torch.tensor([[1, 4], [2, 7]]))["sequences"]
    tensor([[5, 6, 7],
            [8, 0, 1]])
    """
    if tokens < 1:
        raise ModelError(f"a text goes on by 1 token or more, got {tokens}")
    model = unwrapped(model)
    plain = type(model)
    takes = inspect.signature(plain.forward).parameters
    kept = "cache" if "cache" in takes else "past_key_values"  # newer and older versions of transformers
    wanted = ("input_ids", "attention_mask", kept, "use_cache")
    lacking = (
        [] if any(one.kind is one.VAR_KEYWORD for one in takes.values()) else [n for n in wanted if n not in takes]
    )
    if lacking:
        raise ModelError(
            f"a causal language model takes {', '.join(wanted)}, got {plain.__name__}, which does not take "
            f"{' and '.join(lacking)}; leave generation out, or wrap the model"
        )

    @functools.wraps(plain.forward)
    def forward(self: nn.Module, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor]:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        place = (mask.cumsum(-1) - 1).clamp(min=0)
        given, cache, found, best = input_ids, None, [], []
        ended = torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        for _ in range(tokens):
            state = {kept: cache} | ({"position_ids": place} if "position_ids" in takes else {})
            result: Any = plain.forward(self, input_ids=given, attention_mask=mask, use_cache=True, **state)
            cache = next((result[name] for name in ("cache", "past_key_values") if name in result), None)
            if cache is None:
                raise ModelError(f"{plain.__name__} was asked for a cache, and gave none; take a model that keeps one")
            score, token = result["logits"][:, -1].max(-1)
            token = torch.where(ended, pad, token)
            ended = ended if end is None else ended | (token == end)
            found.append(token)
            best.append(score)
            given, place = token[:, None], place[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(given)], 1)
        return {"sequences": torch.stack(found, 1), "best": torch.stack(best, 1)}

    return stand_in(model, forward)


def at_step(space: FaultSpace, step: int) -> FaultSpace:
    """Return the activations of *space* at one *step* of :func:`greedy`: 0 is the prefill, 1 the first decoding step.

    A fault there strikes at that step alone; what it changes in the cache, all later steps read. Weights belong to no
    step: they are read at each. Raises :class:`SpaceError` for a step that there is not.

    >>> once = Site("fc:input", (5, 4), kind="input", module="fc")
    >>> again = Site("fc@1:input", (1, 4), kind="input", module="fc")
    >>> [at_step(FaultSpace((once, again)), step).names for step in (0, 1)]
    [('fc:input',), ('fc@1:input',)]
    """
    names = [site.name for site in space.sites if site.is_activation and site.module and _step(site) == step]
    if not names:
        steps = {_step(site) for site in space.sites if site.is_activation and site.module}
        raise SpaceError(f"the activations have steps 0 to {max(steps, default=0)}, got {step}")
    return space.select(names)


def _step(site: Site) -> int:
    """Return in which call of its module the activation is computed, from 0."""
    behind = site.name.removeprefix(site.module)
    call = behind[1:].replace(":", ".").partition(".")[0] if behind.startswith("@") else "0"
    return int(call)


def next_tokens(input_ids: Tensor, attention_mask: Tensor | None = None, *, ignore: int = -100) -> Tensor:
    """Return texts (N, T) as labels for ``Perplexity(shift=True)``: *ignore* where no token of the text foretells one.

    That is at padding, on either side, and at the first token of a text: what stands before it is padding, or nothing.

    >>> next_tokens(torch.tensor([[0, 0, 5, 7], [3, 4, 8, 0]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0]]))
    tensor([[-100, -100, -100,    7],
            [-100,    4,    8, -100]])
    """
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    return input_ids.where((mask > 0) & (mask.cumsum(-1) > 1), ignore)
