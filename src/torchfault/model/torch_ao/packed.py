"""The words that torch's quantised recurrent layers and embeddings keep in packed objects."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchfault.model.home import Home
from torchfault.storages import Part

__all__ = ["is_part", "packed_homes", "requantised", "shares_ranges", "unpacked"]

_HOLDERS = ("LinearPackedParams", "EmbeddingPackedParams", "PackedParameter")
_CODES = {torch.qint8: "int8", torch.quint8: "uint8", torch.quint4x2: "uint4"}
_LINEAR = "__torch__.torch.classes.quantized.LinearPackedParamsBase"
_Words = dict[str, Tensor]
_Parts = dict[str, Part]


def is_part(module: nn.Module) -> bool:
    """Whether *module* is one in which a quantised layer of torch's own holds its packed words.

    >>> is_part(nn.Linear(2, 1)), is_part(torch.ao.nn.quantized.Linear(2, 1)._packed_params)
    (False, True)
    """
    if isinstance(module, nn.ModuleList):
        return len(module) > 0 and all(type(child).__name__ == "PackedParameter" for child in module)
    return type(module).__name__ in _HOLDERS


def shares_ranges(module: nn.Module) -> bool:
    """Whether *module* quantises what it reads by the range of the whole batch, so that lanes influence each other.

    >>> shares_ranges(torch.ao.nn.quantized.dynamic.Linear(2, 1)), shares_ranges(torch.ao.nn.quantized.Linear(2, 1))
    (True, False)
    """
    whole = getattr(module, "dtype", getattr(module, "weight_dtype", None)) != torch.float16
    dynamic = type(module).__module__.startswith(
        ("torch.ao.nn.quantized.dynamic", "torch.ao.nn.intrinsic.quantized.dynamic")
    )
    return dynamic and whole and not is_part(module)


def packed_homes(module: Any, path: str, prefix: str) -> list[Home]:
    """Return the homes of *module* if it is a quantised recurrent layer or cell or an embedding of ``torch.ao``.

    So are those of packed linear weights that a module holds by themselves, as FX graph mode leaves them for functions.

    >>> lstm = torch.ao.nn.quantized.dynamic.LSTM(2, 1)
    >>> [list(home.words)[:2] for home in packed_homes(lstm, "lstm", "lstm.")]
    [['lstm.weight_ih_l0', 'lstm.weight_ih_l0:scale']]
    """
    if isinstance(getattr(module, "_all_weight_values", None), nn.ModuleList):
        return list(_recurrent(module, path, prefix))
    if _is_linear(getattr(module, "_packed_weight_ih", None)):
        return [_cell(module, path, prefix)]
    holder = getattr(module, "_packed_params", None)
    if type(holder).__name__ == "EmbeddingPackedParams":
        return [_embedding(holder, path, prefix)]
    alone = [name for name, value in module.__dict__.items() if _is_linear(value)]
    if is_part(module) or "_packed_params" in alone:
        return []
    return [_function(module, name, path, prefix) for name in alone]


def _is_linear(value: Any) -> bool:
    return isinstance(value, torch.ScriptObject) and value._type().qualified_name() == _LINEAR


def _recurrent(module: Any, path: str, prefix: str) -> Iterator[Home]:
    """Yield a home for each layer and direction of an LSTM or GRU."""
    sides = ("", "_reverse") if module.bidirectional else ("",)
    ends = [f"_l{layer}{side}" for layer in range(module.num_layers) for side in sides]
    for end, holder in zip(ends, module._all_weight_values, strict=True):
        kind, _, _, numbers, linears = holder.param.__getstate__()[0]
        again = _dynamic(bool(numbers[0])) if kind == "quantized_dynamic" else _half

        def put(packed: Sequence[Any], holder: Any = holder, again: Any = again) -> Callable[[], None]:
            before, holder.param = holder.param, again(packed)
            return lambda: setattr(holder, "param", before)

        yield _pair(linears, path, prefix, end, put)


def _dynamic(reduce_range: bool) -> Callable[[Sequence[Any]], Any]:
    def again(packed: Sequence[Any]) -> Any:
        biases = [_weight_bias(one)[1] for one in packed]
        return torch.ops.quantized.make_quantized_cell_params_dynamic(*packed, *biases, reduce_range)

    return again


def _half(packed: Sequence[Any]) -> Any:
    return torch.ops.quantized.make_quantized_cell_params_fp16(*packed)


def _cell(module: Any, path: str, prefix: str) -> Home:
    names = ("_packed_weight_ih", "_packed_weight_hh")

    def put(packed: Sequence[Any]) -> Callable[[], None]:
        before = [getattr(module, name) for name in names]
        for name, new in zip(names, packed, strict=True):
            setattr(module, name, new)

        def back() -> None:
            for name, old in zip(names, before, strict=True):
                setattr(module, name, old)

        return back

    return _pair([getattr(module, name) for name in names], path, prefix, "", put)


def _pair(
    linears: Sequence[Any], path: str, prefix: str, end: str, put: Callable[[Sequence[Any]], Callable[[], None]]
) -> Home:
    """Return the home of the weights that read the input and the state, whose packed objects *put* replaces."""
    words: _Words = {}
    parts: _Parts = {}
    names = [(f"{prefix}weight_{which}{end}", f"{prefix}bias_{which}{end}") for which in ("ih", "hh")]
    for one, named in zip(linears, names, strict=True):
        _add(words, parts, one, *named)

    def install(changed: Mapping[str, Tensor]) -> Callable[[], None]:
        return put([_repacked(one, changed, *named) for one, named in zip(linears, names, strict=True)])

    return Home(words, parts, "", path, install)


def _function(module: Any, name: str, path: str, prefix: str) -> Home:
    words: _Words = {}
    parts: _Parts = {}
    named, before = (f"{prefix}{name}.weight", f"{prefix}{name}.bias"), getattr(module, name)
    _add(words, parts, before, *named)

    def install(changed: Mapping[str, Tensor]) -> Callable[[], None]:
        setattr(module, name, _repacked(before, changed, *named))
        return lambda: setattr(module, name, before)

    return Home(words, parts, "", path, install)


def _embedding(holder: Any, path: str, prefix: str) -> Home:
    weight, name = holder._weight(), f"{prefix}weight"
    words, parts = unpacked(weight, name)

    def install(changed: Mapping[str, Tensor]) -> Callable[[], None]:
        before = holder._packed_weight
        holder._packed_weight = torch.ops.quantized.embedding_bag_prepack(requantised(weight, changed, name))
        return lambda: setattr(holder, "_packed_weight", before)

    return Home(words, parts, "", path, install)


def _weight_bias(packed: Any) -> tuple[Tensor, Tensor | None]:
    weight, bias = packed.__getstate__()[0]
    return weight, bias


def _add(words: _Words, parts: _Parts, packed: Any, weight_name: str, bias_name: str) -> None:
    weight, bias = _weight_bias(packed)
    found = unpacked(weight, weight_name)
    words.update(found[0])
    parts.update(found[1])
    if bias is not None:
        words[bias_name], parts[bias_name] = bias.detach(), Part("float32", "bias", 0)


def _repacked(packed: Any, changed: Mapping[str, Tensor], weight_name: str, bias_name: str) -> Any:
    weight, bias = _weight_bias(packed)
    mine = requantised(weight, changed, weight_name)
    pack = torch.ops.quantized.linear_prepack if mine.is_quantized else torch.ops.quantized.linear_prepack_fp16
    return pack(mine, changed.get(bias_name, bias))


def unpacked(weight: Tensor, name: str) -> tuple[_Words, _Parts]:
    """Return the words of an unpacked weight called *name*: codes, scales and zero points, or float16 values.

    >>> half = torch.ao.nn.quantized.dynamic.Linear(2, 1, dtype=torch.float16).weight()
    >>> [part.word for part in unpacked(half, "weight")[1].values()]
    ['float16']
    """
    if not weight.is_quantized:  # of packed halves
        return {name: weight.detach().half()}, {name: Part("float16", channel=0)}
    code, channel = _CODES[weight.dtype], None
    codes = weight.int_repr()
    if weight.dtype == torch.quint4x2:  # comes as bytes with two codes each, the first in the lower half
        codes = torch.stack([codes & 15, codes >> 4], -1).reshape(-1)[: weight.numel()].reshape(weight.shape)
    if weight.qscheme() == torch.per_tensor_affine:
        scale, zero = torch.tensor(weight.q_scale(), dtype=torch.float64), torch.tensor(weight.q_zero_point())
    else:
        scale, zero, channel = weight.q_per_channel_scales(), weight.q_per_channel_zero_points(), 0
    kept = zero if zero.is_floating_point() else zero.to(torch.int8)
    scale, word = (scale.half(), "float16") if code == "uint4" else (scale.float(), "float32")  # as the kernels have it
    words = {name: codes, f"{name}:scale": scale, f"{name}:zero_point": kept}
    parts = {
        name: Part(code, channel=0),
        f"{name}:scale": Part(word, "scale", channel),
        f"{name}:zero_point": Part("float32" if zero.is_floating_point() else "int8", "zero_point", channel),
    }
    return words, parts


def requantised(weight: Tensor, changed: Mapping[str, Tensor], name: str) -> Tensor:
    """Return the unpacked *weight* called *name* with *changed* words."""
    if not weight.is_quantized:
        return changed[name].float() if name in changed else weight
    codes, scales, zeros = (changed.get(f"{name}{part}") for part in ("", ":scale", ":zero_point"))
    codes = unpacked(weight, name)[0][name] if codes is None else codes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if weight.qscheme() == torch.per_tensor_affine:
            step = weight.q_scale() if scales is None else float(scales)
            offset = weight.q_zero_point() if zeros is None else int(zeros)
            return torch._make_per_tensor_quantized_tensor(codes, step, offset)
        scale, zero = weight.q_per_channel_scales(), weight.q_per_channel_zero_points()
        axis = weight.q_per_channel_axis()
        # A scale that did not change keeps its precision.
        fresh = scale.float() if scales is None else scales
        scale = torch.where(_same_bits(fresh, scale.to(fresh.dtype)), scale, fresh.to(scale.dtype))
        zero = zero if zeros is None else zeros.to(zero.dtype)
        if weight.dtype == torch.quint4x2:
            return _halves_of_bytes(codes, scale, zero, axis)
        return torch._make_per_channel_quantized_tensor(codes, scale, zero, axis)


def _halves_of_bytes(codes: Tensor, scale: Tensor, zero: Tensor, axis: int) -> Tensor:
    """Return a tensor with two codes in each byte."""
    found = torch._empty_per_channel_affine_quantized(
        list(codes.shape), scales=scale, zero_points=zero, axis=axis, dtype=torch.quint4x2
    )
    flat = torch.nn.functional.pad(codes.reshape(-1), (0, codes.numel() % 2))
    memory = torch.empty(0, dtype=torch.uint8).set_(found.untyped_storage())
    memory[: len(flat) // 2] = flat[::2] | flat[1::2] << 4
    return found


def _same_bits(a: Tensor, b: Tensor) -> Tensor:
    plain = torch.int16 if a.element_size() == 2 else torch.int32
    return a.contiguous().view(plain) == b.contiguous().view(plain)
