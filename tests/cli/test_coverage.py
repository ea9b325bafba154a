"""``superscaler ops --coverage``: the share of a model's ops that have a rule, at least 99 % for every family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Command
from tests.families import family

pytest.importorskip("transformers")

FOLD = """
from tests.families import family

def block():
    case = family("esmfold", 2)
    return case.model, case.args
"""


@pytest.mark.parametrize("name", ["bert", "vit", "t5", "swin", "qwen2", "mixtral"])
def test_a_configuration_of_transformers(name: str, superscaler: Command, tmp_path: Path) -> None:
    config = family(name, 2).model.config
    config.architectures = [type(family(name, 2).model).__name__]
    config.save_pretrained(tmp_path)
    images = name in ("vit", "swin")
    options = ["--batch", "4"] if images else ["--batch", "4", "--seq", "7"]
    said = superscaler("ops", "--coverage", f"hf:{tmp_path}", *options, "--json")
    assert said.code == 0, said.err
    found = json.loads(said.out)
    assert found["share"] >= 0.99, found["missing"]
    assert found["instances"] > 100
    assert found["ruled"] + found["discovered"] + sum(found["missing"].values()) == found["instances"]


def test_a_block_of_esmfold(superscaler: Command, tmp_path: Path) -> None:
    (tmp_path / "fold.py").write_text(FOLD)
    said = superscaler("ops", "--coverage", f"{tmp_path / 'fold.py'}:block")
    assert said.code == 0, said.err
    assert float(said.out.partition("%")[0]) >= 99


def test_a_model_that_is_not_there(superscaler: Command) -> None:
    said = superscaler("ops", "--coverage", "hf:nowhere")
    assert said.code == 2
    assert "there is no nowhere" in said.err
