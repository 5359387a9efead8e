"""The laws of `schedules` in engines/protocol.py, executable: one verb = one step, `now` is given."""

from collections.abc import Callable, Sequence

from beltline.core.errors import NotFound, QueueFull, QueueNotDeclared
from beltline.core.message import Message
from beltline.core.schedule import Schedule, Step, Stepped
from beltline.core.views import DueSchedules
from beltline.engines import schedules as rules
from beltline.engines.schedules import Row


class ScheduleBook:
    """`send` stores messages, all or none, at the same `now`."""

    def __init__(self, send: Callable[[Sequence[Message], float], object]) -> None:
        self._send = send
        self.rows: dict[str, Row] = {}

    def row(self, name: str) -> Row:
        try:
            return self.rows[name]
        except KeyError:
            raise NotFound(kind="schedule", name=name) from None

    def put(self, specs: Sequence[Schedule], origin: str, owner: str, replace: bool, now: float) -> list[bool]:
        answers, after = rules.put_all(self.rows, specs, origin=origin, owner=owner, replace=replace, now=rules.ms(now))
        self.rows |= after
        return answers

    def pause(self, name: str, paused: bool, now: float) -> Row:
        row = self.rows[name] = rules.pause(self.row(name), paused, rules.ms(now))
        return row

    def remove(self, name: str) -> None:
        self.row(name)
        del self.rows[name]

    def due(self, limit: int, now: float) -> DueSchedules:
        at = rules.ms(now)
        waiting = sorted((row.next, name) for name, row in self.rows.items() if row.active and row.next is not None)
        come = [self.rows[name] for look_at, name in waiting if look_at <= at]
        return rules.due(at, come[:limit], next((look_at for look_at, _ in waiting if look_at > at), None))

    def step(self, step: Step, now: float) -> Stepped:
        row, at = self.rows.get(step.name), rules.ms(now)
        answer = rules.answer(row, step, at)
        if row is None or answer is not Stepped.DONE:
            return answer
        try:
            self._send(step.messages, now)
        except QueueFull:
            return Stepped.QUEUE_FULL
        except QueueNotDeclared:
            return Stepped.NOT_DECLARED
        self.rows[step.name] = rules.after(row, step, at)
        return Stepped.DONE
