"""Half precision: gradients are summed in float32, and parameters have a float32 master that the optimizer steps.

Micikevicius et al. 2018, "Mixed Precision Training", §3.1. The casts are ops of the graph, so accumulation over
micro-batches and reductions over devices, which the plan puts behind them, are in float32 without knowing of it.
"""

from __future__ import annotations

import msgspec

from superscaler.ir.entry import MASTER
from superscaler.ir.graph import Graph, Op, Tensor

HALF = ("bfloat16", "float16")
WIDE = "float32"

_THROUGH = ("superscaler.reshape", "aten.permute.default", "superscaler.add_n")


def wide(dtype: str) -> str:
    """The dtype in which numbers of ``dtype`` are summed."""
    return WIDE if dtype in HALF else dtype


def stepping(graph: Graph, parameter: str) -> Op | None:
    """The op that steps a parameter or its master, if the graph has an optimizer."""
    master = parameter + MASTER
    readers = graph.consumers[master if master in graph.tensor else parameter]
    return next((op for op in readers if op.phase == "optimizer"), None)


def optimizer_state(graph: Graph, parameter: str) -> list[str]:
    """The state that only the step of a parameter reads: its moments, and its float32 master."""
    step = stepping(graph, parameter)
    return [name for name in step.inputs if graph.tensor[name].kind == "optimizer"] if step is not None else []


def with_wide_gradients(graph: Graph) -> Graph:
    """The graph with every gradient in half precision cast to float32 before any of its terms are added up."""
    work = _Widening(graph)
    gradients = {
        name: work.widened(tensor) if graph.tensor[tensor].dtype in HALF else tensor
        for name, tensor in graph.gradients.items()
    }
    return work.graph(gradients) if gradients != graph.gradients else graph


class _Widening:
    def __init__(self, graph: Graph) -> None:
        self.old = graph
        self.uses: dict[str, int] = {}
        for op in graph.ops:
            for name in op.inputs:
                self.uses[name] = self.uses.get(name, 0) + 1
        for name in (*graph.outputs.values(), *graph.gradients.values(), *graph.updates.values()):
            self.uses[name] = self.uses.get(name, 0) + 1
        self.casts: dict[str, Op] = {}  # tensor -> the op that casts it
        self.rewritten: dict[str, Op] = {}  # op -> what it becomes
        self.tensors: dict[str, Tensor] = {t.name: t for t in graph.tensors}

    def widened(self, name: str) -> str:
        """The float32 form of a tensor: views and sums that nothing else reads are done after the cast."""
        producer = self.old.producer.get(name)
        if producer is not None and producer.target in _THROUGH and self.uses[name] == 1:
            inputs = tuple(self.widened(n) for n in producer.inputs)
            self.rewritten[producer.name] = msgspec.structs.replace(producer, inputs=inputs)
            self.tensors[name] = msgspec.structs.replace(self.tensors[name], dtype=WIDE)
            return name
        if name not in self.casts:
            self.casts[name] = self._cast(name, producer)
        return self.casts[name].outputs[0]

    def _cast(self, name: str, producer: Op | None) -> Op:
        tensor = self.tensors[name]
        self.tensors[f"{name}:wide"] = Tensor(f"{name}:wide", tensor.shape, WIDE)
        module, source = (producer.module, producer.source) if producer is not None else ("", "")
        target, args = "superscaler.cast", ("$0", WIDE)
        return Op(f"{name}:cast", target, (name,), (f"{name}:wide",), args, "backward", module, "cast", source)

    def graph(self, gradients: dict[str, str]) -> Graph:
        ops: list[Op] = [self.casts[name] for name in self.casts if name not in self.old.producer]
        for op in self.old.ops:
            ops.append(self.rewritten.get(op.name, op))
            ops += [self.casts[name] for name in op.outputs if name in self.casts]
        return msgspec.structs.replace(
            self.old, tensors=tuple(self.tensors.values()), ops=tuple(ops), gradients=gradients
        )
