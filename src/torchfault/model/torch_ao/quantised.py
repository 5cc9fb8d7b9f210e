"""What torch's own quantisation keeps: packed weights, quantised activations, weights under fake quantisation."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError
from torchfault.model.home import Home, site_names
from torchfault.model.torch_ao.packed import requantised, unpacked
from torchfault.storages import Part
from torchfault.words.emulated import affine

__all__ = ["activation_word", "alike", "coded", "codes", "fake_quantised", "like", "packed", "packs", "word"]

_QUANTISED = {torch.quint8: "uint8", torch.qint8: "int8", torch.qint32: "int32"}


def word(tensor: Tensor) -> str:
    """Return the word format of the codes of a quantised tensor, empty for any other tensor."""
    return _QUANTISED.get(tensor.dtype, "")


def codes(tensor: Tensor) -> Tensor:
    """Return the codes of a quantised tensor as integers in the same memory: to change them changes it."""
    held = {"uint8": torch.uint8, "int8": torch.int8, "int32": torch.int32}[word(tensor)]
    found = torch.empty(0, dtype=held, device=tensor.device)
    return found.set_(tensor.untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def coded(codes: Tensor, like: Tensor) -> Tensor:
    """Return integer *codes* as a quantised tensor with the scale and zero point of *like*.

    It has the same memory, but where every channel has a scale of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch warns that these tensors will go; they are here now
        if like.qscheme() == torch.per_channel_affine:
            columns = (like.q_per_channel_scales(), like.q_per_channel_zero_points(), like.q_per_channel_axis())
            return torch._make_per_channel_quantized_tensor(codes, *columns)
        found = torch._empty_affine_quantized(
            [0], scale=like.q_scale(), zero_point=like.q_zero_point(), dtype=like.dtype, device=codes.device
        )
    return found.set_(codes.untyped_storage(), codes.storage_offset(), codes.shape, codes.stride())


def like(tensor: Tensor) -> Tensor:
    """Return an empty tensor with the scale and zero point of *tensor*."""
    if tensor.qscheme() != torch.per_tensor_affine:
        raise ModelError("an activation has a scale for each channel")
    with torch.no_grad():
        return tensor.flatten()[:0].clone()


def alike(one: Tensor, two: Tensor) -> bool:
    """Whether two tensors have the same scale and zero point."""
    return (one.q_scale(), one.q_zero_point()) == (two.q_scale(), two.q_zero_point())


def packs(module: nn.Module) -> bool:
    """Whether *module* is a layer of ``torch.ao.nn.quantized`` that packs its weight."""
    return callable(getattr(module, "_weight_bias", None)) and callable(getattr(module, "set_weight_bias", None))


def packed(module: Any, path: str, prefix: str) -> Home:
    """Return the home of a layer of ``torch.ao.nn.quantized``: codes, scales and zero points as its kernels keep them.

    That is a float32 scale and a zero point of the codes' type, also where the Python side shows wider ones.
    """
    weight, bias = module._weight_bias()
    words, parts = unpacked(weight, f"{prefix}weight")
    if bias is not None:
        words[f"{prefix}bias"], parts[f"{prefix}bias"] = bias.detach(), Part("float32", "bias", 0)
    if isinstance(getattr(module, "scale", None), float):
        words |= {f"{prefix}scale": torch.tensor(module.scale, dtype=torch.float32)}
        words |= {f"{prefix}zero_point": torch.tensor(module.zero_point, dtype=torch.uint8)}
        parts |= {f"{prefix}scale": Part("float32", "scale"), f"{prefix}zero_point": Part("uint8", "zero_point")}
    return Home(words, parts, "", path, lambda changed: _pack(module, prefix, changed))


