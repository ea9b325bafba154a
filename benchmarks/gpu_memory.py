"""What the vTensor allocator costs and saves on a GPU: the rows of ``vtensor.py``, at a GPU's sizes."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from unittest import mock

import torch
import torch.nn.functional as F
from gpu_machine import GIB, KIB, MIB, ROOT, Machine
from vtensor import BudgetTrace, PlainMemory, Result, fill, most_concurrent, train

import superscaler as ss
from superscaler import models
from superscaler.runtime.arena import need_of
from superscaler.runtime.kernels import attention
from superscaler.runtime.memory import PoolStats
from superscaler.runtime.serving.kv_cache import KVCache, KVSequence
from superscaler.runtime.serving.kv_layout import KVLayout

COPIES = ("cuMemcpyDtoDAsync", "copy", "pwrite")  # what drivers and the system call a copy of a chunk


class Decoder:
    """Layers of a decoder at the sizes of an 8B model, 16 sequences, greedy: what a decode step takes on the device."""

    def __init__(self, machine: Machine, prefix: int, ahead: int) -> None:
        self.machine = machine
        self.layers, self.batch = machine.size(32, 2), machine.size(16, 2)
        self.heads, self.group, self.dim = (1, 2, 16) if machine.quick else (8, 4, 128)
        width = self.heads * self.group * self.dim
        layout = KVLayout(self.layers, self.heads, self.dim, machine.dtype)
        self.pool = machine.pool(machine.size(16 * GIB, 64 * MIB), machine.size(2 * MIB, 4 * KIB))
        self.cache = KVCache(self.pool, layout, max_tokens=8192, ahead=ahead)
        self.sequences = [self.cache.create() for _ in range(self.batch)]
        for sequence in self.sequences:
            sequence.append(prefix)
        # Addresses hold for the sequences' lives; of all that the kernels take, only the lengths change.
        first = self.cache.batch(self.sequences, 0, machine.device)
        batches = (self.cache.batch(self.sequences, layer, machine.device) for layer in range(self.layers))
        self.cached = [replace(each, lengths=first.lengths) for each in batches]
        self.lengths = first.lengths
        qkv, up = (self.group + 2) * self.heads * self.dim, 7 * width  # the gate and what it lets through
        shapes = [(width, qkv), (width, width), (width, up), (up // 2, width)]
        self.weights = [[machine.randn(*shape) * shape[0] ** -0.5 for shape in shapes] for _ in range(self.layers)]

    def append(self) -> float:
        """One more token for each; the seconds that this took on the host."""
        begin = time.perf_counter()
        for sequence in self.sequences:
            sequence.append(1)
        return time.perf_counter() - begin

    def step(self) -> float:
        """One token through all layers; the seconds of the cache's bookkeeping in it."""
        appended = self.append()
        self.lengths += 1
        longest = self.sequences[0].length
        x = self.machine.randn(self.batch, self.heads * self.group * self.dim)
        for cached, (qkv, out, up, down) in zip(self.cached, self.weights, strict=True):
            parts = (x @ qkv).view(self.batch, -1, self.dim)
            query, keys, values = parts.split([self.heads * self.group, self.heads, self.heads], 1)
            now = replace(cached, longest=longest)
            attention.store(keys, values, now)
            x = x + attention.decode(query, now).flatten(1) @ out
            gate, value = (x @ up).chunk(2, -1)
            x = x + (F.silu(gate) * value) @ down
        return appended


def control(machine: Machine) -> Iterator[Result]:
    """The share of a 32-layer decode step that the cache takes, while all sequences outgrow their chunks."""
    # A chunk of a plane is 1,024 tokens. All sequences are as long as each other, so that all 1,024 planes need their
    # next chunk at the same token: they ask for it 192 tokens, about a second, ahead.
    prefix, ahead, steps = (800, 192, 260) if not machine.quick else (28, 8, 40)
    with torch.inference_mode():
        decoder = Decoder(machine, prefix, ahead)
        decoder.step()
        before, times, appended = decoder.pool.stats(), [], 0.0
        for _ in range(steps):
            begin = time.perf_counter()
            appended += decoder.step()
            machine.synchronize()
            times.append(time.perf_counter() - begin)
        after = decoder.pool.stats()
        share, step = appended / sum(times), statistics.median(times)
        text = f"{share:.2%} ({appended / steps * 1e6:.0f} µs of {step * 1e3:.2f} ms; longest {max(times) * 1e3:.2f})"
        yield Result("control", f"share of a {decoder.layers}-layer decode step", "≤ 2 %", text, share <= 0.02)
        sync, ahead_maps = after.sync_maps - before.sync_maps, after.ahead_maps - before.ahead_maps
        text = f"{sync} ({ahead_maps} in the background, {(after.mapped - before.mapped) / MIB:.0f} MiB)"
        yield Result("control", "synchronous maps in steady decoding", "0", text, not sync and ahead_maps > 0)
        decoder.pool.close()


