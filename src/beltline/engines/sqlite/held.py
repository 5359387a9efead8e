"""How many ready messages no further slot would let start. The rule is that of engines/protocol.py, `held`.

What stands behind closed lanes is counted anyway. Messages behind their group's head are walked along an index, COUNTED of them at most: where there are more,
those in front are, which then is the smaller number or above COUNTED too. So a look never takes longer than that, however many there are.
"""

from math import inf

from beltline.core.queues import COUNTED, held_back
from beltline.engines.sqlite import flow
from beltline.engines.sqlite.ledger import Ledger, Queue
from beltline.engines.sqlite.limits import LIVE

_PLAIN = "SELECT count(*) FROM (SELECT 1 FROM message INDEXED BY message_ready WHERE queue = ? AND blocked = {blocked} AND state = 1 AND lane IS NULL LIMIT {most})"
BEHIND = _PLAIN.format(blocked=1, most=COUNTED + 1)
FRONT = _PLAIN.format(blocked=0, most=COUNTED)
BEHIND_IN_LANES = f"""SELECT count(*), count(*) FILTER (WHERE l.closed_by IS NULL) FROM (
  SELECT lane FROM message INDEXED BY message_in_lanes WHERE queue = ? AND blocked = 1 AND state = 1 AND lane IS NOT NULL LIMIT {COUNTED + 1}) few
  CROSS JOIN lane l ON l.n = few.lane"""
FRONT_IN_LANES = f"""SELECT count(*) FROM (SELECT 1 FROM lane l CROSS JOIN message m INDEXED BY message_in_lane
  ON m.lane = l.n AND m.lane IS NOT NULL AND m.state = 1 AND m.blocked = 0 WHERE l.queue = ? AND l.closed_by IS NULL AND l.head_seq IS NOT NULL LIMIT {COUNTED})"""
DUE_BEHIND = """SELECT count(*) FROM message m INDEXED BY message_delayed LEFT JOIN lane l ON l.n = m.lane
  WHERE m.queue = ? AND m.state = 0 AND m.due <= ? AND m.blocked = 1 AND l.closed_by IS NULL"""


def held(tx: Ledger, queue: Queue, *, ready: int, due: int, over: int, shaped: bool) -> int:
    """Counts.held. `ready`: with `due` delayed messages whose time has come and `over` leases that are over. `shaped`: the queue has a row in `flow`."""
    if not ready:
        return 0
    shape = tx.flow.shape(queue.n) if shaped else None
    shut = queue.paused or (shape is not None and shape.shut_until > tx.now)
    room = inf
    if not shut and queue.limited:
        room = tx.flow.limits.room(queue.spec.limits, tx.now)[0]
    if not shut and shape is not None and shape.switch.trying:
        room = min(room, shape.switch.room(queue.spec.kill_switch, tx.sql(LIVE, (queue.n, tx.now)).get[0]))
    free = 0 if shut or room < 1 else _free(tx, queue.n, ready, due, over, in_lanes=shape is not None and shape.shaped)
    return held_back(ready, free, room, shut=shut)


def _free(tx: Ledger, queue: int, ready: int, due: int, over: int, *, in_lanes: bool) -> int:
    """Those that neither their group nor a closed lane holds."""
    behind: int = tx.sql(BEHIND, (queue,)).get
    walked, behind_open = tx.sql(BEHIND_IN_LANES, (queue,)).get if in_lanes else (0, 0)
    due_behind: int = tx.sql(DUE_BEHIND, (queue, tx.now)).get if due else 0
    due_closed = flow.due_behind_closed(tx, queue) if in_lanes else 0
    if max(behind, walked) <= COUNTED:
        closed = int(tx.flow.shape(queue).held) + due_closed
        return ready - closed - behind - int(behind_open) - due_behind
    front: int = tx.sql(FRONT, (queue,)).get + (tx.sql(FRONT_IN_LANES, (queue,)).get if in_lanes else 0)
    return front + due - due_closed - due_behind + over
