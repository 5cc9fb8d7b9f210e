"""Zero-space protection of 8-bit codes: a correcting code in the bits that small codes leave free."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchfault.errors import ModelError
from torchfault.hardening.codes import FREE, Dequantised, Signs, dequantiser
from torchfault.hardening.profile import Profile
from torchfault.hardening.reads import readers
from torchfault.hardening.stored import chosen, in_turn, watch_parameter

__all__ = ["ZeroSpace"]

_BLOCK, _CHECKS = 8, 7
_FACTORS = tuple(1 + step / 16 for step in range(17))


@dataclass(frozen=True)
class ZeroSpace:
    """Correct any flip in eight neighbouring int8 codes, by 7 check bits in the bits that seven of them do not need.

    Codes from -64 to 63 repeat their sign in bit 6. Seven of eight neighbours are brought into that range, the eighth
    keeps all of its own; each scale grows, by up to 2, as far as that makes the squared error of its codes smallest.
    Two flips in a block are seen, and left. Up to 7 codes at the end of a tensor have no block and are left as they
    are. *sites* are globs of parameters; the codes among them are encoded. No memory is added.

    Source: Guan et al., In-Place Zero-Space Memory Protection for CNN, NeurIPS 2019, who train networks into that form;
    Hsiao, A Class of Optimal Minimum Odd-weight-column SEC-DED Codes, IBM J. Res. Dev. 1970.

    >>> from torchfault import represent
    >>> from torchfault.hardening import harden
    >>> safe = harden(represent(nn.Linear(8, 2), "int8"), ZeroSpace())
    >>> before = safe(torch.ones(1, 8))
    >>> with torch.no_grad():
    ...     safe.weight[0, 3] ^= 1 << 5
    >>> torch.equal(safe(torch.ones(1, 8)), before)
    True
    """

    sites: str | tuple[str, ...] = "*"

    def __call__(self, model: nn.Module, profile: Profile | None) -> nn.Module:
        """Return *model* with encoded codes, and scales to match."""
        for name, codes in chosen(model, self.sites, profile, types=(torch.int8,)).items():
            places = [
                (model.get_submodule(path), place)
                for path, place in readers(model, name, profile.reads if profile else {})
            ]
            module, place = places[0]
            made = dequantiser(module, place)
            if made is None or codes.numel() < _BLOCK:
                raise ModelError(
                    f"zero-space protection needs 8 codes or more that represent(model, 'int8') made, got '{name}'; "
                    "choose other parameters"
                )
            watch_parameter(model, name, _Hsiao(), profile, encoded=_encoded(_limited(module, made)))
            for module, place in places:
                module.register_forward_pre_hook(Signs(place))
                in_turn(module)
        return model


def _limited(module: nn.Module, made: Dequantised) -> Tensor:
    """Return codes of which seven of eight are small, of the same values as before; scales change with them."""
    values, scale = made.values(module).float(), module.get_parameter(f"{made.name}_scale")
    places = torch.arange(scale.numel(), dtype=torch.float32).reshape(scale.shape)
    one = module.get_parameter(made.name).new_ones(values.shape)
    group = made.storage.decode({"": one, "scale": places}, values.shape).long()  # the scale that each code has
    last = torch.arange(values.numel()).reshape(values.shape) % _BLOCK == _BLOCK - 1
    last |= torch.arange(values.numel()).reshape(values.shape) >= values.numel() // _BLOCK * _BLOCK
    low, high = torch.where(last, -128, -64), torch.where(last, 127, 63)
    tried = torch.stack([(values / (scale.flatten()[group] * by)).round().clamp(low, high) for by in _FACTORS])
    steps = torch.stack([scale.flatten() * by for by in _FACTORS])
    errors = (tried * steps[:, group] - values).square().flatten(1)
    sums = torch.zeros_like(steps).index_add_(1, group.flatten(), errors)
    best = sums.argmin(0)
    with torch.no_grad():
        scale.copy_(steps.gather(0, best[None]).reshape(scale.shape))
    return tried.gather(0, best[group][None])[0].to(torch.int8)


def _encoded(codes: Tensor) -> Tensor:
    """Return *codes* with check bits in bit 6 of seven of eight."""
    blocks, rest = _blocks(codes)
    clear = blocks & ~FREE.to(codes.device)
    syndrome = _syndrome(clear)[:, None]
    checks = (syndrome >> torch.arange(_CHECKS, device=codes.device) & 1) << 6
    coded = torch.cat((clear[:, :_CHECKS] | checks.to(torch.int8), clear[:, _CHECKS:]), 1)
    return torch.cat((coded.flatten(), rest)).view(codes.shape)


@dataclass(frozen=True)
class _Hsiao:
    """Corrects blocks of eight bytes, and leaves the check bits in them."""

    def decode(self, value: Tensor, _held: Mapping[str, Tensor]) -> Tensor:
        blocks, rest = _blocks(value)
        syndrome = _syndrome(blocks)
        if torch.compiler.is_compiling() or bool(syndrome.any()):  # a captured graph has no branches
            blocks = blocks ^ _FLIPS.to(value.device)[syndrome]
        return torch.cat((blocks.flatten(), rest)).view(value.shape)

    def wrong(self, value: Tensor, _held: Mapping[str, Tensor]) -> Tensor:
        return _syndrome(_blocks(value)[0]).any()


def _blocks(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the whole blocks of eight codes, shape (n, 8), and the codes behind them."""
    flat, whole = codes.reshape(-1), codes.numel() // _BLOCK * _BLOCK
    return flat[:whole].view(-1, _BLOCK), flat[whole:]


def _syndrome(blocks: Tensor) -> Tensor:
    """Return the sum of the columns of all set bits, shape (n,): 0 without a flip, of even weight with two."""
    place = torch.arange(_BLOCK, device=blocks.device) * 256
    part = _SUMS.to(blocks.device)[
        blocks.long() & 255 | place
    ]  # no addition, which the model's own would be named after
    part = part[:, :4] ^ part[:, 4:]
    part = part[:, :2] ^ part[:, 2:]
    return (part[:, 0] ^ part[:, 1]).long()


def _columns() -> list[int]:
    """Return the column of the check matrix for each bit of a block: all of odd weight, of check bits those of 1."""
    wide = iter(column for column in range(1 << _CHECKS) if column.bit_count() % 2 and column.bit_count() > 1)
    checks = {8 * i + 6: 1 << i for i in range(_CHECKS)}
    return [checks[bit] if bit in checks else next(wide) for bit in range(8 * _BLOCK)]


def _tables() -> tuple[Tensor, Tensor]:
    """Return the sum of columns for each byte in each place of a block, and the flip that each syndrome tells.

    Shapes (2048,), and (128, 8): a mask for each byte; none where the syndrome is that of two flips.
    """
    sums = torch.zeros(_BLOCK, 256, dtype=torch.int8)
    flips = torch.zeros(1 << _CHECKS, _BLOCK, dtype=torch.uint8)
    for bit, column in enumerate(_columns()):
        sums[bit // 8, torch.arange(256) >> bit % 8 & 1 == 1] ^= column
        flips[column, bit // 8] = 1 << bit % 8
    return sums.flatten(), flips.view(torch.int8)


_SUMS, _FLIPS = _tables()
