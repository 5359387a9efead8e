"""A send and a settle as one call each: the arguments, and what the answer means. Used on connections of the engine and on guests alike."""

from collections.abc import Sequence
from typing import Any

from beltline.core.errors import QueueFull
from beltline.core.message import Gather, Message
from beltline.core.names import MessageId
from beltline.core.outcome import Ack, Admission, Sent, Settled, Settlement
from beltline.engines.moving import read_seal, refusal
from beltline.engines.postgres import wire

Row = tuple[Any, ...]

SEND = f"SELECT * FROM beltline.send({', '.join(['%s'] * 35)})"
SETTLE = f"SELECT * FROM beltline.settle({', '.join(['%s'] * 54)})"
NOT_DECLARED, FULL = 10, 11
_ADMISSIONS = {1: Admission.SAME_ID, 2: Admission.DEDUPLICATED, 3: Admission.REPLACED}


class Parcel:
    """One send: the arguments behind p_guest, and what the answer means. Repeated ids in a batch go once."""

    def __init__(self, messages: Sequence[Message], gathers: Sequence[Gather]) -> None:
        self._messages = messages
        first: dict[str, Message] = {}
        for message in messages:
            first.setdefault(message.id, message)
        once = self._once = list(first.values())
        follow = wire.templates(gathers)
        queues, tasks, chains, columns = wire.sent([*once, *follow]) if once or follow else ("{}", "{}", "{}", wire.NOTHING_SENT)
        self.arguments: tuple[Any, ...] = (queues, tasks, chains, len(follow), *columns, *wire.opened(gathers, len(once) + 1))
        self.arguments += (wire.flows([*once, *follow]),)
        self.queues = list({message.queue for message in messages})

    def refused(self, rows: Sequence[Row]) -> bool:
        """A queue of it (rows[0][3]) is not declared: nothing was written."""
        return bool(rows) and rows[0][0] == NOT_DECLARED

    def read(self, rows: Sequence[Row]) -> list[Sent]:
        """Raises QueueFull, EngineMoved."""
        other: dict[str, Sent] = {}
        for code, ord_, id, text, number in rows:
            if code == FULL:
                raise QueueFull(queue=text, bound=int(number))
            if code == 12:
                raise refusal(read_seal(text or None), "this database")
            other[self._once[ord_ - 1].id] = Sent(MessageId(id if isinstance(id, str) else id.hex), _ADMISSIONS[code])
        if not other and len(self._once) == len(self._messages):
            return [Sent(message.id) for message in self._messages]
        answers: list[Sent] = []
        seen: set[str] = set()
        for message in self._messages:
            again = message.id in seen and message.id not in other
            answers.append(Sent(message.id, Admission.SAME_ID) if again else other.get(message.id, Sent(message.id)))
            seen.add(message.id)
        return answers


class Batch:
    """One settle: of two receipts of one message only the first can have an effect, so only it goes."""

    def __init__(self, settlements: Sequence[Settlement]) -> None:
        first: dict[tuple[str, int], int] = {}
        for place, settlement in enumerate(settlements):
            first.setdefault((settlement.receipt.id, settlement.receipt.epoch), place)
        self._size = len(settlements)
        self._places = list(first.values())
        chosen = [settlements[place] for place in self._places]
        self.arguments = wire.Ends(chosen).arguments
        self.stirred = any(type(settlement.outcome) is not Ack for settlement in chosen)

    def refused(self, rows: Sequence[Row]) -> bool:
        """A hand-off names a queue (rows[0][2]) that is not declared: nothing was written."""
        return rows[0][2] is not None

    def read(self, rows: Sequence[Row]) -> list[Settled]:
        [[done, woken, _]] = rows
        if woken:
            self.stirred = True
        answers = [Settled.LEASE_LOST] * self._size
        for place in done:
            answers[self._places[place - 1]] = Settled.DONE
        return answers
