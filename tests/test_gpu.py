"""On an NVIDIA GPU (``pytest -m gpu``): what the other tests try with stand-ins, in earnest."""

from __future__ import annotations

import pytest
import torch

import superscaler as ss
from superscaler import models
from superscaler.decoding import compile_decoder
from superscaler.errors import OutOfMemory
from superscaler.runtime.arena import need_of
from superscaler.runtime.kernels import attention
from superscaler.runtime.memory import Pool
from superscaler.runtime.ops import cache
from superscaler.runtime.serving.generate import generate
from superscaler.runtime.serving.kv_cache import KVCache
from superscaler.runtime.serving.kv_layout import KVLayout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
GPU = torch.device("cuda", 0)


def compiled(name: str) -> tuple[ss.Plan, torch.nn.Module, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    model, example = models.build("gpt", "tiny")
    batch = example(8)
    optimizer = ss.AdamW(lr=1e-3, clip_norm=1.0)
    cluster = ss.Cluster.preset("h100", devices=2 if "pipeline" in name else 1)
    return ss.compile(model, batch, cluster=cluster, plan=name, optimizer=optimizer, evaluate=False), model, batch


@pytest.mark.parametrize("name", ["data_parallel:ways=1", "co_shard:parts=2", "pipeline:stages=2,microbatches=4"])
def test_steps_are_those_of_plain_torch(name: str) -> None:
    plan, model, batch = compiled(name)
    reference = type(model)(model.config)  # type: ignore[call-arg, arg-type]
    reference.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1e-3, weight_decay=0.0)
    with ss.launch(plan, model, backend="inline") as job:
        for _ in range(3):
            optimizer.zero_grad()
            loss = reference(*batch)
            assert job.step(*batch) == pytest.approx(loss.item(), rel=1e-4)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
            optimizer.step()


def test_a_budget_holds_for_activations_too_and_all_goes_back() -> None:
    plan, model, batch = compiled("data_parallel:ways=1")
    torch.cuda.synchronize()
    limit = need_of(plan, 0, GPU).total + (64 << 20)
    with ss.launch(plan, model, backend="inline", memory=limit) as job:
        job.step(*batch)
        before = torch.cuda.mem_get_info()[0]
        for _ in range(3):
            job.step(*batch)
        assert torch.cuda.mem_get_info()[0] == before, "nothing grows from step to step"
        (memory,) = job.memory()
        assert memory["most_mapped"] <= limit
        owners = {row.owner for row in job._crew.workers[0].storage.pool.owners()}  # type: ignore[union-attr]
        assert "activations" in owners
    assert torch.cuda.mem_get_info()[0] >= before + memory["mapped"]


def test_torch_runs_out_of_what_the_pool_has() -> None:
    plan, model, batch = compiled("data_parallel:ways=1")
    with ss.launch(plan, model, backend="inline", memory=need_of(plan, 0, GPU).total) as job:
        storage = job._crew.workers[0].storage  # type: ignore[union-attr]
        with storage.allocating(), pytest.raises(torch.OutOfMemoryError):
            torch.empty(1 << 30, device=GPU)
        with pytest.raises(OutOfMemory):
            storage.pool.reserve(1 << 40).extend(1 << 30)
        job.step(*batch)


def test_torchs_own_products_outlive_a_job() -> None:
    """What cuBLAS works in was not in memory that went with the job."""
    plan, model, batch = compiled("data_parallel:ways=1")
    x = torch.randn(512, 512, device=GPU)
    for _ in range(2):
        with ss.launch(plan, model, backend="inline") as job:
            job.step(*batch)
            x @ x
        assert torch.addmm(x[0], x, x).isfinite().all()
        assert torch.mm(x.bfloat16(), x.bfloat16()).isfinite().all()


def test_decoding_reads_nothing_from_the_device() -> None:
    caches = [torch.zeros(256, 1, 2, 64, device=GPU, dtype=torch.bfloat16) for _ in range(2)]
    start, new = torch.tensor(100, device=GPU), torch.randn(1, 2, 1, 64, device=GPU, dtype=torch.bfloat16)

    def step() -> torch.Tensor:
        for held in caches:
            cache.cache_append_(held, new, start)
        return cache.cached_attention(new, *caches, start, None)

    step()  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("heads", "group", "dim", "layers"), [(8, 4, 128, 1), (2, 1, 24, 2), (4, 2, 256, 1)])
def test_kernels_are_attention(dtype: torch.dtype, heads: int, group: int, dim: int, layers: int) -> None:
    torch.manual_seed(0)
    lengths, new = [1, 63, 1000, 4097], 1
    with Pool("cuda", budget=1 << 30) as pool:
        kept = KVCache(pool, KVLayout(layers, heads, dim, dtype, layers), max_tokens=8192)
        sequences = [kept.create() for _ in lengths]
        for sequence, length in zip(sequences, lengths, strict=True):
            sequence.append(length)
            for view in (sequence.keys(0), sequence.values(0)):
                view.normal_()
        query = torch.randn(len(lengths), heads * group, dim, device=GPU, dtype=dtype)
        cached = kept.batch(sequences, 0, GPU)
        attention.store(*torch.randn(2, len(lengths), heads, dim, device=GPU, dtype=dtype), cached)
        starts = torch.arange(len(lengths) + 1, device=GPU, dtype=torch.int32)
        decoded, prefilled = attention.decode(query, cached), attention.prefill(query, starts, new, cached)
        for row, sequence in enumerate(sequences):
            q, k, v = (x.double() for x in (query[row, :, None], sequence.keys(0), sequence.values(0)))
            k, v = (x.transpose(0, 1).repeat_interleave(group, 0) for x in (k, v))
            want = torch.nn.functional.scaled_dot_product_attention(q, k, v)[:, 0]
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            for got in (decoded[row], prefilled[row]):
                torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def test_tokens_are_those_of_the_model() -> None:
    torch.manual_seed(3)
    model, _ = models.build("gpt", "tiny")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plan = compile_decoder(model, cluster=ss.Cluster.preset("h100", devices=1), prompt=4, tokens=24)
    ids = [5, 9, 1, 33, 7, 2, 8]
    with ss.launch(plan, model, backend="inline") as job:
        for token in generate(job, ids, 8):
            assert int(model.logits(torch.tensor([ids]))[0, -1].argmax()) == token  # type: ignore[operator]
            ids.append(token)
