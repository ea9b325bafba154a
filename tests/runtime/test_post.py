"""Posts: what posts is started at once, what waits is waited for later, and brings its value."""

from __future__ import annotations

from collections.abc import Generator

from superscaler.runtime.comm import Handle
from superscaler.runtime.post import Post, posting
from superscaler.runtime.rehearsal import OVER


def rounds(done: list[int], count: int) -> Generator[Handle, None, str]:
    """So many communications, one after the other."""
    for number in range(count):
        done.append(number)
        yield OVER
    return f"after {count}"


def finished(post: Post) -> tuple[int, str]:
    """How many handles had to be waited for, and what came of it."""
    waiting, waited = iter(post), 0
    while True:
        try:
            next(waiting)
        except StopIteration as end:
            return waited, end.value
        waited += 1


def test_the_first_is_posted_at_once_and_the_others_in_their_turn() -> None:
    for count in range(4):
        done: list[int] = []
        post = Post(rounds(done, count))
        assert done == [0][:count]
        assert finished(post) == (count, f"after {count}")
        assert done == [*range(count)]


def test_a_function_that_posts_when_it_is_called() -> None:
    done: list[int] = []
    post = posting(rounds)(done, 2)
    assert done == [0]
    assert finished(post) == (2, "after 2")
