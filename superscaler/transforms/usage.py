"""What a step reads and writes."""

from __future__ import annotations

from superscaler.ir.program import Accumulate, At, Call, Collect, Commit, Mask, Offload, Recv, Send, Slice, Step


def reads(step: Step) -> tuple[int, ...]:
    """The values a step reads; sums being formed and buffers being filled count as read."""
    match step:
        case Call():
            return step.ins
        case Accumulate() | Collect():
            return (step.src, step.into)
        case Recv():
            return (step.local,) if step.local >= 0 else ()
        case Slice() | Mask() | Send() | Commit() | Offload():
            return (step.src,)
        case _:
            return (step.src,)


def writes(step: Step) -> tuple[int, ...]:
    """The values a step defines or adds to."""
    match step:
        case Call():
            return step.outs
        case Accumulate() | Collect():
            return (step.into,)
        case Send():
            return ()
        case Commit():
            return (step.state,)
        case _:
            return (step.dst,)


def at_of(step: Step) -> At:
    """The time indices that a step fixes itself."""
    return () if isinstance(step, Commit | Offload) else step.at
