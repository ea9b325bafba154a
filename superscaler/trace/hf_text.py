"""What decoding needs of a directory of ``transformers`` beside the model: its tokenizer, and where its texts end."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from torch import nn

from superscaler.errors import UsageError

_LONGEST = ("max_position_embeddings", "n_positions", "context")
_HEADS = ("num_key_value_heads", "num_attention_heads", "n_head", "heads")


def load_tokenizer(directory: Path) -> Any:
    """The tokenizer in ``directory``, which no code in it takes part in. Raises :class:`UsageError` if it has none."""
    transformers: Any = importlib.import_module("transformers")
    try:
        return transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UsageError(f"{directory} has no tokenizer that can be read", reason, hint="--prompt-ids 1,2,3") from None


def end_tokens(model: nn.Module) -> frozenset[int]:
    """The tokens that end a text, as the model's generation settings name them; its configuration where it has none."""
    settings = getattr(model, "generation_config", None) or getattr(model, "config", None)
    found = getattr(settings, "eos_token_id", None)
    return frozenset() if found is None else frozenset(found if isinstance(found, list | tuple) else [found])


def positions_of(model: nn.Module) -> int | None:
    """How many positions the model has, if it says so."""
    return _setting(model, _LONGEST)


def key_heads(model: nn.Module) -> int:
    """How many heads keys and values have; 1 if the model does not say."""
    return _setting(model, _HEADS) or 1


def _setting(model: nn.Module, names: tuple[str, ...]) -> int | None:
    config = getattr(model, "config", None)
    return next((int(n) for name in names if (n := getattr(config, name, None)) is not None), None)
