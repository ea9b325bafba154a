"""Address spaces: what is tried again where memory is short."""

import pytest
from memory_pools import CHUNK, open_pool

from superscaler.errors import OutOfMemory


class Late:
    """Finds no memory so many times, as when others take it and give it back in between."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __call__(self) -> None:
        if self.left:
            self.left -= 1
            raise OutOfMemory("somebody was faster")


@pytest.mark.parametrize("times", [0, 1, 2, 5])
def test_while_there_is_room_it_is_tried_again(times: int) -> None:
    """Also when nothing went back during the last try: it may have gone back just before."""
    with open_pool("host", chunks=4) as pool:
        late = Late(times)
        pool.space.with_room(1, late)
        assert late.left == 0


def test_without_room_it_is_refused_as_soon_as_nothing_goes_back() -> None:
    with open_pool("host", chunks=4) as pool:
        held = pool.reserve(1 << 30)
        held.extend(4 * CHUNK)
        late = Late(50)
        with pytest.raises(OutOfMemory):
            pool.space.with_room(1, late)
        assert (late.left, held.size) == (48, 4 * CHUNK)
