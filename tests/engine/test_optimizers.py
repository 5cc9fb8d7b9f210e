"""Faults in the state of an optimiser: they last, and training feels them."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchfault.engine import optimizer_space, upset_optimizer
from torchfault.errors import SpaceError
from torchfault.space import Fault


def trained(steps: int, *, upset: Fault | None = None, undo: bool = False) -> tuple[float, nn.Module]:
    """Train a small net with Adam, struck after half of the *steps*; return the final loss and the net."""
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    loss: Tensor = torch.zeros(())
    for step in range(steps):
        if step == steps // 2 and upset is not None:
            restore = upset_optimizer(model, adam, upset)
            if undo:
                restore()
        adam.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        adam.step()
    return loss.item(), model


def test_a_flipped_exponent_bit_of_the_momentum_spoils_training() -> None:
    golden, _ = trained(60)
    struck, _ = trained(60, upset=Fault("2.weight:optimizer.exp_avg", (0, 3), 30))
    assert golden < 0.3
    assert struck > 10 * golden


def test_an_undone_upset_leaves_no_trace() -> None:
    fault = Fault("2.weight:optimizer.exp_avg", (0, 3), 30)
    plain, mended = (trained(20, upset=f, undo=True)[1] for f in (None, fault))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), mended.parameters(), strict=True))


def test_the_space_is_that_of_the_state() -> None:
    model = nn.Linear(3, 2)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(SpaceError, match=r"call optimizer\.step\(\) once"):
        optimizer_space(model, sgd)
    model(torch.ones(1, 3)).sum().backward()
    sgd.step()
    space = optimizer_space(model, sgd)
    assert {site.name: site.shape for site in space.sites} == {
        "weight:optimizer.momentum_buffer": (2, 3),
        "bias:optimizer.momentum_buffer": (2,),
    }
    with pytest.raises(SpaceError, match="did you mean 'bias:optimizer"):
        upset_optimizer(model, sgd, Fault("bias:optimizer.momentum_bufer", 0, 3))
