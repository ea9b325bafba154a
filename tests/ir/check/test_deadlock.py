"""Playing communications through: it gets stuck just where some order of the whole is impossible."""

from __future__ import annotations

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superscaler.ir.check import Fault, check
from superscaler.ir.check.deadlock import connected, play
from superscaler.ir.layout import Layout
from superscaler.ir.program import Piece, Route
from tests.ir.plans_by_hand_more import pipelined


@given(st.lists(st.sets(st.integers(0, 3), min_size=2), max_size=6), st.data())
def test_stuck_where_the_orders_of_the_players_form_a_circle(meets: list[set[int]], data: st.DataObject) -> None:
    """Meet number i is between the players in ``meets[i]``; each player has its meets in an order of its own."""
    queues = {
        player: data.draw(st.permutations([(i, 0, 0) for i, members in enumerate(meets) if player in members]))
        for player in range(4)
    }
    graph = nx.DiGraph()
    for queue in queues.values():
        nx.add_path(graph, queue)
    assert (play(queues) is None) == nx.is_directed_acyclic_graph(graph)


def test_the_circle_is_shown_as_a_grid() -> None:
    """The first stage receives before it sends, the second the other way round."""
    plan = pipelined()
    program = plan.entries["train"].programs[0]
    order = list(program.order)
    send = next(i for i, item in enumerate(order) if program.blocks[item.block].kind == "send" and item.microbatch == 1)
    recv = next(i for i, item in enumerate(order) if program.blocks[item.block].kind == "recv" and item.microbatch == 1)
    assert send < recv
    # sends of micro-batch 1 are posted behind the receive of its own gradient
    from editing import with_program

    order.insert(recv, order.pop(send))
    with pytest.raises(Fault) as caught:
        check(with_program(plan, "train", 0, order=tuple(order)))
    assert caught.value.kind == "deadlock"
    text = str(caught.value)
    assert "workers 0, 1 wait for each other in a circle" in text
    assert "worker    0 | 1: transfer ga, micro-batch 1 | 0: transfer a, micro-batch 1" in text
    assert "worker    1 | 0: transfer a, micro-batch 1 | 1: transfer ga, micro-batch 1" in text


def test_only_workers_that_exchange_pieces_meet() -> None:
    region = (((0, 1),),)
    pieces = tuple(Piece(a, b, region) for a, b in ((0, 4), (1, 4), (2, 5), (3, 3)))
    meets = connected(Route("x", Layout("m"), Layout("n"), pieces))
    assert meets[0] == meets[1] == meets[4]
    assert meets[2] == meets[5] != meets[0]
    assert 3 not in meets
