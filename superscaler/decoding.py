"""``compile_decoder``: a language model into a plan that decodes with a cache, on the same path as training.

Shapes are static: a plan has the entries ``prefill`` (a bucket of ``prompt`` tokens) and ``decode`` (one token) for one
batch size, and caches of at most ``tokens`` rows, whose memory is mapped as they fill. Longer prompts go through
``prefill`` several times; shorter ones are padded behind, where no token looks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from superscaler.api import compile_graphs
from superscaler.errors import UsageError
from superscaler.ir.graph import Graph
from superscaler.plans import PlanScript
from superscaler.plans.decoding import decoding
from superscaler.transforms.cache import with_cache
from superscaler.transforms.tokenwise import verify_alike, verify_tokenwise

if TYPE_CHECKING:
    from torch import nn

    from superscaler.ir.cluster import Cluster
    from superscaler.ir.plan import Plan


def compile_decoder(
    model: nn.Module,
    *,
    cluster: Cluster,
    prompt: int,
    tokens: int,
    plan: PlanScript | None = None,
    dtype: Literal["f32", "f64", "bf16"] = "f32",
    seed: int = 0,
) -> Plan:
    """A checked plan that decodes one sequence of at most ``tokens`` tokens, its prompt in pieces of ``prompt``.

    ``model``: see :func:`superscaler.trace.decoding.trace_decoder`. ``plan``: by default ``decoding()``, one device.
    Raises :class:`UsageError` for sizes that do not fit, :class:`PlanError` for a model that over many tokens is not
    what it is piece by piece with a cache (a window, say), and what ``compile`` raises.
    """
    from superscaler.trace.decoding import trace_decoder
    from superscaler.trace.hf_text import positions_of
    from superscaler.transforms.discover import discover_missing, verify_custom

    if not 1 <= prompt <= tokens:
        raise UsageError(f"a prompt of {prompt} tokens in a sequence of {tokens}", hint="1 ≤ prompt ≤ tokens")
    longest = positions_of(model)
    if longest is not None and tokens > longest:
        raise UsageError(
            f"a sequence of {tokens} tokens: {type(model).__name__} has {longest} positions", hint="fewer tokens"
        )
    rows = -(-tokens // prompt) * prompt  # the last piece of a prompt is padded
    traced = {
        name: trace_decoder(model, batch=1, tokens=n, dtype=dtype) for name, n in (("prefill", prompt), ("decode", 1))
    }
    whole = trace_decoder(model, batch=1, tokens=tokens, dtype=dtype).graph
    pieces = [found.graph for found in traced.values()]
    assumptions = dict.fromkeys(target for graph in (*pieces, whole) for target in discover_missing(graph))
    graphs: Mapping[str, Graph] = {name: with_cache(found.graph, rows) for name, found in traced.items()}
    for piece in pieces:
        verify_custom(piece)
        verify_alike(piece, whole)
    verify_tokenwise(whole)
    about: dict[str, Any] = {
        "name": type(model).__name__,
        "aliases": {other: names[0] for names in traced["prefill"].state.values() for other in names[1:]},
    }
    settings = {"seed": seed, "dtype": dtype, "decoder": {"prompt": prompt, "tokens": tokens}}
    return compile_graphs(
        graphs, cluster, plan or decoding(), model=about, settings=settings, assumptions=tuple(assumptions), seed=seed
    )
