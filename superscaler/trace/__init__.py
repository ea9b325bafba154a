"""nn.Module -> Graph: the joint forward and backward graph of a model, normalised."""

from superscaler.trace.tracing import Traced, trace

__all__ = ["Traced", "trace"]
