"""Files from strangers: whatever they say, there comes a plan or a clean error, in bounded time and memory."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from mutations import Mutations, data_of

from superscaler.errors import PlanFileError
from superscaler.ir import plan_file
from superscaler.ir.check import UNEXPECTED, Fault, check
from superscaler.ir.check.spaces import Layouts
from superscaler.ir.layout import Shard
from superscaler.ir.plan import Plan
from tests.ir.plans_by_hand import tensor_parallel
from tests.ir.plans_by_hand_more import BY_HAND, pipelined


def signed(body: bytes) -> bytes:
    """A file whose digest is right, whatever it says."""
    digest = sha256(body).hexdigest().encode()
    return b'{\n"superscaler plan": 1,\n"digest": "' + digest + b'",\n"plan": ' + body + b"\n}\n"


def outcome(data: bytes) -> str:
    """What comes of reading a file: "plan", or the kind of clean error. Anything else is raised."""
    try:
        check(plan_file.from_bytes(data, Plan))
    except PlanFileError:
        return "no plan file"
    except Fault as error:
        return error.kind if UNEXPECTED not in str(error) else f"unexpected: {error}"
    return "plan"


def bytes_changed(data: bytes, rng: random.Random) -> bytes:
    """A few bytes flipped, cut out, repeated or put in."""
    new = bytearray(data)
    for _ in range(rng.randrange(1, 4)):
        i, j = sorted((rng.randrange(len(new)), min(len(new), rng.randrange(len(new)) + 1)))
        match rng.randrange(4):
            case 0:
                new[i] = rng.randrange(256)
            case 1:
                del new[i : min(j, i + 40)]
            case 2:
                new[i:i] = new[i : min(j, i + 400)]
            case _:
                new[i:i] = rng.choice((b"9" * 30, b"[" * 2000, b'"', b"-", b"null", b"1e999", b"\xff", b"{}", b"0.5"))
    return bytes(new) or b" "


def fuzz(count: int, seed: int) -> Counter[str]:
    """Reads ``count`` files, changed in their bytes (with and without a right digest) or in their structure."""
    rng = random.Random(seed)
    plans = [make() for make in (tensor_parallel, *BY_HAND)]
    files = [plan_file.to_bytes(plan) for plan in plans]
    bodies = [data[data.index(b'"plan": ') + 8 : -3] for data in files]
    drawn = [Mutations(data_of(plan), seed + i, extremes=True) for i, plan in enumerate(plans)]
    twice: Callable[[int], bytes] = lambda k: msgspec.json.encode(  # noqa: E731
        Mutations(drawn[k].draw()[1], rng.randrange(1 << 30), extremes=True).draw()[1]
    )
    found: Counter[str] = Counter()
    for _ in range(count):
        k = rng.randrange(len(plans))
        match rng.randrange(4):
            case 0:
                found[outcome(bytes_changed(files[k], rng))] += 1
            case 1:
                found[outcome(signed(bytes_changed(bodies[k], rng)))] += 1
            case 2:
                found[outcome(signed(msgspec.json.encode(drawn[k].draw()[1])))] += 1
            case _:
                found[outcome(signed(twice(k)))] += 1
    return found


def test_changed_files_give_clean_errors() -> None:
    found = fuzz(400, seed=1)
    assert not [text for text in found if text.startswith("unexpected")]
    assert found["no plan file"] > 100
    assert len(found) > 8  # they come far enough to be refused for many reasons


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ten_thousand_hostile_files_do_nothing(tmp_path: Path) -> None:
    """In a process with a limit on memory, where opening a file to write, or running anything, is a fault."""
    script = """
        import resource, sys
        sys.path[:0] = [sys.argv[1], sys.argv[2]]
        import superscaler.ir.rules
        superscaler.ir.rules.specs()
        import test_hostile_files as hostile
        resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
        def watch(event, args):
            if event.split(".")[0] in ("subprocess", "socket", "os", "shutil", "ctypes", "exec", "import", "compile"):
                raise SystemExit(f"a plan file caused {event} {args}")
            if event == "open" and args[1] not in ("r", "rb", None):
                raise SystemExit(f"a plan file opened {args}")
        hostile.fuzz(20, 0)  # what is imported late, is
        sys.addaudithook(watch)
        found = hostile.fuzz(10_000, 7)
        print(found.total(), *(text for text in found if text.startswith("unexpected")))
    """
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(here), str(here.parents[2])],
        capture_output=True, text=True, cwd=tmp_path, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "10000"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "change"),
    [
        ("a tensor of 2⁶⁰ elements in two intervals of one", {"shape": [1 << 40]}),
        ("a tensor of a thousand dims", {"shape": [1] * 1000}),
        ("a tensor of negative size", {"shape": [-1]}),
    ],
)
def test_absurd_sizes_are_refused(where: str, change: dict[str, object]) -> None:
    document = data_of(pipelined())
    for tensor in document["entries"]["train"]["graph"]["tensors"]:
        tensor.update(change)
    assert outcome(signed(msgspec.json.encode(document))) in ("too large", "malformed plan"), where


def test_a_comb_of_too_many_intervals_is_refused() -> None:
    """Every other element of 2⁴⁰: a region that no memory could write down."""
    space = tensor_parallel().space
    comb = space.layout("m", {"micro": Shard(0, 2, 1)})
    assert "549755813888 intervals" in str(Layouts(space).reason(comb, (1 << 40,)))
    assert Layouts(space).reason(comb, (1 << 16,)) is None


def test_arguments_nested_without_end_are_refused() -> None:
    document = data_of(tensor_parallel())
    args = document["entries"]["train"]["graph"]["ops"][0]["args"]
    deep: list[object] = []
    for _ in range(400):
        deep = [deep]
    args.append(deep)
    assert outcome(signed(msgspec.json.encode(document))) == "malformed plan"
