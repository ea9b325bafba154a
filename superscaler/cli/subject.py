"""What is to be compiled: a model with example inputs, from its name on the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import msgspec

from superscaler import models
from superscaler.cli.lookup import call, find_object
from superscaler.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from torch import nn

BATCH = 8
_LARGEST = 1 << 40
_FACTORY = "a function without arguments that returns (module, inputs)"


@dataclass(frozen=True)
class Request:
    """How a model was asked for. ``settings``: of a preset, as ``--set key=value`` gives them."""

    name: str
    preset: str | None = None
    settings: dict[str, str] = field(default_factory=dict[str, str])
    batch: int = BATCH
    seq: int | None = None

    def __post_init__(self) -> None:
        for option, number in (("--batch", self.batch), ("--seq", self.seq or 0)):
            if number > _LARGEST:
                raise UsageError(f"{option} is {number}", hint=f"at most {_LARGEST:,}")

    def recorded(self) -> dict[str, Any]:
        """The request as data, for the plan to keep; :meth:`of` reads it back."""
        return {"name": self.name, "preset": self.preset, "set": self.settings, "batch": self.batch, "seq": self.seq}

    @staticmethod
    def of(recorded: Mapping[str, Any]) -> Request:
        """The request that a plan keeps. Raises :class:`UsageError` for what is none: the file may be anyone's."""
        try:
            return msgspec.convert({**recorded, "settings": recorded["set"]}, Request)
        except (TypeError, LookupError, msgspec.ValidationError) as e:
            raise UsageError("the plan does not say how its model is made", str(e), hint="--weights DIR and "
                             "--data script.py:function, or compile the plan again") from None  # fmt: skip


@dataclass(frozen=True)
class Subject:
    """A model with the arguments of one call of it."""

    model: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict[str, Any])


def settings_of(pairs: list[str]) -> dict[str, str]:
    """``["layers=3", …]`` as a dictionary. Raises :class:`UsageError` for what is no pair."""
    found: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--set {pair}: no setting", hint="--set key=value")
        found[key] = value
    return found


def make(request: Request, *, seed: int = 0) -> Subject:
    """The model with an example batch; ``seed`` draws both.

    Raises :class:`UsageError` for an unknown name, preset or setting.
    """
    if request.name.startswith("hf:"):
        return _from_directory(request, seed)
    if ":" in request.name:
        return _from_factory(request, seed)
    if request.name not in models.MODELS:
        known = [*models.MODELS, "hf:DIR", "package.module:factory"]
        raise UsageError(f"no model is named {request.name!r}", hint=did_you_mean(request.name, known))
    preset = request.preset or models.preset_names(request.name)[0]
    _seeded(seed)
    network, example = models.build(request.name, preset, **request.settings)
    return Subject(network, example(request.batch, request.seq, seed=seed))


def example_batch(request: Request, *, seed: int) -> tuple[Any, ...] | dict[str, Any]:
    """One batch of the request's model, without the model where that can be had."""
    from superscaler.trace.building import without_memory as build

    if request.name in models.MODELS:
        preset = request.preset or models.preset_names(request.name)[0]
        _, example = build(lambda: models.build(request.name, preset, **request.settings))
        return example(request.batch, request.seq, seed=seed)
    if request.name.startswith("hf:"):
        from superscaler.trace.hf import load_hf

        _, draw = build(lambda: load_hf(request.name.removeprefix("hf:")))
        return draw(request.batch, request.seq, seed=seed)
    made = make(request, seed=seed)
    return made.kwargs or made.args


def without_memory(request: Request) -> Subject:
    """The model and its batch of fake tensors: shapes and dtypes only, whatever the size."""
    from superscaler.trace.building import without_memory as build

    return build(lambda: make(request))


def _seeded(seed: int) -> None:
    from superscaler.trace.building import draw_from

    draw_from(seed)


def _from_directory(request: Request, seed: int) -> Subject:
    _no_presets(request, "hf:DIR")
    _seeded(seed)
    from superscaler.trace.hf import load_hf

    model, example = load_hf(request.name.removeprefix("hf:"))
    return Subject(model, (), example(request.batch, request.seq, seed=seed))


def _from_factory(request: Request, seed: int) -> Subject:
    _no_presets(request, "package.module:factory")
    factory = find_object(request.name)
    if not callable(factory):
        raise UsageError(f"{request.name} is a {type(factory).__name__}, not a function", hint=_FACTORY)
    _seeded(seed)
    made = call(f"{request.name}()", cast(Callable[[], Any], factory))
    model: Any = made
    inputs: Any = None
    if isinstance(made, tuple) and len(cast("tuple[Any, ...]", made)) == 2:
        model, inputs = cast("tuple[Any, Any]", made)
    if not hasattr(model, "named_parameters"):
        raise UsageError(f"{request.name}() gives a {type(model).__name__}, not a module", hint=_FACTORY)
    if inputs is None:
        raise UsageError(
            f"{request.name}() gives a module without inputs",
            hint="return (module, inputs): a tuple or dict of tensors, or a function of batch and seq that gives one",
        )
    if callable(inputs):
        inputs = call(f"the inputs of {request.name}", inputs, **_accepted(inputs, request, seed))
    if isinstance(inputs, Mapping):
        return Subject(model, (), dict(cast("Mapping[str, Any]", inputs)))
    return Subject(model, tuple(inputs) if isinstance(inputs, list | tuple) else (inputs,))


def _accepted(function: Callable[..., Any], request: Request, seed: int) -> dict[str, Any]:
    """Those of batch, seq and seed that the function takes; ``seq`` only if it was given, or must be."""
    known = {"batch": request.batch, "seq": request.seq, "seed": seed}
    taken = inspect.signature(function).parameters
    found = {name: value for name, value in known.items() if name in taken and value is not None}
    needed = [
        n for n, p in taken.items() if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    missing = [name for name in needed if name not in found]
    if missing:
        hint = "--seq N" if missing[0] == "seq" else "it is called with batch, seq and seed, as far as it takes them"
        raise UsageError(f"the inputs of {request.name} need {missing[0]!r}", hint=hint)
    return found


def _no_presets(request: Request, what: str) -> None:
    if request.preset is not None or request.settings:
        raise UsageError(
            f"--preset and --set are for models that come with superscaler, not for {what}", hint="without them"
        )
