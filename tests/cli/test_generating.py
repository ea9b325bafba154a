"""``superscaler generate`` and ``superscaler memory``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from superscaler.runtime.memory import Pool
from tests.cli.conftest import Command

transformers: Any = pytest.importorskip("transformers")

IDS = ("--prompt-ids", "5,9,1,33", "--max-new-tokens", "6")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def expected(directory: Path) -> list[int]:
    model = transformers.LlamaForCausalLM.from_pretrained(directory)
    ids = model.generate(torch.tensor([[5, 9, 1, 33]]), max_new_tokens=6, do_sample=False, eos_token_id=None)
    return ids[0, 4:].tolist()


@pytest.mark.parametrize("devices", [(), ("--devices", "2"), ("--devices", "2", "--pipeline", "2")])
def test_json_has_tokens_seconds_and_memory(superscaler: Command, llama: Path, devices: tuple[str, ...]) -> None:
    said = superscaler("generate", llama, *IDS, *devices, "--ignore-eos", "--backend", "inline", "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["tokens"] == expected(llama)
    assert found["text"] is None
    assert found["seconds"] > 0
    assert len(found["memory"]) == (2 if devices else 1)


def test_the_end_of_the_text_ends_it(superscaler: Command, llama: Path, tmp_path: Path) -> None:
    want = expected(llama)
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    model.generation_config.eos_token_id = want[2]
    model.save_pretrained(tmp_path)
    said = superscaler("generate", tmp_path, *IDS)
    assert said.out.strip() == ",".join(map(str, want[: want.index(want[2]) + 1]))


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        ((), 2, "one of them is the prompt"),
        (("--prompt-ids", "1,x"), 2, "no tokens"),
        (("--prompt", "hello"), 2, "no tokenizer"),
        (("--prompt-ids", "1", "--max-new-tokens", "64"), 2, "64 positions"),
        (("--prompt-ids", "1", "--memory", "0.0001"), 1, "is the smallest that will do"),
        (("--prompt-ids", "1", "--devices", "3", "--pipeline", "2"), 2, "does not divide"),
    ],
)
def test_bad_input(superscaler: Command, llama: Path, options: tuple[str, ...], code: int, why: str) -> None:
    said = superscaler("generate", llama, *options)
    assert (said.code, why in said.err) == (code, True), said.err


def test_memory_shows_who_holds_what(superscaler: Command) -> None:
    with Pool("host", budget=1 << 20, chunk=1 << 16, name="mine") as pool:
        held = pool.reserve(1 << 20, owner="someone")
        held.extend(1 << 16)
        rows = json.loads(superscaler("memory", "--json").out)["rows"]
        assert {"reserved": 1 << 20, "mapped": 1 << 16, "shared": 0}.items() <= next(
            row for row in rows if (row["pool"], row["owner"]) == ("mine", "someone")
        ).items()
        assert "someone" in superscaler("memory").out
    assert "someone" not in superscaler("memory").out


def test_text_goes_in_and_out(superscaler: Command, llama: Path, tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{i}": i for i in range(64)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    model.save_pretrained(tmp_path)
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(tmp_path)
    options = ("--prompt", "w5 w9 w1 w33", "--max-new-tokens", "6", "--ignore-eos")
    found = json.loads(superscaler("generate", tmp_path, *options, "--json").out)
    assert found["prompt_tokens"] == [5, 9, 1, 33]
    assert found["tokens"] == expected(llama)
    assert found["text"] == " ".join(f"w{token}" for token in expected(llama))
    assert superscaler("generate", tmp_path, *options).out.strip() == found["text"]


def test_a_decoding_plan_does_not_train(superscaler: Command, tmp_path: Path) -> None:
    from superscaler.decoding import compile_decoder
    from superscaler.ir.cluster import Cluster
    from superscaler.models import build

    plan = compile_decoder(build("gpt", "tiny")[0], cluster=Cluster.local(1), prompt=4, tokens=16)
    plan.save(tmp_path / "p.json")
    assert superscaler("check", tmp_path / "p.json").code == 0
    said = superscaler("run", tmp_path / "p.json", "--backend", "inline")
    assert (said.code, "does not train" in said.err) == (2, True)
