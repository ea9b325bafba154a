"""Random operations against a shadow model, with failures injected at every system or driver call."""

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from memory_pools import BACKENDS
from shadow import RANGE, DeviceWords, Shadow, random_step

INDEX = st.integers(0, RANGE - 1)
COUNT = st.integers(1, 8)
WHICH = st.integers(0, 63)


class PoolMachine(RuleBasedStateMachine):
    """Hypothesis chooses the operations, and shrinks what goes wrong to the shortest story."""

    @initialize(backend=st.sampled_from(BACKENDS), chunks=st.integers(8, 64))
    def open(self, backend, chunks):
        self.shadow = Shadow(backend, chunks)
        self.shadow.reserve()
        self.shadow.reserve()

    def entry(self, which):
        return self.shadow.entries[which % len(self.shadow.entries)]

    @rule(after=st.integers(0, 5), failures=st.integers(1, 3))
    def the_system_will_refuse(self, after, failures):
        self.shadow.fuse.arm(after, failures)

    @precondition(lambda self: len(self.shadow.entries) < 8)
    @rule()
    def reserve(self):
        self.shadow.reserve()

    @precondition(lambda self: self.shadow.entries)
    @rule(which=WHICH, count=COUNT)
    def extend(self, which, count):
        self.shadow.extend(self.entry(which), count)

    @precondition(lambda self: self.shadow.entries)
    @rule(which=WHICH, keep=INDEX)
    def trim(self, which, keep):
        self.shadow.trim(self.entry(which), keep)

    @precondition(lambda self: self.shadow.entries)
    @rule(which=WHICH, other=WHICH, start=INDEX, count=COUNT)
    def share(self, which, other, start, count):
        self.shadow.share(self.entry(which), self.entry(other), start, count)

    @precondition(lambda self: self.shadow.entries)
    @rule(which=WHICH, index=INDEX, word=st.integers(0, 2), value=st.integers(1, 2**63))
    def write(self, which, index, word, value):
        self.shadow.write(self.entry(which), index, word, value)

    @precondition(lambda self: self.shadow.entries)
    @rule(which=WHICH, lo=INDEX, count=COUNT)
    def copy_on_write(self, which, lo, count):
        self.shadow.writable(self.entry(which), lo, lo + count)

    @precondition(lambda self: self.shadow.entries)
    @rule(which=WHICH, lo=INDEX, count=COUNT)
    def hold(self, which, lo, count):
        self.shadow.hold(self.entry(which), lo, lo + count)

    @precondition(lambda self: self.shadow.entries and self.shadow.held)
    @rule(which=WHICH, held=WHICH)
    def share_held(self, which, held):
        self.shadow.share_held(self.entry(which), held % len(self.shadow.held))

    @precondition(lambda self: self.shadow.held)
    @rule(held=WHICH)
    def release_held(self, held):
        self.shadow.release_held(held % len(self.shadow.held))

    @precondition(lambda self: self.shadow.entries)
    @rule(which=WHICH)
    def free(self, which):
        self.shadow.free(self.entry(which))

    @precondition(lambda self: self.shadow.entries)
    @rule(which=WHICH)
    def drop(self, which):
        self.shadow.drop(self.entry(which))

    @invariant()
    def memory_and_shadow_agree(self):
        if hasattr(self, "shadow"):
            for entry in self.shadow.entries:
                self.shadow.check(entry)

    def teardown(self):
        if hasattr(self, "shadow"):
            self.shadow.close()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_few_thousand_random_operations(backend, lazy):
    run(backend, operations=3_000, seed=1, lazy=lazy)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_million_random_operations(backend):
    shadow = run(backend, operations=1_000_000, seed=2)
    assert shadow.failures > 10_000


def test_the_suite_of_a_device_writes_by_kernels():
    run("cuda", operations=1_000, seed=4, words=DeviceWords)


def run(backend, operations, seed, lazy=False, **where):
    shadow, draw = Shadow(backend, lazy=lazy, **where), random.Random(seed)
    for step in range(operations):
        random_step(shadow, draw)
        if step % 500 == 0:
            shadow.check_all()
    shadow.close()
    return shadow
