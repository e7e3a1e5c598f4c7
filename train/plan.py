"""Which variants are trained together: equal shapes in one group, and as many groups in one pass as memory holds.

A group is stacked and costs one set of products per step. A pass reads the data once and steps every group of it
through each batch. Pure functions; the same variants and budget give the same groups, because what is trained beside a
variant decides the last bits of its weights.
"""

import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Member = TypeVar("Member")


@dataclass(frozen=True)
class PlannedGroup(Generic[Member]):
    """Members of one shape that fit the budget together."""

    members: tuple[Member, ...]
    num_bytes: int
    """Memory that training them takes."""


def plan_groups(
    members: Sequence[Member],
    *,
    shape: Callable[[Member], Hashable],
    num_bytes: Callable[[Sequence[Member]], int],
    budget: int,
) -> list[PlannedGroup[Member]]:
    """Members by shape, in the order given; a shape that exceeds `budget` bytes is split into equal parts that do not.

    Args:
        shape: members of equal shape can be stacked.
        num_bytes: what training some members of one shape takes; it grows with their number.
    """
    by_shape: dict[Hashable, list[Member]] = {}
    for member in members:
        by_shape.setdefault(shape(member), []).append(member)
    planned = []
    for same in by_shape.values():
        for part in _parts(same, _most_that_fit(same, num_bytes, budget)):
            planned.append(PlannedGroup(tuple(part), num_bytes(part)))
    return planned


def _most_that_fit(same: Sequence[Member], num_bytes: Callable[[Sequence[Member]], int], budget: int) -> int:
    fitting = 0
    for count in range(len(same), 0, -1):
        if num_bytes(same[:count]) <= budget:
            fitting = count
            break
    if fitting == 0:
        raise ValueError(
            f"expected each variant to fit the memory for training, {_gib(budget)}, got one that needs "
            f"{_gib(num_bytes(same[:1]))}. Lower its d_sae or train.batch_rows, or give more with --memory-gib"
        )
    return fitting


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.3g} GiB"


def _parts(same: Sequence[Member], most: int) -> list[Sequence[Member]]:
    """As few parts of at most `most` members as possible, of sizes that differ by one at most."""
    num_parts = -(-len(same) // most)
    bounds = [index * len(same) // num_parts for index in range(num_parts + 1)]
    return [same[begin:end] for begin, end in itertools.pairwise(bounds)]


def plan_passes(groups: Sequence[PlannedGroup[Member]], *, budget: int) -> list[list[PlannedGroup[Member]]]:
    """Groups into as few passes over the data as first fit finds, the largest groups first."""
    passes: list[list[PlannedGroup[Member]]] = []
    for group in sorted(groups, key=lambda group: -group.num_bytes):  # stable: equal sizes keep their order
        used = ((planned, sum(other.num_bytes for other in planned)) for planned in passes)
        room = next((planned for planned, taken in used if taken + group.num_bytes <= budget), None)
        if room is None:
            passes.append([group])
        else:
            room.append(group)
    return passes


def spread(passes: Sequence[Sequence[PlannedGroup[Member]]], num_workers: int) -> list[list[PlannedGroup[Member]]]:
    """Splits the largest passes until there is one per worker, or nothing to split: first by groups, then by members.

    The bytes of a group that is split are taken to fall with its members.
    """
    tasks = [list(groups) for groups in passes]
    while len(tasks) < num_workers:
        splittable = [task for task in tasks if len(task) > 1 or len(task[0].members) > 1]
        if not splittable:
            break
        largest = max(splittable, key=lambda task: sum(group.num_bytes for group in task))
        place = tasks.index(largest)
        tasks[place : place + 1] = _halves(largest)
    return tasks


def _halves(task: list[PlannedGroup[Member]]) -> list[list[PlannedGroup[Member]]]:
    if len(task) > 1:
        halves: list[list[PlannedGroup[Member]]] = [[], []]
        for group in task:  # the largest come first
            min(halves, key=lambda half: sum(group.num_bytes for group in half)).append(group)
        return halves
    members, num_bytes = task[0].members, task[0].num_bytes
    middle = (len(members) + 1) // 2
    return [
        [PlannedGroup(part, num_bytes * len(part) // len(members))] for part in (members[:middle], members[middle:])
    ]
