"""Workers as Ray actors: the same results, and nothing left behind whatever happens."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import small_plans as plans
import torch
from torch import Tensor, nn

from superscaler.api import compile
from superscaler.errors import ClusterError, InputError, RunError, WorkerError
from superscaler.ir.cluster import Cluster
from superscaler.models import build
from superscaler.plans import data_parallel
from superscaler.runtime import launch_ray
from superscaler.runtime.custom import op
from superscaler.runtime.fault_handlers import functions
from superscaler.runtime.launch import launch
from superscaler.transforms.optimize import AdamW
from tests.exact import Subject, compare

LEFT = ("raylet", "gcs_server", "ray::", "ray/dashboard", "log_monitor")


@pytest.fixture(scope="class")
def own_ray() -> Iterator[None]:
    """A Ray of the caller's, which jobs use and leave as it is."""
    ray.init(num_cpus=4, object_store_memory=100 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def descendants() -> list[str]:
    """Command lines of this process's descendants that belong to Ray."""
    found: list[str] = []
    for process in psutil.Process().children(recursive=True):
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.NoSuchProcess:
            continue
    return [line for line in found if any(word in line for word in LEFT)]


def leftovers() -> set[str]:
    """Names of what a job could have left in shared memory and in the place for temporary files."""
    names = [p.name for d in ("/dev/shm", "/tmp") if Path(d).exists() for p in Path(d).iterdir()]
    return {n for n in names if n.startswith(("plasma", "ss-ray-", "superscaler-progress-", "psm_", "torch_"))}


def sleepy() -> plans.Plan:
    """The pipeline, a second in every forward of its second stage."""
    return plans.pipelined(4, slow=1000.0)


def test_what_a_killed_process_left_is_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_ray, "PLACE", str(tmp_path))
    dead, lock = launch_ray._own_directory()
    os.close(lock)  # as the system does when the process is gone
    alive, lock = launch_ray._own_directory()
    # Whoever reads a log (`tail -f`) is nobody of Ray's.
    processes = [_writing(place, name) for place in (dead, alive) for name in ("ray::agent", "tail")]
    try:
        launch_ray._sweep()
        assert list(tmp_path.iterdir()) == [alive]
        assert processes[0].wait(timeout=10) == -signal.SIGKILL
        assert [process.poll() for process in processes[1:]] == [None] * 3
    finally:
        for process in processes:
            process.kill()
            process.wait()
        os.close(lock)


def _writing(place: Path, name: str) -> subprocess.Popen[bytes]:
    """A process of that name that has a log there open."""
    logs = place / "session" / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    with (logs / f"{name}.log").open("w") as log:
        return subprocess.Popen([name, "60"], executable="/bin/sleep", stdout=log)


@pytest.mark.usefixtures("own_ray")
class TestWithinARayThatRuns:
    def test_a_pipeline_learns_as_plain_torch_does(self, tmp_path: Path) -> None:
        reference = plans.Reference()
        expected = reference.steps(3)
        with launch(plans.pipelined(), plans.Reference()) as job:
            assert [job.step(plans.batch()) for _ in range(2)] == pytest.approx(expected[:2], rel=1e-9)
            with pytest.raises(InputError):
                job.step(plans.batch()[:2])
            job.save_checkpoint(tmp_path / "here")
            assert [t.worker for t in job.trace() if t.kind == "optimizer"] == [0, 1]
        assert ray.is_initialized()
        with launch(plans.tensor_parallel(sizes=(4, 2)), init_seed=0) as job:
            job.load_checkpoint(tmp_path / "here")
            assert job.step(plans.batch()) == pytest.approx(expected[2], rel=1e-9)
            for name, gradient in job.gradients().items():
                assert plans.close(gradient, reference.get_parameter(name).grad)

    def test_workers_are_sent_the_users_own_ops(self) -> None:
        """Their functions are of this test alone: no worker could import them."""
        scale = 3.0

        @op("b h -> b h", linear=[(0,)], name="tests::tripled")
        def tripled(x: Tensor) -> Tensor:
            return x * scale

        @tripled.backward
        def _(grad: Tensor, x: Tensor) -> Tensor:
            return grad * scale

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                return tripled(self.linear(x)).square().mean()

        torch.manual_seed(0)
        model, x = Model(), torch.randn(4, 4)
        plan = compile(model, (x,), cluster=Cluster.local(2), plan=data_parallel(2), evaluate=False)
        with launch(plan, model) as job:
            assert job.step(x) == pytest.approx(model(x).item(), rel=1e-6)

    @pytest.mark.parametrize("level", [1, 3])
    def test_optimizer_state_in_host_memory(self, level: int) -> None:
        """Three steps of AdamW whose moments lie in the workers' host memory, against plain torch."""
        torch.manual_seed(0)
        model, example = build("gpt", "tiny", layers=1)
        subject = Subject(model, example(4))
        adam = AdamW(lr=1e-2, clip_norm=1.0)
        plan = subject.compile(f"zero:level={level},data=2,microbatches=2,offload=true", 2, adam)
        assert all(s.memory == "host" for s in plan.state if s.kind == "optimizer")
        compare(subject.run(plan, "ray"), subject.expected(adam), adam)

    def test_fewer_cpus_than_workers(self) -> None:
        with pytest.raises(ClusterError, match="the plan needs 6 workers, and Ray has 4 CPUs"):
            launch(plans.tensor_parallel(ways=6), plans.Reference())

    @pytest.mark.slow
    def test_compiled_bodies(self) -> None:
        with launch(plans.pipelined(), plans.Reference(), compile=True) as job:
            assert job.step(plans.batch()) == pytest.approx(plans.Reference().steps(1)[0], rel=1e-9)
            workers = [p.pid for p in job._crew.processes]  # type: ignore[union-attr]
            children = [c for p in workers for c in psutil.Process(p).children(recursive=True)]
        assert psutil.wait_procs(children, timeout=10)[1] == []

    @pytest.mark.slow
    def test_an_op_that_fails_names_worker_and_task(self) -> None:
        with launch(plans.pipelined(slow=-1.0), plans.Reference()) as job:
            with pytest.raises(WorkerError, match="worker 1 failed in forward, micro-batch 0") as caught:
                job.step(plans.batch())
            assert "sleep length must be non-negative" in str(caught.value)

    @pytest.mark.slow
    def test_a_worker_that_is_killed_in_the_middle_of_a_step(self) -> None:
        before = leftovers()
        with launch(sleepy(), plans.Reference()) as job:
            processes = [p.pid for p in job._crew.processes]  # type: ignore[union-attr]
            threading.Timer(1.5, lambda: os.kill(processes[1], signal.SIGKILL)).start()
            start = time.monotonic()
            with pytest.raises(WorkerError, match=r"worker 1 died in forward, micro-batch [01]"):
                job.step(plans.batch())
            assert time.monotonic() - start < 15 + 1.5
            with pytest.raises(RunError, match="the job has ended"):
                job.step(plans.batch())
        assert not any(psutil.pid_exists(p) for p in processes)
        assert leftovers() <= before


