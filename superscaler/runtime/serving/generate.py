"""Greedy decoding: a prompt through ``prefill`` piece by piece, then one token per run of ``decode``.

Everything but the choice of the largest logit is in the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from superscaler.errors import UsageError
from superscaler.ir.plan import Plan
from superscaler.runtime.job import Job

Adjust = Callable[[Sequence[int], Tensor], Tensor]


def unchanged(tokens: Sequence[int], scores: Tensor) -> Tensor:
    """The :data:`Adjust` that does nothing."""
    return scores


def generate(
    job: Job,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    end: Collection[int] = (),
    adjust: Adjust = unchanged,
) -> list[int]:
    """The tokens that follow ``prompt``: each the likeliest after those before it; the lowest of equals.

    ``end``: tokens after which nothing follows (they are part of the result). ``adjust``: of the tokens so far and the
    scores [vocab] of what follows, the scores to compare. ``job``: of a plan that ``compile_decoder`` made. Raises
    :class:`UsageError` for a sequence longer than the plan's, :class:`OutOfMemory` where its cache does not fit.
    """
    return list(stream(job, prompt, max_new_tokens, end=end, adjust=adjust))


def stream(
    job: Job,
    prompt: Sequence[int],
    max_new_tokens: int,
    *,
    end: Collection[int] = (),
    adjust: Adjust = unchanged,
) -> Iterator[int]:
    """As :func:`generate`, each token as it is known."""
    limit = _limit(job.plan)
    if not prompt or max_new_tokens < 0:
        raise UsageError(f"a prompt of {len(prompt)} tokens and {max_new_tokens} new ones", hint="one token or more")
    if len(prompt) + max_new_tokens > limit:
        raise UsageError(
            f"{len(prompt)} tokens and {max_new_tokens} new ones are more than the plan's {limit}",
            hint="compile_decoder(..., tokens=...)",
        )
    vocabulary = _vocabulary(job.plan)
    unknown = next((token for token in prompt if not 0 <= token < vocabulary), None)
    if unknown is not None:
        raise UsageError(f"token {unknown} of the prompt: the model has {vocabulary}", hint=f"0 … {vocabulary - 1}")
    if not max_new_tokens:
        return
    try:
        logits, tokens = _prefill(job, list(prompt)), list(prompt)
        for length in range(len(prompt), len(prompt) + max_new_tokens):
            token = int(adjust(tokens, logits).argmax())
            tokens.append(token)
            yield token
            if token in end or length + 1 == len(prompt) + max_new_tokens:
                return
            logits = _run(job, "decode", [token], [length], length, 0)
    finally:
        if not job.closed:
            job.empty_caches()


def _limit(plan: Plan) -> int:
    if "decoder" not in plan.settings:
        raise UsageError("the plan does not decode", hint="compile_decoder makes one that does")
    return plan.settings["decoder"]["tokens"]


def _vocabulary(plan: Plan) -> int:
    graph = plan.entries["decode"].graph
    return graph.tensor[graph.outputs["logits"]].shape[-1]


def _prefill(job: Job, prompt: list[int]) -> Tensor:
    """The logits after the prompt; what pads its last piece is overwritten in the caches before any token sees it."""
    piece = int(job.plan.settings["decoder"]["prompt"])
    *whole, final = range(0, len(prompt), piece)
    for start in whole:
        _run(job, "prefill", prompt[start : start + piece], [*range(start, start + piece)], start, 0)
    last = len(prompt) - 1
    padding = final + piece - len(prompt)
    ids = [*prompt[final:], *[0] * padding]
    return _run(job, "prefill", ids, [*range(final, last + 1), *[last] * padding], final, last - final)


def _run(job: Job, entry: str, ids: list[int], positions: list[int], start: int, keep: int) -> Tensor:
    """The logits [vocab] behind token ``keep`` of ``ids``."""
    found = job.results(
        entry,
        ids=torch.tensor([ids]),
        positions=torch.tensor([positions]),
        keep=torch.tensor([keep]),
        start=torch.tensor(start),
    )
    return found["logits"][0, 0]
