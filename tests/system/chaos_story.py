"""Histories written by hand, act by act, and how to break one."""

from collections.abc import Callable
from typing import Any

from msgspec import structs

from tests.system.history import Asking, Attempt, Bound, Fault, HandOut, History, RunEnd, Sending, Settling, Shut, Start, Stored

EPOCH_S = 1_000_000.0  # the engine's clock when the monotonic one says 0
LEASE_S = 30.0
BY = {100: "supervisor-0", 101: "supervisor-1", 102: "supervisor-0"}  # 102 took the place of 100


class Story:
    """Writes a history act by act; every act takes a second."""

    def __init__(self, shape: dict[str, int], items: int) -> None:
        self.history = History(shape=shape, values={number: number * 10 for number in range(items)})
        self.t = 0.0

    def tick(self, seconds: float = 1.0) -> float:
        self.t += seconds
        return self.t

    def send(self, phase: str, *numbers: int) -> None:
        t = self.tick()
        self.history.sendings.append(Sending(t=t, wall=EPOCH_S + t, phase=phase, numbers=numbers))

    def message(self, number: int, stage: str, *, part: str = "", group: str = "", claims: tuple[tuple[str, str, float], ...] = ()) -> str:
        id = f"{number}.{stage}{part}"
        self.history.messages.append(
            Stored(
                id=id,
                run=f"run-{number}",
                stage=stage,
                number=number,
                queue=stage,
                state="ready",
                outcome="",
                epoch=0,
                sent_at=EPOCH_S + self.t,
                group=group,
                claims=claims,
            )
        )
        return id

    def single(self, id: str, *, queue: str = "single", group: str = "") -> str:
        """Stored now."""
        self.history.singles.append(
            Stored(id=id, run="", stage="", number=-1, queue=queue, state="ready", outcome="", epoch=0, sent_at=EPOCH_S + self.t, group=group)
        )
        return id

    def ask(self, number: int, rule: str, key: str, answer: str = "") -> str:
        """Another message, or None, stands for it."""
        id = f"{rule}.{number}"
        asked_t = self.tick()
        self.history.askings.append(Asking(asked_t=asked_t, t=self.tick(), number=number, rule=rule, key=key, id=id, answer=answer or id))
        return id if answer else self.single(id, group=key if rule == "newest" else "")

    def bound(self, name: str, **numbers: float) -> None:
        asked_t = self.tick()
        self.history.bounds.append(Bound(name=name, asked_t=asked_t, t=self.tick(), **numbers))

    def shut(self, queue: str, seconds: float, tries: int = 0) -> None:
        t = self.tick()
        self.history.shuts.append(Shut(t=t, queue=queue, until=EPOCH_S + t + seconds, tries=tries))

    def change(self, id: str, **changes: Any) -> Stored:
        messages, place = next(
            (among, place) for among in (self.history.messages, self.history.singles) for place, each in enumerate(among) if each.id == id
        )
        messages[place] = structs.replace(messages[place], **changes)
        return messages[place]

    def receive(self, id: str, pid: int = 101) -> int:
        t = self.tick()
        epoch = self.change(id).epoch + 1
        self.change(id, state="leased", epoch=epoch)
        at = EPOCH_S + t
        self.history.hand_outs.append(
            HandOut(t=t, pid=pid, by=BY[pid], message=id, epoch=epoch, at=at, lease_until=at + LEASE_S, at_t=t, until_t=t + LEASE_S)
        )
        return epoch

    def start(self, id: str, epoch: int, pid: int = 200, said: int = -1) -> None:
        t = self.tick()
        self.history.starts.append(Start(t=t, pid=pid, message=id, epoch=epoch, said=said, end_t=t + 0.5))

    def settle(self, id: str, epoch: int, outcome: str, answer: str = "done", pid: int = 101) -> None:
        self.history.settlings.append(Settling(asked_t=self.tick(), pid=pid, by=BY[pid], message=id, epoch=epoch, outcome=outcome, answer=answer))

    def ended(self, id: str, epoch: int, outcome: str) -> None:
        self.change(id, state="ready", attempts=(*self.change(id).attempts, Attempt(epoch=epoch, outcome=outcome, ended_at=EPOCH_S + self.t)))

    def again(self, id: str, epoch: int, outcome: str, pid: int = 101) -> None:
        """Settled, but not for good."""
        self.settle(id, epoch, outcome, pid=pid)
        self.ended(id, epoch, outcome)

    def expire(self, id: str, epoch: int) -> None:
        self.tick(LEASE_S + 5)
        self.ended(id, epoch, "lost")

    def ack(self, id: str, epoch: int, pid: int = 101, answer: str = "done") -> None:
        self.settle(id, epoch, "ack", answer, pid)
        self.change(id, state="done", outcome="succeeded", ended_at=EPOCH_S + self.t)

    def pass_through(self, id: str, pid: int = 101) -> int:
        epoch = self.receive(id, pid)
        self.start(id, epoch)
        self.ack(id, epoch, pid)
        return epoch

    def finish(self, number: int, epoch: int) -> None:
        self.history.runs.append(RunEnd(id=f"run-{number}", number=number, state="done", result=(number * 10, epoch)))

    def fault(self, kind: str, *pids: int) -> None:
        self.history.faults.append(Fault(t=self.tick(), kind=kind, pids=pids))

    def end(self) -> History:
        self.history.counted = {"done": len(self.history.messages) + len(self.history.singles)}
        return self.history


Edit = Callable[[History], None]


def change(acts: list[Any], changes: dict[str, Any], **where: Any) -> None:
    """Alter the one act that is described."""
    [place] = [place for place, act in enumerate(acts) if all(getattr(act, name) == value for name, value in where.items())]
    acts[place] = structs.replace(acts[place], **changes)


def drop(acts: list[Any], **where: Any) -> None:
    kept = [act for act in acts if not all(getattr(act, name) == value for name, value in where.items())]
    assert len(kept) < len(acts)
    acts[:] = kept


def only(acts: list[Any], **where: Any) -> Any:
    [found] = [act for act in acts if all(getattr(act, name) == value for name, value in where.items())]
    return found
