"""``hf:DIR``: a directory or a configuration of transformers; nothing is downloaded, nothing in it is run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from superscaler.errors import UsageError
from superscaler.trace import trace
from superscaler.trace.hf import load_hf

transformers = pytest.importorskip("transformers")

TEXT = {
    "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 32,
    "max_position_embeddings": 16,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {"model_type": "llama", **TEXT},
    "BertForMaskedLM": {"model_type": "bert", **TEXT},
    "T5ForConditionalGeneration": {
        "model_type": "t5", "vocab_size": 64, "d_model": 16, "d_kv": 4, "d_ff": 32, "num_layers": 1, "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "ViTForImageClassification": {"model_type": "vit", **TEXT, "image_size": 16, "patch_size": 8},
}  # fmt: skip


def write(directory: Path, **config: Any) -> Path:
    file = directory / "config.json"
    file.write_text(json.dumps(config))
    return file


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_bare_configuration_gives_a_model_and_its_batches(architecture: str, tmp_path: Path) -> None:
    file = write(tmp_path, **CONFIGS[architecture], architectures=[architecture])
    model, example = load_hf(file)
    assert type(model).__name__ == architecture
    assert model.config.use_cache is False
    batch = example(3) if "Image" in architecture else example(3, 5)
    assert all(value.shape[0] == 3 for value in batch.values())
    graph = trace(model, (), batch, mode="eval").graph
    assert graph.inputs == tuple(batch)
    assert "loss" in graph.outputs


def test_weights_are_read_from_safetensors(tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(**CONFIGS["LlamaForCausalLM"])
    saved = transformers.LlamaForCausalLM(config)
    saved.save_pretrained(tmp_path)
    model, _ = load_hf(tmp_path)
    for name, value in saved.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_without_an_architecture_the_type_decides(tmp_path: Path) -> None:
    write(tmp_path, **CONFIGS["LlamaForCausalLM"])
    assert type(load_hf(tmp_path)[0]).__name__ == "LlamaForCausalLM"


def test_batches_are_drawn_from_their_seed(tmp_path: Path) -> None:
    _, example = load_hf(write(tmp_path, **CONFIGS["BertForMaskedLM"], architectures=["BertForMaskedLM"]))
    one, same, other = example(2, 8), example(2, 8), example(2, 8, seed=1)
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["input_ids"], other["input_ids"])
    assert 0 < (one["labels"] != -100).sum() < 16


def test_bad_paths_and_configurations(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no"):
        load_hf(tmp_path / "nothing")
    (tmp_path / "config.json").write_text("not json")
    with pytest.raises(UsageError, match="no configuration"):
        load_hf(tmp_path)
    for content in (b"[" * 100_000, b"\xff\xfe", b"5"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(UsageError, match="no configuration"):
            load_hf(tmp_path)
    for wrong in ({"n_embd": "wide"}, {"n_embd": 16, "n_head": 7}):
        write(tmp_path, model_type="gpt2", n_layer=1, **wrong, architectures=["GPT2LMHeadModel"])
        with pytest.raises(UsageError, match=r"no configuration|no model is of the sizes"):
            load_hf(tmp_path)
    write(tmp_path, model_type="gpt9")
    with pytest.raises(UsageError, match="gpt9"):
        load_hf(tmp_path)
    write(tmp_path, **CONFIGS["LlamaForCausalLM"], architectures=["LlamaForTokenClassification"])
    with pytest.raises(UsageError, match="LlamaForTokenClassification"):
        load_hf(tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    write(tmp_path, **CONFIGS["LlamaForCausalLM"])
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(UsageError, match="pickle"):
        load_hf(tmp_path)


def test_bad_batches(tmp_path: Path) -> None:
    _, example = load_hf(write(tmp_path, **CONFIGS["LlamaForCausalLM"]))
    with pytest.raises(UsageError, match="exceeds the model's 16 positions"):
        example(2, 17)
    with pytest.raises(UsageError, match="batch must be at least 1"):
        example(0, 4)
