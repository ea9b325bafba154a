"""What torch raises while tracing, as a :class:`TraceError` with the user's line, the reason and what to try."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager

from superscaler.errors import SuperscalerError, TraceError
from superscaler.trace.source import line_of_error, shown

# (pattern in torch's message, reason, what to try), the first that fits
_REASONS: tuple[tuple[str, str, str], ...] = (
    (
        r"Could not guard on data-dependent|GuardOnDataDependent|data-dependent expression|aten\._local_scalar_dense|"
        r"DataDependentOutput",
        "control flow or a number depends on the values of a tensor",
        "torch.where, or masks instead of branches; numbers that are known before the step as settings",
    ),
    (
        r"DynamicOutputShape|aten\.nonzero|aten\.unique|masked_select|data-dependent shape|unbacked",
        "the shape of a tensor depends on the values of another",
        "masks of a fixed shape instead of selecting elements",
    ),
    (
        r"no autograd formula was registered",
        "an op of your own has no backward",
        "@NAME.backward beside @superscaler.op: a function of the gradient and the operands",
    ),
    (
        r"deepcopy|Cannot copy",
        "a tensor with a history cannot be copied",
        "keep results of other computations out of the module",
    ),
)


@contextmanager
def explained() -> Generator[None]:
    """Every error inside becomes a :class:`TraceError`; those of ours pass."""
    try:
        yield
    except SuperscalerError:
        raise
    except Exception as error:
        ours = _ours(error)
        if ours is not None:
            raise ours from None
        raise _explanation(error) from None


def _ours(error: BaseException) -> SuperscalerError | None:
    """The error of ours that torch wrapped, if any."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, SuperscalerError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _explanation(error: Exception) -> TraceError:
    text = f"{type(error).__name__}: {error}"
    line = line_of_error(error.__traceback__)
    where = (f"at {shown(line)}",) if line else ()
    for pattern, reason, hint in _REASONS:
        if re.search(pattern, text):
            return TraceError("the model cannot be traced", *where, reason, hint=hint)
    return TraceError(
        "the model cannot be traced",
        *where,
        f"torch says: {_first_line(text)}",
        hint="run the model on these inputs in plain torch first",
    )


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:300]
