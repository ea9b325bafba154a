"""Tensors on virtual memory: addresses are reserved once, memory is mapped as it is needed.

:class:`Pool` has physical chunks under a budget, :class:`VTensor` is a growing range, :class:`Arena` holds the values
of a plan at the offsets of its memory schedule.
"""

from superscaler.runtime.memory.arena import Arena
from superscaler.runtime.memory.pool import Pool
from superscaler.runtime.memory.stats import PoolStats
from superscaler.runtime.memory.table import MemoryRow, live_table
from superscaler.runtime.memory.vtensor import Chunks, VTensor

__all__ = ["Arena", "Chunks", "MemoryRow", "Pool", "PoolStats", "VTensor", "live_table"]
