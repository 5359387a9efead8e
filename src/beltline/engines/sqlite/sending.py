"""The verb `send`, what is looked at before a batch may enter, and what the newest of a unique key replaces in the one that stands for it."""

import math
from collections.abc import Sequence

from msgspec import structs

from beltline.core.lifecycle import State
from beltline.core.message import Gather, Message
from beltline.core.names import MessageId, QueueName, TaskName
from beltline.core.outcome import Admission, Sent
from beltline.core.policy import PARKED
from beltline.engines.rows import PLAIN, encode_head, fields, message
from beltline.engines.sqlite.endings import hand_on, moved, note
from beltline.engines.sqlite.facts import Fact, by_id
from beltline.engines.sqlite.ledger import Ledger
from beltline.engines.sqlite.schema import INLINE_BYTES
from beltline.engines.sqlite.storing import check, due_ms, rank_ms, store
from beltline.engines.sqlite.times import ceil_ms
from beltline.engines.sqlite.unique import unique_of


def send(tx: Ledger, messages: Sequence[Message], gathers: Sequence[Gather]) -> list[Sent]:
    """All or none. Raises QueueNotDeclared, QueueFull, ValueInvalid."""
    if gathers:
        check(tx, (), gathers)
    answers = store(tx, messages, bounded=True)
    if gathers:
        hand_on(tx, (), gathers)
    for newest, sent in zip(messages, answers, strict=True):
        if sent.admission is Admission.REPLACED:
            _replace(tx, sent.id, newest)
    return answers


def _replace(tx: Ledger, id: MessageId, newest: Message) -> None:
    """The newest wins: another message with its unique key was sent before this one began."""
    unique = unique_of(newest)
    fact = by_id(tx, [id])[id]
    assert unique is not None
    queue = tx.by_number[fact.queue]
    note(tx, fact, "replaced", text=f"by {newest.id}")
    _take_over(tx, fact, newest)
    if fact.state != State.DELAYED or fact.due <= tx.now:  # a delayed one that is due is ready, though no receive has said so yet
        return
    due = due_ms(newest, tx.now)
    sent = tx.sql("SELECT sent FROM message WHERE seq = ?", (fact.seq,)).get
    ready = max(tx.now, due if unique.most_s == math.inf else min(due, sent + ceil_ms(unique.most_s)))
    if ready <= tx.now:
        moved(tx, fact, State.READY)
        tx.tally(queue.n).parked += fact.why == PARKED  # it stays so
    tx.sql(
        "UPDATE message SET state = ?1, due = ?2, since = ?2, rank = ?3 WHERE seq = ?4",
        (int(fact.state), ready, rank_ms(queue, ready, fact.priority), fact.seq),
    )
    if fact.lane is not None:
        tx.flow.touch(tx.flow.lane(fact.lane))
    tx.woken.add(queue.n)


def _take_over(tx: Ledger, fact: Fact, newest: Message) -> None:
    old = message(fact.id, QueueName(""), TaskName(""), fact.head, b"")
    head = fields(structs.replace(old, headers=newest.headers, timeout_s=newest.timeout_s, retry=newest.retry))[4:]
    inline = newest.body if len(newest.body) <= INLINE_BYTES else None
    tx.sql("UPDATE message SET head = ?, body = ? WHERE seq = ?", (None if head == PLAIN else encode_head(head), inline, fact.seq))
    tx.sql("DELETE FROM bulk WHERE n = ?", (fact.seq * 2,))
    if inline is None:
        tx.sql("INSERT INTO bulk(n, data) VALUES(?, ?)", (fact.seq * 2, newest.body))
