"""Groups and passes: members are numbers, their shape is the tens digit, and each takes as many bytes as its units."""

from collections.abc import Sequence

import pytest

from train.plan import PlannedGroup, plan_groups, plan_passes, spread


def shape(member: int) -> int:
    return member // 10


def num_bytes(members: Sequence[int]) -> int:
    return sum(member % 10 for member in members)


def groups(members: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    return [group.members for group in plan_groups(members, shape=shape, num_bytes=num_bytes, budget=budget)]


def test_equal_shapes_are_one_group_in_the_order_given() -> None:
    assert groups([11, 21, 12, 31, 22], 100) == [(11, 12), (21, 22), (31,)]


def test_a_group_that_does_not_fit_is_split_into_equal_parts() -> None:
    # Five of two bytes each: two fit into five bytes, so three parts, as equal as can be.
    assert groups([12] * 5, 5) == [(12,), (12, 12), (12, 12)]
    assert groups([12] * 5, 6) == [(12, 12), (12, 12, 12)]
    assert groups([12] * 5, 10) == [(12,) * 5]


def test_a_member_that_does_not_fit_alone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected each variant to fit .* got one that needs .*Lower its d_sae"):
        groups([19], 8)


def test_passes_are_filled_with_the_largest_groups_first() -> None:
    planned = plan_groups([13, 27, 34, 42], shape=shape, num_bytes=num_bytes, budget=10)
    passes = plan_passes(planned, budget=10)
    assert [[group.num_bytes for group in one_pass] for one_pass in passes] == [[7, 3], [4, 2]]


def test_workers_without_a_task_get_a_share_of_the_largest() -> None:
    one_pass = [[PlannedGroup((1, 2, 3), 9), PlannedGroup((4,), 4), PlannedGroup((5,), 3)]]
    assert spread(one_pass, 1) == one_pass
    two = spread(one_pass, 2)
    assert [[group.members for group in task] for task in two] == [[(1, 2, 3)], [(4,), (5,)]]
    three = spread(one_pass, 3)
    assert [[group.members for group in task] for task in three] == [[(1, 2)], [(3,)], [(4,), (5,)]]


def test_there_are_no_more_tasks_than_members() -> None:
    assert len(spread([[PlannedGroup((1, 2), 2)]], 5)) == 2
