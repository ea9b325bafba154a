"""Models to compile: plain PyTorch with presets, and no line of parallelism in them.

Each module ``superscaler.models.NAME`` has a frozen dataclass ``Config``, ``PRESETS`` (name -> ``Config``), the model
(an ``nn.Module`` whose forward returns the scalar loss) and ``example_inputs(config, batch, seq, *, seed)``. Importing
this package imports no torch; the functions below do, through the module they look up.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

from superscaler.errors import UsageError, did_you_mean
from superscaler.models.config import override

if TYPE_CHECKING:
    import torch

MODELS: tuple[str, ...] = ("gpt", "swin", "alphafold2", "t5")
_CLASSES = {"gpt": "GPT", "swin": "Swin", "alphafold2": "AlphaFold2", "t5": "T5"}


class ExampleInputs(Protocol):
    """Draws a global batch: the same tensors for the same arguments. ``seq=None`` is the model's own length."""

    def __call__(self, batch: int, seq: int | None = None, *, seed: int = 0) -> tuple[torch.Tensor, ...]: ...


def preset_names(model: str) -> tuple[str, ...]:
    """The presets of ``model``, smallest first. Raises :class:`UsageError` for an unknown model."""
    return tuple(_presets(_module(model)))


def config(model: str, preset: str, **overrides: object) -> Any:
    """The ``Config`` of a preset with some fields replaced.

    A string (what ``--set layers=3`` gives) is converted to the field's type. Raises :class:`UsageError` for an unknown
    model, preset or field, and for a value that the field or the model cannot take.
    """
    presets = _presets(_module(model))
    if preset not in presets:
        raise UsageError(f"{model} has no preset {preset!r}", hint=did_you_mean(preset, presets))
    return override(presets[preset], overrides, owner=model)


def build(model: str, preset: str, **overrides: object) -> tuple[torch.nn.Module, ExampleInputs]:
    """A freshly initialised model and the function that draws its example batches.

    ``overrides`` as in :func:`config`. The weights come from torch's global generator: seed it first. Under a
    ``FakeTensorMode`` nothing is allocated, whatever the size. Raises :class:`UsageError` as :func:`config` does.
    """
    chosen = config(model, preset, **overrides)
    module = _module(model)
    network = getattr(module, _CLASSES[model])(chosen)
    return network, cast(ExampleInputs, functools.partial(module.example_inputs, chosen))


def _module(model: str) -> Any:
    if model not in MODELS:
        raise UsageError(f"no model is named {model!r}", hint=did_you_mean(model, MODELS))
    return importlib.import_module(f"superscaler.models.{model}")


def _presets(module: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", module.PRESETS)


__all__ = ["MODELS", "ExampleInputs", "build", "config", "preset_names"]
