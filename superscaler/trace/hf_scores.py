"""What a model's generation settings do to the scores before the likeliest token is taken, as ``generate()`` does it.

Greedy decoding leaves sampling and beams out, but not these: a penalty on tokens that were there, tokens that must not
come, or not yet. ``transformers`` has them as objects; which of them, and in which order, is what is here.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from superscaler.errors import UsageError


def adjustment(
    model: nn.Module, prompt: int, new: int, end: Collection[int]
) -> Callable[[Sequence[int], Tensor], Tensor]:
    """What the model's ``generation_config`` asks for after ``prompt`` tokens, with at most ``new`` to come.

    A function of the tokens so far and the scores [vocab] of what follows them, which gives the scores to compare.
    ``end``: the tokens that end the text, none where it goes on after them. Both raise :class:`UsageError` for settings
    that ``transformers`` refuses.
    """
    settings = getattr(model, "generation_config", None)
    with _refusals():
        processors = [] if settings is None else list(_processors(settings, prompt, new, sorted(end)))

    def adjust(tokens: Sequence[int], scores: Tensor) -> Tensor:
        if not processors:
            return scores
        ids, row = torch.tensor([tokens]), scores[None].to(torch.float32, copy=True)
        with _refusals():
            for processor in processors:
                row = processor(ids, row)
        return row[0]

    return adjust


@contextmanager
def _refusals() -> Generator[None]:
    try:
        yield
    except (ValueError, TypeError, IndexError, AttributeError) as error:
        reason = str(error).strip().splitlines()
        raise UsageError(
            "the model's generation settings cannot be used", reason[0][:300] if reason else type(error).__name__,
            hint="mend its generation_config.json, or leave it out",
        ) from error  # fmt: skip


def _processors(settings: Any, prompt: int, new: int, end: list[int]) -> Iterator[Any]:
    hf: Any = importlib.import_module("transformers")
    if settings.sequence_bias is not None:
        yield hf.SequenceBiasLogitsProcessor(settings.sequence_bias)
    if settings.repetition_penalty not in (None, 1):
        yield hf.RepetitionPenaltyLogitsProcessor(settings.repetition_penalty)
    if settings.no_repeat_ngram_size:
        yield hf.NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size)
    if settings.bad_words_ids is not None:
        yield hf.NoBadWordsLogitsProcessor(settings.bad_words_ids, end or None)
    if settings.min_length and end:
        yield hf.MinLengthLogitsProcessor(settings.min_length, end)
    if settings.min_new_tokens and end:
        yield hf.MinNewTokensLengthLogitsProcessor(prompt, settings.min_new_tokens, end)
    if settings.forced_bos_token_id is not None:
        yield hf.ForcedBOSTokenLogitsProcessor(settings.forced_bos_token_id)
    if settings.forced_eos_token_id is not None:
        yield hf.ForcedEOSTokenLogitsProcessor(prompt + new, settings.forced_eos_token_id)
    if settings.remove_invalid_values:
        yield hf.InfNanRemoveLogitsProcessor()
    if settings.exponential_decay_length_penalty is not None and end:
        yield hf.ExponentialDecayLengthPenalty(settings.exponential_decay_length_penalty, end, prompt)
    if settings.suppress_tokens is not None:
        yield hf.SuppressTokensLogitsProcessor(settings.suppress_tokens)
    if settings.begin_suppress_tokens is not None:
        later = prompt == 1 and settings.forced_bos_token_id is not None
        yield hf.SuppressTokensAtBeginLogitsProcessor(settings.begin_suppress_tokens, prompt + later)
