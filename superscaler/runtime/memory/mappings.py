"""The process's number of memory mappings, kept below the system's limit.

Linux refuses a process more than ``vm.max_map_count`` mappings, and at the limit even unmapping fails (it may split a
mapping first). So mappings that add memory are refused at 80 % of the limit, which leaves room to free.
"""

from __future__ import annotations

from superscaler.errors import OutOfMemory

SHARE = 0.8


class MappingMeter:
    """An upper bound of the number of mappings: exact when last counted, plus what each call since may have added.

    Counting reads ``/proc/self/maps``, which takes about a millisecond per 5,000 mappings; it is done only when the
    bound reaches the limit, so the cost per call vanishes as long as the process is far from it.
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = int(SHARE * system_limit()) if limit is None else limit
        self._bound = self.limit

    def charge(self, mappings: int, *, refusable: bool) -> None:
        """A call that may add so many mappings is about to be made; refused with :class:`OutOfMemory` at the limit."""
        self._bound += mappings
        if self._bound <= self.limit:
            return
        self._bound = count() + mappings
        if refusable and self._bound > self.limit:
            raise OutOfMemory(
                "too many memory mappings in this process",
                f"{self._bound:,} with this one; at most {self.limit:,} ({SHARE:.0%} of vm.max_map_count) are used",
                hint="a larger chunk, fewer layers apart (layers_per_chunk), or a higher vm.max_map_count",
            )


def count() -> int:
    """How many mappings this process has now."""
    try:
        with open("/proc/self/maps", "rb") as maps:
            return maps.read().count(b"\n")
    except OSError:
        return 0


def system_limit() -> int:
    """``vm.max_map_count``, or Linux's default where it cannot be read."""
    try:
        with open("/proc/sys/vm/max_map_count") as limit:
            return int(limit.read())
    except (OSError, ValueError):
        return 65_530


MAPPINGS = MappingMeter()