def growth(machine: Machine) -> Iterator[Result]:
    """One sequence, token by token, to 128k tokens; beside it, what copying into a larger tensor takes."""
    tokens, layers = machine.size(1 << 17, 1 << 9), machine.size(4, 1)
    layout = KVLayout(layers, machine.size(8, 1), machine.size(128, 16), machine.dtype)
    with machine.pool(machine.size(8 * GIB, 64 * MIB), machine.size(2 * MIB, 4 * KIB)) as pool, torch.inference_mode():
        sequence = KVCache(pool, layout, max_tokens=tokens).create()
        sequence.append(1)
        pointer, before, marks = sequence.keys(0).data_ptr(), pool.stats(), range(0, tokens, tokens // 16)
        begin = time.perf_counter()
        for length in range(1, tokens + 1):
            if length - 1 in marks:
                sequence.keys(0)[-1].fill_(marks.index(length - 1))
            if length < tokens:
                sequence.append(1)
        machine.synchronize()
        each = (time.perf_counter() - begin) / tokens
        keys = sequence.keys(0)
        kept = keys.data_ptr() == pointer and keys[:: tokens // 16, 0, 0].tolist() == list(range(16))
        copies = copies_of(pool.stats()) - copies_of(before)
        text = f"{copies} copies, content and pointer {'kept' if kept else 'LOST'}; {each * 1e6:.1f} µs a token"
        yield Result("growth", f"to {tokens:,} tokens: device copies", "0", text, not copies and kept)
        old, new = (machine.randn(n, layout.heads, layout.dim) for n in (tokens, 1))
        cat = machine.typical(lambda: torch.cat((old, new))) * layout.planes
        yield Result("growth", "against torch.cat at that length, all planes", "", f"{cat / each:,.0f}×", None)
        del keys, sequence


def copies_of(stats: PoolStats) -> int:
    return sum(stats.calls.get(name, 0) for name in COPIES)


def sharing(machine: Machine) -> Iterator[Result]:
    """64 sequences behind one prefix of 4,096 tokens, with tails of 64: memory, and results against unshared ones."""
    users, tokens, tail = machine.size(64, 4), machine.size(4096, 128), machine.size(64, 32)
    # All layers in one plane: a chunk is 32 tokens.
    layers, heads, dim = (32, 8, 128) if not machine.quick else (2, 1, 16)
    layout = KVLayout(layers, heads, dim, machine.dtype, layers_per_chunk=layers)
    chunk, prefix = 32 * layout.row, list(range(tokens))
    pools = [machine.pool(machine.size(8 * GIB, 64 * MIB), chunk) for _ in range(2)]
    shared, plain = (KVCache(pool, layout, max_tokens=2 * tokens) for pool in pools)
    with torch.inference_mode():
        first = shared.create()
        first.append(prefix)
        fill(first, 0, seed=0)
        first.free()
        begin = time.perf_counter()
        sequences = [shared.create([*prefix, -1]) for _ in range(users)]
        machine.synchronize()
        mapping = (time.perf_counter() - begin) / users
        for number, sequence in enumerate(sequences):
            sequence.append(list(range(tail)))
            fill(sequence, tokens, seed=number + 1)
        same = all(same_results(machine, plain, sequence) for sequence in sequences[:: users // 4])
    ratio = pools[0].stats().physical / ((tokens + users * tail) * layout.token_bytes)
    yield Result("sharing", "physical / (prefix + tails)", "≤ 1.05", f"{ratio:.3f}", ratio <= 1.05)
    yield Result("sharing", "results bitwise those of unshared ones", "yes", "yes" if same else "no", same)
    yield Result("sharing", f"mapping a cached prefix of {tokens:,} tokens, ms", "", f"{mapping * 1e3:.2f}", None)
    for pool in pools:
        pool.close()


def same_results(machine: Machine, plain: KVCache, sequence: KVSequence) -> bool:
    """Whether decoding over shared chunks and over a copy of them gives the same bits."""
    alone, layout = plain.create(), plain.layout
    alone.append(sequence.length)
    same = True
    for layer in (0, layout.layers - 1):
        alone.keys(layer).copy_(sequence.keys(layer))
        alone.values(layer).copy_(sequence.values(layer))
        query = machine.randn(1, layout.heads, layout.dim)
        batches = (cache.cache.batch([cache], layer, machine.device) for cache in (sequence, alone))
        a, b = (attention.decode(query, batch) for batch in batches)
        same &= torch.equal(a, b)
    alone.free(keep=False)
    return same


def idle(machine: Machine) -> Iterator[Result]:
    """40 GiB, or what there is, back to the driver, and mapped again where it was."""
    wanted = machine.size(40 * GIB, 64 * MIB)
    size = min(wanted, machine.free() * 6 // 10) // (64 * MIB) * (64 * MIB)
    for chunk in (2 * MIB, 32 * MIB):
        with machine.pool(size, chunk) as pool:
            vtensor, before, times, left = pool.reserve(size), machine.free(), [], []
            for _ in range(2):
                vtensor.extend(size)
                vtensor.tensor((size,), torch.uint8)[:: 64 * KIB].fill_(1)
                pointer, held = vtensor.address, before - machine.free()
                times.append(machine.seconds(lambda v=vtensor: v.trim(0)))
                left.append((before - machine.free()) / held if machine.cuda else pool.stats().physical / size)
            vtensor.extend(size)
            kept = vtensor.tensor((1,), torch.uint8).data_ptr() == pointer
        text = f"{min(times):.2f} s, {1 - max(left):.1%} of it, pointer {'kept' if kept else 'CHANGED'}"
        met = min(times) <= 1.5 and max(left) <= 0.01 and kept and size == wanted
        what = f"{size / GIB:g} GiB back to the system, chunks of {chunk // MIB} MiB"
        yield Result("idle", what, "≤ 1.5 s, ≥ 99 %", text, met if size == wanted else None)


def budget(machine: Machine) -> Iterator[Result]:
    """Activations and KV: what one pool for both carries, against a pool each, at equal physical memory."""
    trace = BudgetTrace(machine.pool, machine.device, machine.size(64, 2), machine.size(64, 16))
    static, dynamic = (most_concurrent(trace, shared, most=machine.size(64, 32)) for shared in (False, True))
    text = f"{dynamic / static:.2f}× ({dynamic} against {static} sequences)"
    yield Result("budget", "concurrency, one budget / static split", "≥ 1.5×", text, dynamic >= 1.5 * static)
    ran_out = not trace(dynamic, shared=False)
    text = "runs out" if ran_out else "completes"
    yield Result("budget", f"static split with {dynamic} sequences", "runs out", text, ran_out)
    pairs = [[machine.seconds(lambda s=shared: trace(static, s)) for shared in (False, True)] for _ in range(5)]
    slower = statistics.median(b / a for a, b in pairs)
    yield Result("budget", f"time at {static} sequences, one budget / split", "≤ 1.02", f"{slower:.3f}", slower <= 1.02)


def tax(machine: Machine) -> Iterator[Result]:
    """Training steps on one device with state and arena in vTensors, against plain tensors; then a hard budget."""
    torch.manual_seed(0)
    sizes = {} if machine.quick else {"context": 1024, "hidden": 1024, "heads": 16, "layers": 8}
    model, example = models.build("gpt", "tiny" if machine.quick else "demo", **sizes)
    batch = example(machine.size(16, 4))
    cluster = ss.Cluster.preset("h200", devices=1, memory=machine.free() / GIB)
    plan = ss.compile(
        model, batch, cluster=cluster, plan="megatron:microbatches=4", optimizer=ss.AdamW(lr=1e-3), evaluate=False
    )
    with mock.patch("superscaler.runtime.worker.WorkerMemory", PlainMemory):
        plain = ss.launch(plan, model, backend="inline")
    smallest = need_of(plan, 0, machine.device).total
    limit = smallest + (GIB if machine.cuda else 0)  # what torch's allocator keeps between its segments
    with plain, ss.launch(plan, model, backend="inline", memory=limit) as ours:
        jobs = (plain, ours)
        for job in jobs:
            train(job, batch)
        pairs = [[machine.seconds(lambda j=job: train(j, batch)) for job in jobs] for _ in range(machine.size(15, 3))]
        slower, after = statistics.median(b / a for a, b in pairs), statistics.median(b for _, b in pairs)
        text = f"{slower:.3f} ({after * 1e3:.1f} ms)"
        yield Result("tax", "a training step, vTensor / plain arena", "≤ 1.02", text, slower <= 1.02)
        (memory,) = ours.measure_memory(*batch)
        peak = memory["most_mapped"] if machine.cuda else memory["mapped"] + memory["workspace"]
        text = f"{peak / MIB:.0f} of {limit / MIB:.0f}, the plan's own need {smallest / MIB:.0f}"
        yield Result("tax", "most ever mapped within --memory, MiB", "≤ budget", text, peak <= limit)


def safety(machine: Machine) -> Iterator[Result]:
    """Random operations against a shadow model with kernels in flight, failures injected at every driver call."""
    sys.path[:0] = [str(ROOT / "tests" / "runtime" / "memory")]
    from shadow import DeviceWords, Shadow, random_step

    shadow, draw = Shadow("cuda", words=DeviceWords, device=0 if machine.cuda else None), Random(3)
    busy = machine.randn(machine.size(4096, 16), machine.size(4096, 16))
    most, done, end = machine.size(1_000_000, 400), 0, machine.left() * 0.8
    begin = time.monotonic()
    try:
        while done < most and time.monotonic() - begin < end:
            # The device is behind from here on: what is unmapped next is in use still.
            busy @ busy
            for _ in range(20):
                random_step(shadow, draw)
            done += 20
            if done % 500 == 0:
                shadow.check_all()
        shadow.close()
        machine.synchronize()
    except AssertionError as error:
        yield Result("safety", f"{done:,} random operations", "no fault", str(error).splitlines()[0], False)
        return
    text = f"no leak, no aliasing, no wrong byte; {shadow.failures:,} injected failures"
    yield Result("safety", f"{done:,} random operations, kernels in flight", "no fault", text, True)
