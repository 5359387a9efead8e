"""Which worker of a fleet has how many of its slots. Pure, so that all of them work it out alike."""

import math
from collections.abc import Mapping
from hashlib import blake2b

from beltline.core.names import QueueName, WorkerId


def shares(queue: QueueName, slots: int, offers: Mapping[WorkerId, tuple[int, int]]) -> dict[WorkerId, int]:
    """What each worker has of a fleet's slots, the same whoever works it out. Their sum is `slots`, as far as the offers (least, most) allow.

    Everybody has his least; the rest goes in proportion to what each may have more, by largest remainder, equal ones by rendezvous of queue and worker.
    """
    given = {worker: least for worker, (least, _) in offers.items()}
    room = {worker: most - least for worker, (least, most) in offers.items()}
    rest = max(0, min(slots - sum(given.values()), sum(room.values())))
    total = sum(room.values())
    if rest == 0:
        return given
    for worker, each in room.items():
        given[worker] += rest * each // total
    left = rest - sum(rest * each // total for each in room.values())
    for worker in sorted(room, key=lambda worker: (-(rest * room[worker] % total), _rendezvous(queue, worker)))[:left]:
        given[worker] += 1
    return given


def _rendezvous(queue: str, worker: str) -> bytes:
    return blake2b(f"{queue}\x00{worker}".encode(), digest_size=8).digest()


def workers_for(slots: int, slots_each: int) -> int:
    """How many workers of `slots_each` hold so many slots."""
    return math.ceil(slots / max(1, slots_each))
