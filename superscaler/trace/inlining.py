"""One call of a repeated module, while the graph of its template is written in its place."""

from __future__ import annotations

from typing import Any

from torch import fx
from torch._functorch._aot_autograd import descriptors as desc

from superscaler.trace.draft import Value
from superscaler.trace.effects import Irregular
from superscaler.trace.nodes import results_of
from superscaler.trace.provenance import strip_root
from superscaler.trace.repeats import Call

# The name of the entry's own parameter (see ``repeats``).
ANCHOR = "anchor"


class Region:
    """``present``: the outputs with a gradient, ``tangents``: these; ``inputs``: the call's tensors."""

    graph: fx.Graph
    inputs: list[Value]
    tangents: list[Value]

    def __init__(self, call: Call, number: int) -> None:
        self.call = call
        self.number = number
        self.present: tuple[int, ...] = ()
        self.values: dict[fx.Node, Any] = {}

    def placeholder(self, place: Any) -> Value:
        """What a placeholder of the template that is no state stands for."""
        if isinstance(place, desc.TangentAOTInput):
            output: Any = place.output
            return self.tangents[self.present.index(output.idx)]
        if isinstance(place, desc.PlainAOTInput):
            return self.inputs[place.idx]
        raise Irregular(f"a repeated module has an input of another kind: {place}")

    def _results(self) -> list[tuple[Any, Value]]:
        return [
            (place, self.values[node]) for place, node in results_of(self.graph.output_node()) if node in self.values
        ]

    def outputs(self) -> list[Value]:
        """The call's tensors, in order."""
        found = {place.idx: value for place, value in self._results() if isinstance(place, desc.PlainAOTOutput)}
        return [found[i] for i in range(len(self.call.template.outputs))]

    def input_gradients(self) -> dict[int, Value]:
        """Input number -> its gradient, where an output depends on it."""
        return {
            place.grad_of.idx: value
            for place, value in self._results()
            if isinstance(place, desc.GradAOTOutput) and isinstance(place.grad_of, desc.PlainAOTInput)
        }

    def state_gradients(self) -> list[tuple[str, Value]]:
        """Name of a parameter in the member -> its gradient, where an output depends on it."""
        return [
            (strip_root(place.grad_of.target), value)
            for place, value in self._results()
            if isinstance(place, desc.GradAOTOutput) and isinstance(place.grad_of, desc.ParamAOTInput)
        ]
