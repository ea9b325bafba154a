"""The command line as tests use it: in this process, with its exit code and what it printed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from superscaler.cli.app import superscaler_app
from superscaler.cli.outcome import execute

TINY = ("compile-plan", "gpt", "--preset", "tiny", "--batch", "8")


@dataclass(frozen=True)
class Said:
    """What a command line did."""

    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own: what this user has measured or discovered changes nothing."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("cache")
        patch.setenv("SUPERSCALER_CACHE", str(place))
        yield place


@pytest.fixture
def superscaler(capsys: pytest.CaptureFixture[str]) -> Command:
    """``superscaler("check", "p.json")`` runs that command line."""

    def run(*arguments: str | Path) -> Said:
        capsys.readouterr()
        code = execute(superscaler_app(), [str(a) for a in arguments], program="superscaler")
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tiny_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The plan of a tiny GPT on four workers: 2-way tensor, 2 stages, 2 micro-batches."""
    file = tmp_path_factory.mktemp("plans") / "tiny.plan.json"
    options = ["--plan", "megatron:tensor=2,pipeline=2,microbatches=2", "-o", str(file)]
    assert execute(superscaler_app(), [*TINY, *options], program="superscaler") == 0
    return file
