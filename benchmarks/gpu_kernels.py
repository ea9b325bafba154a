"""Attention over cached keys and values on a GPU: ours on contiguous vTensors, against pages."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from gpu_machine import Machine
from torch.nn.attention.bias import causal_lower_right
from vtensor import Result

from superscaler.runtime.kernels import attention
from superscaler.runtime.serving.kv_cache import KVCache, KVSequence
from superscaler.runtime.serving.kv_layout import KVLayout

Act = Callable[[], torch.Tensor]
PAGE = 128  # tokens of flex_attention's pages
BLOCK = 16  # tokens of the pages that are gathered


class Cell:
    """One layer's keys and values of ``batch`` sequences in vTensors, and ``new`` queries per sequence, the last."""

    def __init__(self, machine: Machine, batch: int, tokens: int, new: int) -> None:
        self.machine, self.batch, self.tokens, self.new = machine, batch, tokens, new
        self.heads, self.group, self.dim = (2, 2, 16) if machine.quick else (8, 4, 128)
        layout = KVLayout(1, self.heads, self.dim, machine.dtype)
        sequence_bytes = layout.planes * (layout.chunks(tokens, 2 << 20) + 1) * (2 << 20)
        self.pool = machine.pool(batch * sequence_bytes)
        self.cache = KVCache(self.pool, layout, max_tokens=tokens)
        self.sequences = [self.cache.create() for _ in range(batch)]
        for sequence in self.sequences:
            sequence.append(tokens)
            for view in (sequence.keys(0), sequence.values(0)):
                view.normal_()
        self.query = machine.randn(batch, new, self.heads * self.group, self.dim)
        self.cached = self.cache.batch(self.sequences, 0, machine.device)
        self.starts = torch.arange(batch + 1, dtype=torch.int32, device=machine.device) * new

    def ours(self) -> torch.Tensor:
        """``[batch, new, query heads, dim]``, as all of these."""
        if self.new == 1:
            return attention.decode(self.query[:, 0], self.cached)[:, None]
        rows = self.query.flatten(0, 1)
        return attention.prefill(rows, self.starts, self.new, self.cached).view_as(self.query)

    def sdpa(self) -> torch.Tensor:
        """Torch's kernel on each vTensor by itself."""
        return torch.cat([self._sdpa_of(number, s) for number, s in enumerate(self.sequences)])

    def _sdpa_of(self, number: int, sequence: KVSequence) -> torch.Tensor:
        keys, values = (x.transpose(0, 1)[None] for x in (sequence.keys(0), sequence.values(0)))
        return self._attend(self.query[number : number + 1], keys, values)

    def _attend(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        mask = None if self.new == 1 else self.mask()
        q = query.transpose(1, 2)
        return F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, enable_gqa=True).transpose(1, 2)

    def mask(self) -> torch.Tensor:
        """Which of all tokens each of the new ones may see; on a GPU in the form that torch's fused kernels take."""
        if self.machine.cuda:
            return causal_lower_right(self.new, self.tokens)
        rows = torch.arange(self.tokens - self.new, self.tokens, device=self.machine.device)
        return rows[:, None] >= torch.arange(self.tokens, device=self.machine.device)

    def gathered(self) -> Act:
        """From pages of 16 tokens in any order into buffers that are there already, then torch's kernel."""
        blocks, row = self.batch * self.tokens // BLOCK, BLOCK * self.heads * self.dim
        table = torch.randperm(blocks, device=self.machine.device)
        pages: list[torch.Tensor] = []
        for views in ([s.keys(0) for s in self.sequences], [s.values(0) for s in self.sequences]):
            paged = torch.empty(blocks, row, device=self.machine.device, dtype=self.machine.dtype)
            paged[table] = torch.cat(views).view(blocks, row)
            pages.append(paged)
        packed = [torch.empty_like(paged) for paged in pages]
        shape = (self.batch, self.tokens, self.heads, self.dim)

        def act() -> torch.Tensor:
            for paged, buffer in zip(pages, packed, strict=True):
                torch.index_select(paged, 0, table, out=buffer)
            keys, values = (buffer.view(shape).transpose(1, 2) for buffer in packed)
            return self._attend(self.query, keys, values)

        return act

    def flex(self) -> Act:
        """Torch's paged flex_attention, compiled."""
        from torch.nn.attention.experimental._paged_attention import PagedAttention
        from torch.nn.attention.flex_attention import create_block_mask, flex_attention

        device, tokens, first = self.machine.device, self.tokens, self.tokens - self.new
        page = min(PAGE, tokens)
        paged = PagedAttention(self.batch * tokens // page, page, self.batch, device=str(device))
        shape = (1, self.heads, self.batch * tokens, self.dim)
        caches = [torch.zeros(shape, device=device, dtype=self.machine.dtype) for _ in range(2)]
        positions = torch.arange(tokens, device=device)[None]
        for number, sequence in enumerate(self.sequences):
            which = torch.tensor([number], device=device)
            paged.reserve(which[0], torch.tensor(tokens, device=device))
            new = (x.transpose(0, 1)[None] for x in (sequence.keys(0), sequence.values(0)))
            paged.assign(which, positions, *new, *caches)

        def causal(b: object, h: object, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            return q + first >= k

        mask = create_block_mask(causal, self.batch, None, self.new, tokens, device=device, BLOCK_SIZE=(page, page))
        options = {"block_mask": paged.convert_logical_block_mask(mask), "score_mod": paged.get_score_mod(None)}
        torch._dynamo.reset()  # or it would stop compiling after a few shapes
        compiled, query = torch.compile(flex_attention, dynamic=False), self.query.transpose(1, 2)
        return lambda: compiled(query, *caches, enable_gqa=True, **options).transpose(1, 2)

    def close(self) -> None:
        self.sequences.clear()
        self.pool.close()


def decode_cells(machine: Machine) -> Iterator[Result]:
    """One new token per sequence."""
    yield from cells(machine, "decode", lambda tokens: 1)


def prefill_cells(machine: Machine) -> Iterator[Result]:
    """New tokens behind a prefix: an eighth of the sequence, at most 512."""
    yield from cells(machine, "prefill", lambda tokens: min(512, tokens // 8))


def grid(machine: Machine) -> list[tuple[int, int]]:
    """Batches and tokens; the corners first, in case time runs out."""
    if machine.quick:
        return [(1, 32), (2, 64)]
    tokens = (1024, 4096, 8192, 32768)
    every = [(batch, length) for batch in (8, 16, 32, 64) for length in tokens]
    return sorted(every, key=lambda cell: (cell[0] not in (8, 64), cell[1] not in (1024, 32768)))


def cells(machine: Machine, row: str, new: Callable[[int], int]) -> Iterator[Result]:
    ratios: dict[str, list[float]] = {"flex": [], "gather": []}
    taken = 0.0  # seconds, by the slowest cell
    with torch.inference_mode():
        for batch, tokens in grid(machine):
            begin = machine.left()
            if begin < 1.2 * taken:
                yield Result(row, f"batch {batch}, {tokens} tokens", "", "not reached: no time was left", None)
                continue
            what = f"batch {batch}, {tokens} tokens, {new(tokens)} new, ms"
            try:
                found, errors = timed(machine, batch, tokens, new(tokens))
            except Exception as error:  # a cell that cannot run is said to be so; the others are measured
                yield Result(row, what, "", f"could not: {first_line(error)}", None)
                continue
            taken = max(taken, begin - machine.left())
            for name, known in ratios.items():
                if name in found:
                    known.append(found[name] / found["ours"])
            shown = [f"{name} {seconds * 1e3:.3f}" for name, seconds in found.items()]
            yield Result(row, what, "", ", ".join(shown + errors), None)
    for name, known in ratios.items():
        if known:
            mean = math.exp(sum(map(math.log, known)) / len(known))
            text = f"{mean:.2f}× (least {min(known):.2f}, {len(known)} cells)"
            against = {"flex": "torch's paged flex_attention", "gather": "gather, then SDPA"}[name]
            yield Result(row, f"{against} / ours, geometric mean", "≥ 1.5", text, mean >= 1.5)


def timed(machine: Machine, batch: int, tokens: int, new: int) -> tuple[dict[str, float], list[str]]:
    """Seconds by kernel, each verified against torch's on the vTensors; and what could not run."""
    cell = Cell(machine, batch, tokens, new)
    try:
        want = cell.sdpa().float()
        found = {"SDPA on vTensors": machine.typical(cell.sdpa)}
        errors: list[str] = []
        kernels: dict[str, Callable[[], Act]] = {"ours": lambda: cell.ours, "gather": cell.gathered, "flex": cell.flex}
        for name, make in kernels.items():
            try:
                act = make()
                torch.testing.assert_close(act().float(), want, rtol=2e-2, atol=2e-2)
                found[name] = machine.typical(act)
            except Exception as error:
                if name == "ours":
                    raise
                errors.append(f"{name} could not: {first_line(error)}")
        return found, errors
    finally:
        cell.close()


def plain(machine: Machine) -> Iterator[Result]:
    """Torch's kernel on vTensors and on plain tensors with the same content, in turn."""
    ratios: list[float] = []
    for batch, tokens in ((8, 1024), (8, 8192), (32, 4096)) if not machine.quick else ((2, 64),):
        cell = Cell(machine, batch, tokens, 1)
        copies = [(s.keys(0).clone(), s.values(0).clone()) for s in cell.sequences]

        def on_copies(cell: Cell = cell, copies: list[tuple[torch.Tensor, ...]] = copies) -> list[torch.Tensor]:
            return [
                cell._attend(cell.query[n : n + 1], *(x.transpose(0, 1)[None] for x in pair))
                for n, pair in enumerate(copies)
            ]

        def on_vtensors(cell: Cell = cell) -> list[torch.Tensor]:
            return [cell._sdpa_of(number, s) for number, s in enumerate(cell.sequences)]

        with torch.inference_mode():
            pairs = [(machine.typical(on_copies), machine.typical(on_vtensors)) for _ in range(5)]
        ratios += [b / a for a, b in pairs]
        del copies, on_copies
        cell.close()
    ratio = sorted(ratios)[len(ratios) // 2]
    yield Result("plain", "SDPA on vTensors / on plain tensors", "≤ 1.02", f"{ratio:.3f}", ratio <= 1.02)


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
