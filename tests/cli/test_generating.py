"""``superscaler generate`` and ``superscaler memory``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from superscaler import models
from superscaler.cli.app import superscaler_app
from superscaler.cli.outcome import execute
from superscaler.runtime.memory import Pool
from tests.cases import slow
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


@pytest.mark.parametrize("devices", [slow(()), slow(("--devices", "2")), ("--devices", "2", "--pipeline", "2")])
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


@pytest.mark.parametrize(("options", "dtype"), [((), torch.bfloat16), (("--dtype", "f32"), torch.float32)])
def test_weights_are_used_as_they_were_saved_or_as_is_said(
    superscaler: Command, tmp_path: Path, options: tuple[str, ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(2)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path)
    want = {}
    for each in (torch.bfloat16, torch.float32):
        model = transformers.LlamaForCausalLM.from_pretrained(tmp_path, dtype=each)
        ids = model.generate(torch.tensor([[5, 9, 1, 33]]), max_new_tokens=30, do_sample=False, eos_token_id=None)
        want[each] = ids[0, 4:].tolist()
    assert want[torch.bfloat16] != want[torch.float32]
    said = superscaler(
        "generate", tmp_path, "--prompt-ids", "5,9,1,33", "--max-new-tokens", "30", "--ignore-eos", "--json", *options
    )
    assert said.code == 0, said.err
    assert json.loads(said.out)["tokens"] == want[dtype]


SETTINGS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "a penalty on repetition": {"repetition_penalty": 3.0},
    "no token twice": {"no_repeat_ngram_size": 1},
    "words that must not come": {"bad_words_ids": [[2], [14, 38]]},
    "tokens that must not come": {"suppress_tokens": [*range(20, 50)]},
    "tokens that must not come first": {"begin_suppress_tokens": [*range(40, 50)]},
    "a bias": {"sequence_bias": [[[3], 9.0], [[4], -9.0]]},
    "a last token": {"forced_eos_token_id": 11},
    "all at once": {"repetition_penalty": 2.0, "no_repeat_ngram_size": 3, "suppress_tokens": [1, 2], "num_beams": 2},
    "an end that comes late": {"eos_token_id": [*range(40)], "min_new_tokens": 3},
    "an end that comes at a length": {"eos_token_id": [*range(40)], "min_length": 7},
    "an end that comes near": {"eos_token_id": [5, 6], "exponential_decay_length_penalty": (2, 4.0)},
}


QUICK = ("nothing", "a penalty on repetition", "all at once", "an end that comes late")


@pytest.mark.parametrize("what", [what if what in QUICK else slow(what) for what in SETTINGS])
def test_generation_settings_count_as_in_generate(superscaler: Command, llama: Path, tmp_path: Path, what: str) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    for name, value in ({"eos_token_id": None} | SETTINGS[what]).items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(tmp_path)
    prompt = [5, 9, 1, 33]
    ids = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, num_beams=1, pad_token_id=0)
    want = ids[0, 4:].tolist()
    if what != "nothing":
        plain = transformers.LlamaForCausalLM.from_pretrained(llama)
        plain.generation_config.eos_token_id = model.generation_config.eos_token_id
        ids = plain.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert ids[0, 4:].tolist() != want, "a setting that changes nothing tests nothing"
    said = superscaler("generate", tmp_path, "--prompt-ids", "5,9,1,33", "--max-new-tokens", "12", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["tokens"] == want


@pytest.mark.parametrize(
    "wrong",
    [
        {"repetition_penalty": -1.0}, {"repetition_penalty": "much"}, {"no_repeat_ngram_size": -2},
        {"bad_words_ids": [7]}, {"sequence_bias": [[[640], 1.0]]}, {"suppress_tokens": "all"},
    ],
)  # fmt: skip
def test_generation_settings_that_make_no_sense_are_told(
    superscaler: Command, llama: Path, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    transformers.LlamaForCausalLM.from_pretrained(llama).save_pretrained(tmp_path)
    file = tmp_path / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | wrong))
    said = superscaler("generate", tmp_path, *IDS)
    assert said.code == 2, said.out
    assert "Traceback" not in said.err
    assert "generation" in said.err


@pytest.mark.parametrize(
    ("options", "code", "why"),
    [
        ((), 2, "one of them is the prompt"),
        (("--prompt-ids", "1,x"), 2, "no tokens"),
        (("--prompt", "hello"), 2, "no tokenizer"),
        (("--prompt-ids", "1", "--max-new-tokens", "64"), 2, "64 positions"),
        (("--prompt-ids", "1", "--memory", "0.0001"), 1, "is the smallest that will do"),
        (("--prompt-ids", "1", "--devices", "3", "--pipeline", "2"), 2, "does not divide"),
        (("--prompt-ids", "1,64"), 2, "token 64 of the prompt: the model has 64"),
        (("--prompt-ids", "1,-1"), 2, "token -1 of the prompt"),
        (("--prompt-ids", ",".join(["1"] * 65), "--max-new-tokens", "1"), 2, "64 positions"),
        (("--prompt-ids", "1", "--max-new-tokens", "0"), 2, "1 or more"),
        (("--prompt-ids", "1", "--devices", "2", "--pipeline", "0"), 2, "1 or more"),
        (("--prompt-ids", "1", "--devices", "2", "--pipeline", "-1"), 2, "1 or more"),
        (("--prompt-ids", "1", "--memory", "nan"), 2, "a positive number"),
        (("--prompt-ids", "1", "--memory", "inf"), 2, "a positive number"),
        (("--prompt-ids", "1", "--memory", "-1"), 2, "a positive number"),
        (("--prompt-ids", ""), 2, "no tokens"),
        (("--prompt-ids", "1", "--prompt", "x"), 2, "one of them"),
        ((), 2, "one of them"),
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


NAMES = ("LlamaForCausalLM", "GPT2LMHeadModel", "Qwen2ForCausalLM")


def saved(name: str, directory: Path) -> Any:
    """A tiny model of transformers with random weights, in a directory; it ends a text with its most likely token."""
    sizes = {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3,
    }  # fmt: skip
    if name.startswith("GPT2"):
        sizes = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.3}
    torch.manual_seed(1)
    kind = name.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    model = getattr(transformers, name)(getattr(transformers, f"{kind}Config")(**sizes))
    model.save_pretrained(directory)
    return model.eval()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("devices", [slow(1), 2])
def test_every_model_as_generate_up_to_its_last_position(
    superscaler: Command, tmp_path: Path, name: str, devices: int
) -> None:
    model = saved(name, tmp_path)
    prompt = [5, 9, 1, 33, 7, 2, 8]
    given = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    want = model.generate(torch.tensor([prompt]), max_new_tokens=57, **given)[0, 7:].tolist()
    options = ("--prompt-ids", ",".join(map(str, prompt)), "--max-new-tokens", "57", "--ignore-eos", "--json")
    said = superscaler("generate", tmp_path, *options, "--devices", str(devices), "--backend", "inline")
    assert said.code == 0, said.err
    assert json.loads(said.out)["tokens"] == want


def test_one_of_several_end_tokens_ends_it_unless_ignored(superscaler: Command, tmp_path: Path) -> None:
    model = saved("LlamaForCausalLM", tmp_path)
    ids = torch.tensor([[5, 9, 1, 33]])
    free = model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)[0, 4:].tolist()
    model.generation_config.eos_token_id = [63, free[5]]
    model.save_pretrained(tmp_path)
    want = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, 4:].tolist()
    options = ("generate", tmp_path, "--prompt-ids", "5,9,1,33", "--max-new-tokens", "12", "--json")
    assert json.loads(superscaler(*options).out)["tokens"] == want
    assert json.loads(superscaler(*options, "--ignore-eos").out)["tokens"] == free


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two steps of the command line leave of a ``gpt``."""
    directory = tmp_path_factory.mktemp("trained")
    plan = directory / "p.json"
    options = ("--preset", "tiny", "--set", "layers=3", "--devices", "1", "--batch", "4", "-o", plan)
    train = ("--steps", "2", "--data", "stdlib", "--backend", "inline", "--checkpoint", directory / "c")
    for words in (("compile-plan", "gpt", *options), ("run", plan, *train)):
        assert execute(superscaler_app(), [str(word) for word in words], program="superscaler") == 0
    return directory / "c"


