"""The size of every queue's fleet and the log of decisions, in memory."""

from collections import deque
from itertools import islice

from msgspec import structs

from beltline.core.names import QueueName
from beltline.core.scaling import LOGGED, Decision, Size


class FleetBook:
    def __init__(self) -> None:
        self._sizes: dict[QueueName, Size] = {}
        self._log: deque[Decision] = deque()  # oldest first

    def sizes(self) -> list[Size]:
        return [self._sizes[name] for name in sorted(self._sizes)]

    def put(self, queue: QueueName, turn: int, slots: int, state: bytes, log: Decision | None, now: float) -> bool:
        stands = self._sizes.get(queue) or Size(queue=queue)
        if stands.turn != turn:
            return False
        self._sizes[queue] = structs.replace(stands, turn=turn + 1, slots=slots, decided_at=now, state=state)
        if log is not None:
            self._log.append(log)
            mine = [index for index, each in enumerate(self._log) if each.queue == queue]
            if len(mine) > LOGGED:
                del self._log[mine[0]]
        return True

    def order(self, queue: QueueName, least: int, most: int) -> None:
        stands = self._sizes.get(queue) or Size(queue=queue)
        self._sizes[queue] = structs.replace(stands, ordered=(least, most), decided_at=0.0)

    def release(self, queue: QueueName) -> None:
        if queue in self._sizes:
            self._sizes[queue] = structs.replace(self._sizes[queue], ordered=None, decided_at=0.0)

    def log(self, queue: str, limit: int) -> list[Decision]:
        return list(islice((each for each in reversed(self._log) if queue in ("", each.queue)), limit))
