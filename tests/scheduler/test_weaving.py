"""Stages that share devices: every device serves each of its stages once a round."""

from __future__ import annotations

from superscaler.scheduler.weaving import rounds

ALL = (0, 1)


def test_an_embedding_and_a_head_on_all_devices_are_woven_between_two_stages() -> None:
    (order,) = rounds([ALL, (0,), (1,), ALL], 2)
    assert [f"{kind[0].upper()}{stage}.{j}" for kind, stage, j in order if kind in ("forward", "backward")] == [
        "F0.0", "F1.0",
        "F0.1", "F1.1", "F2.0", "F3.0", "B3.0", "B2.0",
        "F2.1", "F3.1", "B3.1", "B2.1", "B1.0", "B0.0",
        "B1.1", "B0.1",
    ]  # fmt: skip


def test_a_backward_is_preceded_by_what_it_recomputes_and_followed_by_its_weight_gradient() -> None:
    (order,) = rounds([(0,), (1,)], 3)
    for stage in range(2):
        for j in range(3):
            place = order.index(("backward", stage, j))
            assert order[place - 1 : place + 2] == [(k, stage, j) for k in ("recompute", "backward", "weight")]


def test_each_round_has_one_forward_and_one_backward_of_every_stage() -> None:
    (order,) = rounds([ALL, (0,), (1,), ALL], 8)
    middle = order[len(order) // 2 : len(order) // 2 + 16]
    assert sorted(step[:2] for step in middle) == sorted(
        (kind, stage) for stage in range(4) for kind in ("forward", "recompute", "backward", "weight")
    )
