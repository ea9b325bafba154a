"""What ``superscaler run`` feeds a plan: ``--data`` as batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from superscaler.errors import UsageError

if TYPE_CHECKING:
    from superscaler.ir.plan import Plan

Batch = Mapping[str, Any] | tuple[Any, ...]


def batches_of(plan: Plan, data: str) -> Iterator[Batch]:
    """``example``: random ones of the plan's model; ``stdlib``, a file or a directory: text; else a user's function.

    Raises :class:`UsageError` for data that is not there, or that the plan does not say how to draw.
    """
    if data == "example":
        return _examples(plan)
    if ":" in data:
        return _from_function(data)
    from superscaler.runtime.data import read_text, standard_library, text_batches

    path = standard_library() if data == "stdlib" else Path(data)
    if not path.exists():
        raise UsageError(f"--data {data}: there is no such file", hint="example, stdlib, a path, or script.py:function")
    return text_batches(plan.entries["train"], read_text(path))


def _examples(plan: Plan) -> Iterator[Batch]:
    """Random batches of the model that the plan was compiled from."""
    from superscaler.cli.subject import Request, example_batch

    if "source" not in plan.model:
        raise UsageError("the plan does not say how to draw its inputs", hint="--data script.py:function")
    request = Request.of(plan.model["source"])
    step = 0
    while True:
        yield example_batch(request, seed=step)
        step += 1


def _from_function(data: str) -> Iterator[Batch]:
    from superscaler.cli.lookup import call, find_object

    function = find_object(data)
    made: Any = call(f"{data}()", cast(Callable[[], Any], function)) if callable(function) else function
    if not isinstance(made, Iterable):
        raise UsageError(f"{data} gives a {type(made).__name__}, no batches", hint="a generator of tuples or dicts")
    batches = iter(cast("Iterable[Any]", made))
    while (batch := call(data, next, batches, None)) is not None:
        if isinstance(batch, Mapping):
            yield cast("Mapping[str, Any]", batch)
        else:
            yield tuple(cast("Iterable[Any]", batch)) if isinstance(batch, list | tuple) else (batch,)
