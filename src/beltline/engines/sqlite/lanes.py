"""FIFO groups: of all messages of a group that are not done, one stands in the queue, the others are *blocked* behind it.

The one that stands there is the leased one, else the head: the first sent. A dead head holds its group, unless the queue says `on_dead="skip"`. Whoever
ends, buries, redrives or drops a message of a group calls `reorder` afterwards; a send asks `held` once. Each look is one search in an index, however
long the group is.
"""

from beltline.engines.sqlite.ledger import Ledger, Queue

# Conditions in the words of the partial indexes, else SQLite does not use them.
_LIVE = "message INDEXED BY message_lane WHERE queue = ?1 AND group_key = ?2 AND group_key IS NOT NULL AND state <= 2"
_DEAD = "message INDEXED BY message_lane_dead WHERE queue = ?1 AND group_key = ?2 AND group_key IS NOT NULL AND state = 4"
STANDING = f"SELECT seq, state FROM {_LIVE} AND blocked = 0"
BEHIND = f"SELECT seq FROM {_LIVE} AND blocked = 1 ORDER BY seq LIMIT 1"
FIRST_DEAD = f"SELECT seq FROM {_DEAD} ORDER BY seq LIMIT 1"


def held(tx: Ledger, queue: Queue, group: str) -> bool:
    """Whether a new message of the group has one before it."""
    if tx.sql(f"SELECT EXISTS(SELECT 1 FROM {_LIVE})", (queue.n, group)).get:
        return True
    return not queue.skip_dead and tx.sql(f"SELECT EXISTS(SELECT 1 FROM {_DEAD})", (queue.n, group)).get == 1


def reorder(tx: Ledger, queue: Queue, group: str) -> None:
    """Let exactly the right message of the group stand in the queue."""
    key = (queue.n, group)
    standing = tx.sql(STANDING, key).fetchall()
    if any(state == 2 for _, state in standing):
        head = None  # the leased one stands for the group until it ends
    else:
        head = min((seq for seq, _ in standing), default=None)
        behind = tx.sql(BEHIND, key).get
        if behind is not None and (head is None or behind < head):
            head = behind
        dead = None if queue.skip_dead else tx.sql(FIRST_DEAD, key).get
        if dead is not None and (head is None or dead < head):
            head = None
    for seq, state in standing:
        if seq != head and state != 2:
            tx.flow.touch_number(tx.sql("UPDATE message SET blocked = 1 WHERE seq = ? RETURNING lane", (seq,)).get)
    if head is not None:
        tx.flow.touch_number(tx.sql("UPDATE message SET blocked = 0 WHERE seq = ? AND blocked = 1 RETURNING lane", (head,)).get)
        tx.woken.add(queue.n)
