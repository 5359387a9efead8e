"""Operations that have found nothing yet and have time left, by what they wait for.

A key is "q" + a queue's name or "i" + the id of a message or run. Those who wait for one queue stand in line, oldest first: when the first of them finds
nothing, nothing is there for the others.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator

from beltline.engines.sqlite.operations import Operation


class Waiting:
    def __init__(self) -> None:
        self._by_key: dict[str, dict[Operation, None]] = {}
        self._all: dict[Operation, None] = {}
        self._deadlines: list[tuple[float, int, Operation]] = []
        self._order = itertools.count()

    def __bool__(self) -> bool:
        return bool(self._all)

    def __contains__(self, operation: Operation) -> bool:
        return operation in self._all

    @property
    def queues(self) -> Iterator[tuple[str, Operation]]:
        """Each queue somebody waits for, with the first who does."""
        return ((key[1:], next(iter(line))) for key, line in self._by_key.items() if key[0] == "q")

    @property
    def results(self) -> bool:
        """Whether anybody waits for an end."""
        return any(key[0] == "i" for key in self._by_key)

    @property
    def deadline(self) -> float | None:
        return self._deadlines[0][0] if self._deadlines else None

    def keep(self, operation: Operation) -> None:
        if operation in self._all or operation.wait is None:
            return
        self._all[operation] = None
        for key in operation.wait.keys:
            self._by_key.setdefault(key, {})[operation] = None
        heapq.heappush(self._deadlines, (operation.wait.deadline, next(self._order), operation))

    def release(self, operation: Operation) -> None:
        if operation not in self._all or operation.wait is None:
            return
        del self._all[operation]
        for key in operation.wait.keys:
            line = self._by_key[key]
            del line[operation]
            if not line:
                del self._by_key[key]

    def line(self, key: str) -> list[Operation]:
        return list(self._by_key.get(key, ()))

    def known(self, keys: Iterable[str]) -> set[str]:
        return {key for key in keys if key in self._by_key}

    def looks(self, keeps: Callable[[str], bool]) -> list[Operation]:
        """Who has to look after anything may have changed: the first in each line for a queue (all, if it `keeps` keys for them), and all who wait for an end."""
        found: dict[Operation, None] = {}
        for operation in list(self._all):
            if operation.given_up:
                self.release(operation)
        for key, line in self._by_key.items():
            found.update(dict.fromkeys(line) if key[0] == "i" or keeps(key[1:]) else {next(iter(line)): None})
        return list(found)

    def overdue(self, now: float) -> list[Operation]:
        """Take out those whose time is over."""
        found = []
        while self._deadlines and self._deadlines[0][0] <= now:
            operation = heapq.heappop(self._deadlines)[2]
            if operation in self._all:
                if operation.given_up:
                    self.release(operation)
                else:
                    found.append(operation)
        return found

    def of(self, owner: object) -> list[Operation]:
        return [operation for operation in self._all if operation.owner is owner]
