"""The suite for methods of hardening."""

import copy
import warnings

import torch
from torch import Tensor, nn

from torchfault.data import Data, Tree, call, leaves
from torchfault.engine import Engine
from torchfault.errors import TorchfaultError
from torchfault.hardening import Method, guards, harden, profile
from torchfault.testing.rules import equal, hold, rule

__all__ = ["check_hardening"]


def check_hardening(method: Method, model: nn.Module, data: Data, *, tolerance: float = 0.0) -> None:
    """Raise AssertionError, naming the rule, where *method* does not harden *model* as promised.

    The rules: a hashable value, equal to its copy; the model stays as it was; outputs on *data*, of which golden ranges
    are taken too, change by at most *tolerance* (0: not at all), every guard runs, and none sees anything wrong; the
    same again gives the same; nothing but parameters and buffers lasts from one pass to the next; the state of one
    hardened model, read by another, makes both compute the same; the hardened model exports and copies; it runs under
    both executors, where every parameter and buffer of it is a site; and a model that is protected already is refused.

    >>> from torchfault.hardening import InvariantBits
    >>> check_hardening(InvariantBits(), nn.Sequential(nn.Linear(3, 2)).eval(), Data(torch.randn(4, 3)))
    """
    with rule(method, "it is a hashable value, equal to its copy"):
        hold(hash(method) == hash(copy.copy(method)) and method == copy.copy(method), "got a copy that differs")
    golden = profile(model, data)
    before = _state(model)
    with torch.no_grad():
        plain = leaves(call(model, data.inputs))
    with rule(method, "it leaves the model as it was"):
        safe = harden(model, method, profile=golden)
        hold(_same(before, _state(model)) and not list(guards(model)), "the model was altered")
    held = _attributes(safe)
    with rule(method, f"clean outputs change by at most {tolerance:g}"):
        first = _outputs(safe, data)
        apart = max(float((a - b).abs().max()) for a, b in zip(first, plain, strict=True))
        hold(apart <= tolerance, f"they change by {apart:g}")
    with rule(method, "the same model hardened again is the same"):
        again = harden(model, method, profile=golden)
        hold(_same(_state(safe), _state(again)), "its state differs")
        hold(all(map(equal, first, _outputs(again, data))), "its outputs differ")
    _check_memory(method, safe, data, first, held)
    _check_round_trips(method, safe, again, data, first)
    _check_engine(method, safe, data)
    with rule(method, "it refuses a model that it protects already"):
        try:
            harden(safe, method, profile=golden)
        except TorchfaultError:
            pass
        else:
            hold(False, "it protected the model twice")


def _check_memory(method: Method, safe: nn.Module, data: Data, first: list[Tensor], held: set[str]) -> None:
    with rule(method, "nothing lasts from one pass to the next but parameters and buffers"):
        state = _state(safe)
        hold(all(map(equal, first, _outputs(safe, data))), "another pass gives other outputs")
        hold(held == _attributes(safe), f"a pass adds or removes {sorted(held ^ _attributes(safe))[:3]}")
        hold(_same(state, _state(safe)), "a pass alters the state")
    with rule(method, "every guard stands on a module that runs"):
        ran, standing = set[nn.Module](), {module: path for path, module, _ in guards(safe)}
        hooks = [module.register_forward_pre_hook(lambda module, _: ran.add(module)) for module in standing]
        _outputs(safe, data)
        for hook in hooks:
            hook.remove()
        hold(
            standing.keys() <= ran,
            f"{sorted(path for module, path in standing.items() if module not in ran)[:3]} do not",
        )
    with rule(method, "no guard sees anything wrong in a clean model"):
        alarms: list[Tensor] = []
        hooks = [
            module.register_forward_pre_hook(
                lambda module, args, guard=guard: alarms.append(guard.alarms(module, args, None).any()), prepend=True
            )
            for _, module, guard in guards(safe)
            if guard.place != "output"
        ]
        _outputs(safe, data)
        for hook in hooks:
            hook.remove()
        hold(not any(alarms), f"{sum(map(bool, alarms))} of {len(alarms)} do")


def _check_round_trips(method: Method, safe: nn.Module, again: nn.Module, data: Data, first: list[Tensor]) -> None:
    with rule(method, "the state of one hardened model makes another compute the same"):
        kept = _state(safe)
        with torch.no_grad():
            for tensor in (*again.parameters(), *again.buffers()):
                tensor.zero_()
        again.load_state_dict(kept, strict=True)
        hold(all(map(equal, first, _outputs(again, data))), "it computes something else")
    with rule(method, "the hardened model can be copied"):
        hold(all(map(equal, first, _outputs(copy.deepcopy(safe), data))), "the copy computes something else")
    with rule(method, "torch.export captures the hardened model"):
        keywords = data.inputs if isinstance(data.inputs, dict) else {}
        given = () if keywords else data.inputs if isinstance(data.inputs, tuple) else (data.inputs,)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own recurrent layers cause one, hardened or not
            exported = torch.export.export(safe, tuple(given), keywords, strict=False).module()
            found = leaves(exported(*given, **keywords))
        hold(all(torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in zip(first, found, strict=True)), "it differs")


def _check_engine(method: Method, safe: nn.Module, data: Data) -> None:
    for executor in ("graph", "hooks"):
        with rule(
            method, f"the {executor} executor runs the hardened model, and everything stored in it can be struck"
        ):
            engine = Engine(safe, data, executor=executor, buffers=True)
            names = {name for name, held in (*safe.named_parameters(), *safe.named_buffers()) if held.numel()}
            missing = sorted(names - {name.partition(":")[0] for name in engine.space.names})
            hold(not missing, f"{missing[:3]} are no sites")


def _outputs(model: nn.Module, data: Data) -> list[Tensor]:
    with torch.no_grad():
        outputs: Tree = call(model, data.inputs)
    return leaves(outputs)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(equal(one[name], two[name]) for name in one)


def _attributes(model: nn.Module) -> set[str]:
    return {f"{path}.{name}" for path, module in model.named_modules() for name in module.__dict__}