def _pack(module: Any, prefix: str, changed: Mapping[str, Tensor]) -> Callable[[], None]:
    mine = {site.removeprefix(prefix): words for site, words in changed.items()}
    holder = module._packed_params if isinstance(module._packed_params, nn.Module) else module
    before = (holder._packed_params, getattr(module, "scale", None), getattr(module, "zero_point", None))

    def undo() -> None:
        holder._packed_params = before[0]
        if before[1] is not None:
            module.scale, module.zero_point = before[1:]

    if "scale" in mine:
        module.scale = float(mine["scale"])
    if "zero_point" in mine:
        module.zero_point = int(mine["zero_point"])
    if mine.keys() & {"weight", "weight:scale", "weight:zero_point", "bias"}:
        weight, bias = module._weight_bias()
        module.set_weight_bias(requantised(weight, mine, "weight"), mine.get("bias", bias))
    return undo


# Weights under fake quantisation.


def fake_quantised(module: Any, path: str, full: str, parameter: Tensor) -> Home | None:
    """Return the home of a weight that its module rounds to codes before each use (quantisation-aware training).

    With a fused batch norm, the codes are those of the weight as scaled by the norm's running statistics.
    """
    fake: Any = getattr(module, "weight_fake_quant", None)
    if not isinstance(fake, nn.Module) or not _rounds(fake):
        return None
    quantiser: Any = fake  # isinstance has made a module of it, which cannot be told what it has
    signed, axis = int(quantiser.quant_min) < 0, int(getattr(quantiser, "ch_axis", -1))
    code, held = ("int8", torch.int8) if signed else ("uint8", torch.uint8)
    scale, zero = quantiser.scale.detach().float(), quantiser.zero_point.detach()

    def along(column: Tensor) -> Tensor:
        return column.view(-1, *[1] * (parameter.ndim - 1)) if axis == 0 and len(column) > 1 else column

    def value(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        return (codes.float() - along(zeros.float())) * along(scales)

    with torch.no_grad():
        codes = (quantiser(_folded(module, parameter)) / along(scale) + along(zero)).round().to(held)
    words = site_names(full, {"": codes, "scale": scale, "zero_point": zero.to(held)})
    parts = {"": Part(code, channel=0), "scale": Part("float32", "scale"), "zero_point": Part(code, "zero_point")}

    def install(changed: Mapping[str, Tensor]) -> Callable[[], None]:
        struck = value(*(changed.get(site, held) for site, held in words.items()))
        module._modules["weight_fake_quant"] = _Given(struck)  # fake would round the faulty value back onto its grid
        return lambda: module._modules.update(weight_fake_quant=fake)

    return Home(words, site_names(full, parts), full, path, install)


class _Given(nn.Module):
    """Gives the same value whatever it reads; gradients pass as if it gave what it reads."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        """Return the value."""
        return self.value + (x - x.detach()) if torch.is_grad_enabled() and x.requires_grad else self.value


def _folded(module: Any, parameter: Tensor) -> Tensor:
    """Return what *module* rounds: its weight, scaled as a batch norm within it would."""
    norm = getattr(module, "bn", None)
    if norm is None:
        return parameter.detach()
    factor = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
    scaled: Tensor = parameter.detach() * factor.reshape(-1, *[1] * (parameter.ndim - 1))
    return scaled


def _rounds(module: nn.Module) -> bool:
    """Whether *module* rounds to codes of a fixed scale: not one that still observes, which moves it at every call."""
    fake: Any = module
    names = ("scale", "zero_point", "quant_min", "quant_max", "fake_quant_enabled", "observer_enabled")
    if not all(hasattr(module, name) for name in names):
        return False
    return bool(fake.fake_quant_enabled[0]) and not bool(fake.observer_enabled[0]) and _span(fake) < 256


def _span(fake: Any) -> int:
    return int(fake.quant_max) - int(fake.quant_min)


def activation_word(module: nn.Module) -> str:
    """Return the word format of what *module* gives where it rounds activations to codes, else an empty name."""
    fake: Any = module
    if not _rounds(module) or fake.scale.numel() != 1:
        return ""
    scale, zero_point = float(fake.scale), int(fake.zero_point)
    return affine(scale, zero_point, signed=int(fake.quant_min) < 0).name
