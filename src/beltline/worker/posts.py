"""Posts: the places of a worker's shared runners, and how every queue's slots are spread over them.

Even     no post has two slots more than another, nor two of one queue, so that the runners carry the same and no queue has one processor where it could have two.
Quiet    what need not move stays: a slot that is taken away is taken where the most are, and there where one is free; one that is added goes where the fewest are.
New      a post that is added while others work gets nothing until its runner is ready: a growth never begins with a loss.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from beltline.worker.children import Child
from beltline.worker.intake import Intake

K = TypeVar("K")


class Post:
    """`share`: intake -> slots. `child`: the runner that is dealt to; `next`: the one that will replace it. `start_at`: when a missing runner may be started."""

    def __init__(self, number: int, *, new: bool) -> None:
        self.number = number
        self.new = new
        self.share: dict[Intake, int] = {}
        self.child: Child | None = None
        self.next: Child | None = None
        self.start_at = 0.0
        self.fruitless = 0

    @property
    def layout(self) -> list[tuple[Intake | None, int]]:
        return [(intake, slots) for intake, slots in self.share.items() if slots]

    @property
    def busy(self) -> int:
        return self.child.busy if self.child is not None else 0

    def free(self, intake: Intake) -> int:
        """How many slots of its share run nothing now."""
        lanes = self.child.lanes if self.child is not None else []
        return self.share.get(intake, 0) - sum(lane.busy for lane in lanes if lane.intake is intake)


def spread(shares: Sequence[Mapping[K, int]], wanted: Mapping[K, int], free: Sequence[Mapping[K, int]]) -> list[dict[K, int]]:
    """The new share of each post, so that they add up to `wanted`. `shares`: what they have; `free`: how many slots of each key run nothing there."""
    new = [{key: slots for key, slots in share.items() if key in wanted} for share in shares]
    if not new:
        return new
    load = [sum(share.values()) for share in new]
    idle = [dict(each) for each in free]
    posts = range(len(new))

    def move(key: K, post: int, by: int) -> None:
        new[post][key] = new[post].get(key, 0) + by
        load[post] += by
        if by < 0:
            idle[post][key] = idle[post].get(key, 0) - 1

    for key, slots in wanted.items():
        have = sum(share.get(key, 0) for share in new)
        for _ in range(have - slots):
            move(key, max((post for post in posts if new[post].get(key, 0)), key=lambda post: (load[post], idle[post].get(key, 0), post)), -1)
    for key, slots in wanted.items():
        have = sum(share.get(key, 0) for share in new)
        for _ in range(slots - have):
            move(key, min(posts, key=lambda post: (load[post], new[post].get(key, 0), post)), 1)
    while max(load) - min(load) > 1:
        full, empty = load.index(max(load)), load.index(min(load))
        key = max(
            (key for key, slots in new[full].items() if slots), key=lambda key: (idle[full].get(key, 0) > 0, new[full][key] - new[empty].get(key, 0))
        )
        move(key, full, -1)
        move(key, empty, 1)
    while (found := _uneven(new, wanted)) is not None:
        key, full, empty = found
        if load[full] <= load[empty]:  # it has more of something else, for the loads differ by one at most: that goes the other way
            other = max(new[empty], key=lambda other: new[empty][other] - new[full].get(other, 0))
            move(other, empty, -1)
            move(other, full, 1)
        move(key, full, -1)
        move(key, empty, 1)
    return new


def _uneven(shares: Sequence[Mapping[K, int]], keys: Iterable[K]) -> tuple[K, int, int] | None:
    """A key of which one post has two more than another, with the two."""
    for key in keys:
        numbers = [share.get(key, 0) for share in shares]
        if max(numbers) - min(numbers) > 1:
            return key, numbers.index(max(numbers)), numbers.index(min(numbers))
    return None
