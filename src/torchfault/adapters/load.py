"""Models by name: a factory of the user's own, or torchvision, timm and Hugging Face where they are installed."""

import inspect
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from torchfault.adapters.checkpoint import load_checkpoint
from torchfault.adapters.detections import padded_detections
from torchfault.adapters.sources import load_data
from torchfault.errors import ModelError, TorchfaultError, brief, did_you_mean
from torchfault.imports import import_object

__all__ = ["import_object", "load_data", "load_model"]


def load_model(
    spec: str,
    *,
    kwargs: Mapping[str, Any] | None = None,
    checkpoint: str | Path | None = None,
    key: str | None = None,
    prefix: str | None = None,
    pretrained: bool = False,
    training: bool = False,
    seed: int = 0,
) -> nn.Module:
    """Return the model that *spec* names, on the CPU, with the weights of *checkpoint* if there is one.

    *spec* is ``package.module:factory`` (a function, a class or a module that is ready), ``torchvision:NAME``,
    ``timm:NAME`` or ``hf:NAME`` (a folder, or a name on the hub). torchvision's detectors come with outputs of a fixed
    size (:func:`torchfault.adapters.detections.padded_detections`). *key* and *prefix* are those of
    :func:`torchfault.adapters.checkpoint.load_checkpoint`. Nothing is downloaded unless *pretrained*. Fresh weights are
    drawn from *seed*. The model comes in evaluation mode unless *training*. Raises :class:`ModelError`.

    >>> model = load_model("torchfault.zoo:digits_cnn", seed=7)
    >>> bool((model.fc2.weight == load_model("torchfault.zoo:digits_cnn", seed=7).fc2.weight).all())
    True
    """
    source, colon, name = spec.partition(":")
    if not colon or not source or not name:
        raise ModelError(
            f"a model is named as package.module:factory, torchvision:NAME, timm:NAME or hf:NAME, got '{spec}'"
        )
    options = dict(kwargs or {})
    builder = _LIBRARIES.get(source)
    if pretrained and builder is None:
        raise ModelError(f"pretrained goes with torchvision:, timm: and hf: models, got '{spec}'; give a checkpoint")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = builder(name, options, pretrained) if builder else _own(spec, options)
    if checkpoint is not None:
        load_checkpoint(model, checkpoint, key=key, prefix=prefix)
    return model.train(training)


def _own(spec: str, options: dict[str, Any]) -> nn.Module:
    """Build a model by the user's factory; a module that is ready is taken as it is."""
    found = import_object(spec)
    if isinstance(found, nn.Module):
        if options:
            raise ModelError(f"'{spec}' is a model that is ready, so it takes no kwargs; remove them or name a factory")
        return found
    if not callable(found):
        raise ModelError(f"'{spec}' is of type {type(found).__name__}; name a function that returns a torch.nn.Module")
    return _module(_called(found, spec, options), spec)


def _called(factory: Any, spec: str, options: dict[str, Any]) -> Any:
    try:
        return factory(**options)
    except TorchfaultError:
        raise
    except Exception as failed:
        given = f" with {options}" if options else ""
        raise ModelError(f"'{spec}' failed{given}: {brief(failed)}") from failed


def _module(model: Any, spec: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ModelError(f"'{spec}' should return a torch.nn.Module, got an object of type {type(model).__name__}")
    return model


def _library(name: str, install: str) -> ModuleType:
    """Import an optional package, or say how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as missing:
        if missing.name == name:
            raise ModelError(f"models of {name} need the package {name}; install it: pip install {install}") from None
        raise ModelError(f"{name} needs the module '{missing.name}', which is not installed") from None
    except Exception as failed:
        # The registry's torchvision is a CUDA build, whose import fails beside a CPU torch; so do its dependants' then.
        raise ModelError(
            f"{name} does not work beside the installed torch {torch.__version__} ({brief(failed)}); install torch "
            f"and torchvision together from one index: see https://pytorch.org/get-started"
        ) from failed


def _torchvision(name: str, options: dict[str, Any], pretrained: bool) -> nn.Module:
    models = _library("torchvision", "-c constraints.txt torchvision").models
    _known(name, models.list_models(), "torchvision")
    weights: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None}
    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters and not pretrained:
        weights["weights_backbone"] = None  # or it would be downloaded
    model = _called(lambda **kw: models.get_model(name, **kw), f"torchvision:{name}", weights | options)
    found = _module(model, name)
    return padded_detections(found) if name in models.list_models(module=models.detection) else found


def _timm(name: str, options: dict[str, Any], pretrained: bool) -> nn.Module:
    timm = _library("timm", "-c constraints.txt timm")
    # A tag behind the dot names weights, not an architecture: resnet18.a1_in1k.
    _known(name.partition(".")[0], timm.list_models(), "timm")
    create = lambda **kw: timm.create_model(name, pretrained=pretrained, **kw)  # noqa: E731
    return _module(_called(create, f"timm:{name}", options), name)


def _known(name: str, names: Iterable[str], library: str) -> None:
    if name not in (known := list(names)):
        raise ModelError(f"{library} has no model '{name}'{did_you_mean(name, known)}")


def _hugging_face(name: str, options: dict[str, Any], pretrained: bool) -> nn.Module:
    transformers = _library("transformers", "-c constraints.txt transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(name, local_files_only=not pretrained, **options)
    except Exception as failed:
        hint = "" if pretrained else "; it is not on this machine: set pretrained: true to download it"
        raise ModelError(f"Hugging Face gives no configuration for '{name}' ({brief(failed)}){hint}") from failed
    if getattr(config, "use_cache", False) and "use_cache" not in options:
        config.use_cache = False  # what a pass keeps for the next one is no output, and nothing here asks for a next
    architectures = getattr(config, "architectures", None) or []
    model_class = getattr(transformers, architectures[0], None) if architectures else transformers.AutoModel
    if model_class is None:
        raise ModelError(f"transformers {transformers.__version__} has no class '{architectures[0]}' for '{name}'")
    if pretrained:
        return _module(_called(lambda: model_class.from_pretrained(name, config=config), f"hf:{name}", {}), name)
    build = model_class if architectures else model_class.from_config
    return _module(_called(lambda: build(config), f"hf:{name}", {}), name)


_LIBRARIES = {"torchvision": _torchvision, "timm": _timm, "hf": _hugging_face}
