"""The verb `send`, and what is looked at before a batch may enter."""

from collections.abc import Sequence

from beltline.core.message import Gather, Message
from beltline.core.outcome import Sent
from beltline.engines.sqlite.endings import hand_on
from beltline.engines.sqlite.ledger import Ledger
from beltline.engines.sqlite.storing import check, store


def send(tx: Ledger, messages: Sequence[Message], gathers: Sequence[Gather]) -> list[Sent]:
    """All or none. Raises QueueNotDeclared, QueueFull, ValueInvalid."""
    if gathers:
        check(tx, (), gathers)
    answers = store(tx, messages, bounded=True)
    if gathers:
        hand_on(tx, (), gathers)
    return answers
