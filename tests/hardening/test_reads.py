"""Guards of parameters stand where these are read, which is not always in the calls of what holds them."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune, spectral_norm

from torchfault import Data, represent
from torchfault.errors import ModelError
from torchfault.hardening import (
    InvariantBits,
    Secded,
    WeightChecksums,
    WeightRanges,
    ZeroSpace,
    harden,
    load_hardened,
    profile,
    save_hardened,
    unpacked,
)
from torchfault.hardening.reads import readers
from torchfault.testing import check_hardening

SENTENCES = torch.rand(4, 3, 4, generator=torch.Generator().manual_seed(2))
WORDS = torch.tensor([[1, 2], [3, 4], [0, 5]])


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.last = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        self.last.weight = self.embed.weight

    def forward(self, x):
        return self.last(self.embed(x).mean(1).tanh())


class Listed(nn.Module):
    def __init__(self):
        super().__init__()
        self.steps = nn.ParameterList([torch.randn(4, 3)])
        self.named = nn.ParameterDict({"start": torch.randn(3)})

    def forward(self, x):
        return x.mean(1) @ self.steps[0] + self.named["start"]


class Direct(nn.Module):
    """Calls a function with the weight of a layer that it asks for its type, too."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        x = x.to(self.last.weight.dtype).mean(1)
        return self.last(F.linear(x, self.first.weight, self.first.bias))


class Twice(Direct):
    """Calls a layer, and uses its weight beside it."""

    def forward(self, x):
        return self.last(self.first(x.mean(1))) + (self.first.weight @ x.mean(1).t()).t()[:, :2]


class Around(Direct):
    """Calls no module but the code of one."""

    def forward(self, x):
        return self.last(self.first.forward(x.mean(1)))


class Plain(nn.Module):
    def __init__(self, made):
        super().__init__()
        self.first = made(nn.Linear(4, 3))

    def forward(self, x):
        return self.first(x.mean(1))


def build(kind, *args):
    torch.manual_seed(0)
    return kind(*args).eval()


def struck(safe, name, word=1):
    """Flip bits of a stored word that Secded and checksums put right, and return what the model gives then."""
    held = safe.get_parameter(name).data
    held.view({1: torch.int8, 4: torch.int32}[held.element_size()]).view(-1)[word] ^= 1 << (8 * held.element_size() - 2)
    with torch.no_grad():
        return safe(WORDS if isinstance(safe, Tied) else SENTENCES)


CASES = [
    ("attention.out_proj.weight", Attends, ()),
    ("attention.in_proj_weight", Attends, ()),
    ("embed.weight", Tied, ()),
    ("steps.0", Listed, ()),
    ("named.start", Listed, ()),
    ("first.weight_orig", Plain, (lambda layer: prune.l1_unstructured(layer, "weight", 0.2),)),
    ("first.weight_orig", Plain, (spectral_norm,)),
    ("first.parametrizations.weight.original", Plain, (nn.utils.parametrizations.spectral_norm,)),
]
SEEN = [("first.weight", Direct, ()), ("first.weight", Twice, ()), ("first.bias", Around, ())]  # a profile tells


@pytest.mark.parametrize(
    ("name", "kind", "args", "known"), [(*case, False) for case in CASES] + [(*case, True) for case in CASES + SEEN]
)
def test_a_struck_word_is_put_right_wherever_it_is_read(name, kind, args, known):
    model = build(kind, *args)
    data = WORDS if kind is Tied else SENTENCES
    safe = harden(model, Secded(), profile=profile(model, data) if known else None)
    with torch.no_grad():
        clean = safe(data)
    word = int(model.first.weight_mask.argmax()) if hasattr(getattr(model, "first", None), "weight_mask") else 1
    assert torch.equal(struck(safe, name, word), clean)
    assert not torch.allclose(struck(model, name, word), clean, rtol=1e-3)  # so that the guard made the difference


def test_a_guard_stands_once_around_all_that_read_in_there():
    model = build(Twice)
    golden = profile(model, SENTENCES)
    assert golden.reads["first.weight"] == ("first", "")
    assert readers(model, "first.weight", golden.reads) == [("", "first.weight")]
    assert readers(model, "last.weight", golden.reads) == [("last", "weight")]  # whose type alone is read elsewhere


@pytest.mark.parametrize("method", [ZeroSpace("attention.out_proj.weight"), WeightChecksums("attention.*")])
def test_codes_of_a_layer_that_does_not_run_are_decoded_and_guarded(method):
    model = represent(build(Attends), "int8")
    with torch.no_grad():
        torch.testing.assert_close(unpacked(model)(SENTENCES), model(SENTENCES))
        safe = harden(model, method)
        clean = safe(SENTENCES)
    assert torch.equal(struck(safe, "attention.out_proj.weight"), clean)


def test_tied_codes_stay_tied():
    model = represent(build(Tied), "int8")
    twin = unpacked(model)
    assert twin.last.weight is twin.embed.weight
    torch.testing.assert_close(twin(WORDS), model(WORDS))


@pytest.mark.parametrize("kind", [Attends, Direct])
def test_methods_keep_what_they_promise_where_parameters_are_read_elsewhere(kind):
    check_hardening(InvariantBits(), build(kind), Data(SENTENCES))


def test_a_file_tells_where_parameters_are_read(tmp_path):
    model = build(Direct)
    golden = profile(model, SENTENCES)
    save_hardened(harden(model, Secded(), profile=golden), tmp_path / "safe.safetensors", profile=golden)
    again = load_hardened(build(Direct), tmp_path / "safe.safetensors", Secded())
    with torch.no_grad():
        clean = again(SENTENCES)
    assert torch.equal(struck(again, "first.weight"), clean)


@pytest.mark.parametrize("method", [InvariantBits(), WeightRanges(), Secded(), WeightChecksums()])
@pytest.mark.parametrize("to", [torch.float16, torch.bfloat16, torch.float64])
def test_words_of_another_type_than_those_that_were_guarded_are_refused(method, to):
    safe = harden(build(Direct), method).to(to)
    with pytest.raises(ModelError, match=rf"weight' was hardened as torch.float32 and is {to} now; convert .* first"):
        safe(SENTENCES.to(to))


@pytest.mark.parametrize("how", ["int8", "bfloat16"])
def test_words_that_were_represented_behind_a_guard_are_refused(how):
    safe = represent(harden(build(Direct), Secded()), how)
    with pytest.raises(ModelError, match=r"was hardened as torch.float32 and is .* now; convert a model first"):
        safe(SENTENCES)