@pytest.mark.slow
def test_jobs_of_one_process_share_a_ray_that_ends_with_the_last() -> None:
    """Together they have more workers than the machine has cores."""
    before, expected = leftovers(), plans.Reference().steps(2)
    first = launch(plans.tensor_parallel(ways=6), plans.Reference())
    second = launch(plans.pipelined(), plans.Reference())
    with first:
        assert [first.step(plans.batch()), second.step(plans.batch())] == pytest.approx([expected[0]] * 2, rel=1e-9)
    with second:
        assert second.step(plans.batch()) == pytest.approx(expected[1], rel=1e-9)
    assert not ray.is_initialized()
    assert descendants() == []
    assert leftovers() <= before


SCRIPT = """
    import sys
    import time
    sys.path.insert(0, {here!r})
    import ray
    import small_plans as plans
    from superscaler.runtime.launch import launch

    def shutdown(end=ray.shutdown):
        time.sleep({slowly})
        end()

    ray.shutdown = shutdown
    with launch(plans.pipelined(4, slow=1000.0), plans.Reference()) as job:
        print("running", flush=True)
        while True:
            job.step(plans.batch())
"""


INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize(
    ("slowly", "after", "signals"),
    [
        (0, 1.0, [INT]),
        (0, 1.0, [TERM]),
        (5, 1.0, [TERM]),
        *((0, 0.05, [first, second, third]) for first, second, third in itertools.product((INT, TERM), repeat=3)),
        (0, 0.6, [INT, INT, TERM, INT]),
        (2, 0.6, [TERM, TERM, INT, TERM, INT]),
    ],
)
def test_interrupted_from_outside(slowly: int, after: float, signals: list[signal.Signals]) -> None:
    """``slowly``: seconds by which Ray takes longer to end, as on a busy machine. ``after``: between two signals."""
    before = leftovers()
    script = textwrap.dedent(SCRIPT.format(here=str(Path(__file__).parent), slowly=slowly))
    job = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert job.stdout is not None
        assert job.stdout.readline() == "running\n"
        time.sleep(1)
        family = psutil.Process(job.pid).children(recursive=True)
        assert "raylet" in {p.name() for p in family}
        for number in signals:
            job.send_signal(number)
            time.sleep(after)
        job.communicate(timeout=30)
        assert job.returncode in (-signal.SIGINT, 128 + signal.SIGTERM, 1)  # by itself: Ray turns some into a 1
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert leftovers() <= before
    finally:
        job.kill()


@pytest.mark.slow
def test_a_ray_of_its_own_ends_with_the_job() -> None:
    assert not ray.is_initialized()
    before = leftovers()
    with launch(plans.pipelined(), plans.Reference()) as job:
        job.step(plans.batch())
        assert descendants()
    assert not ray.is_initialized()
    assert descendants() == []
    assert leftovers() <= before


def test_a_ray_of_its_own_leaves_the_handlers_of_faults() -> None:
    before = functions()
    with launch(plans.pipelined(), plans.Reference()) as job:
        job.step(plans.batch())
    assert functions() == before


def test_a_ray_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stuck = threading.Event()
    monkeypatch.setattr(launch_ray, "SHUTDOWN", 0.05)
    monkeypatch.setattr(ray, "shutdown", lambda: stuck.wait(60))
    launch_ray._shut_down(lambda: None)  # pyright: ignore[reportPrivateUsage]
    assert not stuck.is_set()
    stuck.set()
