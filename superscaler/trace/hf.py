"""``hf:DIR``: models of ``transformers`` from a local directory or a bare ``config.json``. Nothing is downloaded.

Weights are read from safetensors only, and code in the directory is never run.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from superscaler.errors import UsageError, did_you_mean

Kind = Literal["causal", "masked", "seq2seq", "image"]
Example = Callable[..., dict[str, Tensor]]

# Kind -> the class of transformers that builds it, and how the names of such architectures end.
_KINDS: dict[Kind, tuple[str, tuple[str, ...]]] = {
    "causal": ("AutoModelForCausalLM", ("ForCausalLM", "LMHeadModel")),
    "masked": ("AutoModelForMaskedLM", ("ForMaskedLM",)),
    "seq2seq": ("AutoModelForSeq2SeqLM", ("ForConditionalGeneration",)),
    "image": ("AutoModelForImageClassification", ("ForImageClassification",)),
}
_LENGTHS = ("max_position_embeddings", "n_positions", "max_target_positions")
_LONGEST = 2048
IGNORE = -100
_SAVED = "a directory as model.save_pretrained(DIR) writes it"


def load_hf(path: str | Path) -> tuple[nn.Module, Example]:
    """A model that gives a loss, and the function that draws its batches.

    ``path``: a directory with a ``config.json``, or that file. With ``*.safetensors`` beside it the weights are loaded,
    else they are drawn from torch's global generator; under a ``FakeTensorMode`` nothing is allocated.
    ``example(batch, seq=None, *, seed=0)`` gives the keyword arguments of a step: ``input_ids`` and ``labels``
    [batch, seq] int64, or ``pixel_values`` [batch, channels, height, width] and ``labels`` [batch].

    Raises :class:`UsageError` for a path without a configuration, an unknown or unsupported architecture, weights in
    another format, damaged or incomplete ones, or when transformers is not installed.
    """
    transformers = _library()
    directory, config = _config(transformers, Path(path))
    kind = _kind(transformers, config, directory)
    config.use_cache = False
    factory: Any = getattr(transformers, _KINDS[kind][0])
    with _quiet(transformers):
        model = _loaded(factory, config, directory) if has_weights(directory) else _made(factory, config, directory)
    return model, partial(_image_batch if kind == "image" else _token_batch, config, kind)


def precision_of(path: str | Path) -> Literal["f32", "f64", "bf16"]:
    """What a directory's weights are kept in, as its configuration says; f32 where it says nothing, or float16."""
    saved = _config(_library(), Path(path))[1].dtype
    return "bf16" if saved == torch.bfloat16 else "f64" if saved == torch.float64 else "f32"


def _made(factory: Any, config: Any, directory: Path) -> nn.Module:
    """The model with weights drawn at random. Sizes that do not go together show only now."""
    try:
        return factory.from_config(config)
    except (ValueError, TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError) as error:
        raise UsageError(f"hf: no model is of the sizes in {directory}", _reason(error), hint=_SAVED) from error


def _loaded(factory: Any, config: Any, directory: Path) -> nn.Module:
    """The model with the weights of the directory: all of them, or it is refused."""
    try:
        model, told = factory.from_pretrained(
            directory, config=config, dtype=torch.float32, local_files_only=True, use_safetensors=True,
            output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # of safetensors, transformers or json, whichever meets the damage
        raise UsageError(f"hf: the weights in {directory} cannot be read", _reason(error), hint=_SAVED) from error
    for what in ("missing_keys", "mismatched_keys"):
        if told[what]:
            name = sorted(str(each[0] if isinstance(each, tuple) else each) for each in told[what])[0]
            raise UsageError(
                f"hf: the weights in {directory} are not those of its config.json: {name} is "
                + ("missing" if what == "missing_keys" else "of another shape"),
                hint=_SAVED,
            )
    return model


def _library() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError:
        raise UsageError("hf: needs transformers, which is not installed", hint="pip install superscaler[hf]") from None


def _config(transformers: Any, path: Path) -> tuple[Path, Any]:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise UsageError(f"hf: there is no {file}", hint="the directory of a model, or its config.json")
    try:
        told: Any = json.loads(file.read_text())
        if not isinstance(told, dict) or "model_type" not in told:
            raise ValueError("it has no model_type")
        return file.parent, transformers.AutoConfig.from_pretrained(file, local_files_only=True)
    except Exception as error:  # of json, transformers or its checks of fields, whichever meets what is wrong
        raise UsageError(f"hf: {file} is no configuration of transformers", _reason(error), hint=_SAVED) from None


def _reason(error: Exception) -> str:
    """The first lines of what a library says."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _kind(transformers: Any, config: Any, directory: Path) -> Kind:
    names: list[str] = config.architectures or []
    for kind, (_, endings) in _KINDS.items():
        if any(name.endswith(endings) for name in names):
            return kind
    if names:
        known = [ending for _, endings in _KINDS.values() for ending in endings]
        raise UsageError(
            f"hf: {directory}: architecture {names[0]} gives no loss of a known kind",
            hint=did_you_mean(names[0], known),
        )
    for kind, (factory, _) in _KINDS.items():
        if type(config) in getattr(transformers, factory)._model_mapping:
            return kind
    raise UsageError(
        f"hf: {directory}: no architecture is named, and {config.model_type} has none that gives a loss",
        hint='"architectures": ["...ForCausalLM"] in config.json',
    )


def has_weights(directory: Path) -> bool:
    """Whether there are weights in the directory. Raises :class:`UsageError` for pickled ones."""
    if any(directory.glob("*.safetensors")):
        return True
    pickles = [*directory.glob("pytorch_model*.bin"), *directory.glob("*.pt"), *directory.glob("*.pth")]
    if pickles:
        raise UsageError(
            f"hf: {pickles[0]} is a pickle, which can run code when it is read",
            hint="save it as safetensors: model.save_pretrained(DIR)",
        )
    return False


@contextmanager
def _quiet(transformers: Any) -> Generator[None]:
    logging: Any = importlib.import_module("transformers.utils.logging")
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


def _positive(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise UsageError(f"hf: {name} must be at least 1, not {size}", hint="1 or more")


def _length(config: Any, seq: int | None) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    longest = next((n for name in _LENGTHS if (n := getattr(text, name, None))), None)
    if seq is None:
        return min(longest or _LONGEST, _LONGEST)
    if longest is not None and seq > longest:
        raise UsageError(f"hf: seq {seq} exceeds the model's {longest} positions", hint=f"seq={longest}")
    return seq


def _token_batch(config: Any, kind: Kind, batch: int, seq: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    length = _length(config, seq)
    _positive(batch=batch, seq=length)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(text.vocab_size, (batch, length), generator=generator)
    labels = ids.clone()
    if kind == "masked":  # the loss counts 15 % of the tokens (Devlin et al. 2019, §3.1), at least one
        hidden = torch.rand((batch, length), generator=generator) < 0.15
        hidden[0, 0] = True
        labels = labels.masked_fill(~hidden, IGNORE)
    return {"input_ids": ids, "labels": labels}


def _image_batch(config: Any, kind: Kind, batch: int, seq: int | None = None, *, seed: int = 0) -> dict[str, Tensor]:
    if seq is not None:
        raise UsageError("hf: a model of images has no seq", hint="without --seq")
    _positive(batch=batch)
    size = config.image_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn((batch, config.num_channels, height, width), generator=generator)
    return {"pixel_values": pixels, "labels": torch.randint(config.num_labels, (batch,), generator=generator)}