@pytest.mark.parametrize("devices", [slow("1"), "2"])
def test_a_checkpoint_of_gpt_goes_on_writing(superscaler: Command, checkpoint: Path, devices: str) -> None:
    from safetensors.torch import load_file

    model, _ = models.build("gpt", "tiny", layers=3)
    weights = {k: v for file in checkpoint.glob("model-*.safetensors") for k, v in load_file(file).items()}
    model.load_state_dict(weights)
    ids = list(b"def f(x):")
    for _ in range(6):
        ids.append(int(model.logits(torch.tensor([ids]))[0, -1].argmax()))  # type: ignore[operator]
    options = ("--prompt", "def f(x):", "--max-new-tokens", "6", "--devices", devices, "--backend", "inline", "--json")
    said = superscaler("generate", checkpoint, *options)
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["prompt_tokens"] + found["tokens"] == ids
    assert found["text"] == bytes(ids[9:]).decode(errors="replace")


def damaged_weights(directory: Path) -> None:
    (file,) = directory.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:200])


def truncated_weights(directory: Path) -> None:
    (file,) = directory.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-64])


def missing_tensor(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    (file,) = directory.glob("*.safetensors")
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})


def other_shape(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))


def no_weights(directory: Path) -> None:
    (file,) = directory.glob("*.safetensors")
    file.unlink()


def no_config(directory: Path) -> None:
    (directory / "config.json").unlink()


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (damaged_weights, "cannot be read"),
        (truncated_weights, "cannot be read"),
        (missing_tensor, "model.layers.1.mlp.up_proj.weight is missing"),
        (other_shape, "model.layers.0.mlp.down_proj.weight is of another shape"),
        (no_weights, "has no weights"),
        (no_config, "there is no"),
    ],
)
def test_a_directory_that_is_not_whole(superscaler: Command, tmp_path: Path, harm: Any, why: str) -> None:
    saved("LlamaForCausalLM", tmp_path)
    harm(tmp_path)
    said = superscaler("generate", tmp_path, "--prompt-ids", "1")
    assert (said.code, why in said.err, "Traceback" in said.err) == (2, True, False), said.err


@pytest.mark.parametrize(
    ("source", "why"),
    [
        (None, "does not name a model"),
        ({"name": "os:getcwd", "preset": None, "set": {}, "batch": 1}, "os:getcwd"),
        ({"name": "gpt"}, "damaged"),
        ({"name": "gpt", "preset": "tiny", "set": {"layers": "2"}, "batch": 1}, "blocks.2"),
    ],
)
def test_a_checkpoint_is_not_taken_at_its_word(
    superscaler: Command, checkpoint: Path, tmp_path: Path, source: Any, why: str
) -> None:
    for file in checkpoint.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    told = json.loads((tmp_path / "job.json").read_text())
    (tmp_path / "job.json").write_text(json.dumps(told | {"source": source}))
    said = superscaler("generate", tmp_path, "--prompt-ids", "1", "--max-new-tokens", "2")
    assert (said.code in (1, 2), why in said.err, "Traceback" in said.err) == (True, True, False), said.err
