"""Sweep and retention: what receives would do anyway, and the end of history. Both in pieces, neither ever needed for correctness."""

from array import array

import apsw

from beltline.core.outcome import Ended
from beltline.engines.sqlite import flow
from beltline.engines.sqlite.endings import end
from beltline.engines.sqlite.facts import current, select
from beltline.engines.sqlite.ledger import Ledger
from beltline.engines.sqlite.receiving import EXPIRED, PAGE, due, over

REMEMBERED_MS = 24 * 3600 * 1000  # how long an id is known after the end of its message, whatever retention drops
FORGOTTEN = 5  # state of a row that is only the memory of its id


def sweep(tx: Ledger) -> int:
    changed = 0
    for queue in list(tx.by_number.values()):
        if queue.paused or (tx.tally(queue.n).flow and tx.flow.shape(queue.n).shut_until > tx.now):
            continue
        changed += due(tx, queue)
        for fact in select(tx, EXPIRED, (queue.n, tx.now, PAGE)):
            if current(tx, fact):
                end(tx, fact, Ended.EXPIRED, "")
                changed += 1
        tally = tx.tally(queue.n)
        before = tally.leased
        if before:
            over(tx, queue, 10 * PAGE)
            changed += before - tally.leased
    return changed


def retain(tx: Ledger, history_ms: int, limit: int) -> int:
    """Returns how many messages, runs, results and keys were dropped, at most `limit` of each."""
    old = tx.now - history_ms
    # No place is ever given twice, not even that of the newest message when it is dropped.
    tx.sql("UPDATE meta SET value = ? WHERE key = 'next_seq'", (tx.next_seq,))
    done = tx.sql("SELECT seq, due FROM message INDEXED BY message_done WHERE state = 3 AND due < ? ORDER BY due LIMIT ?", (old, limit)).fetchall()
    if done:
        places = apsw.carray(array("q", [seq for seq, _ in done]))
        for table, column in (("attempt", "seq"), ("progress", "seq"), ("asked", "seq"), ("same", "seq")):
            tx.sql(f"DELETE FROM {table} WHERE {column} IN (SELECT value FROM carray(?))", (places,))
        tx.sql("DELETE FROM bulk WHERE n IN (SELECT value * 2 FROM carray(?1) UNION ALL SELECT value * 2 + 1 FROM carray(?1))", (places,))
        remembered = tx.now - REMEMBERED_MS
        gone = [seq for seq, ended in done if ended <= remembered]
        kept = [seq for seq, ended in done if ended > remembered]
        if gone:
            tx.sql("DELETE FROM message WHERE seq IN (SELECT value FROM carray(?))", (apsw.carray(array("q", gone)),))
        if kept:
            tx.sql(
                f"UPDATE message SET state = {FORGOTTEN}, run = NULL, group_key = NULL, lane = NULL, result = NULL, why = NULL, error = NULL, head = NULL, body = NULL"
                " WHERE seq IN (SELECT value FROM carray(?))",
                (apsw.carray(array("q", kept)),),
            )
    tx.sql(
        f"DELETE FROM message WHERE seq IN (SELECT seq FROM message INDEXED BY message_forgotten WHERE state = {FORGOTTEN} AND due <= ? LIMIT ?)",
        (tx.now - REMEMBERED_MS, limit),
    )
    flow.retain(tx, limit)
    return len(done) + _runs(tx, old, limit) + _results(tx, limit) + _keys(tx, limit)


def _runs(tx: Ledger, old: int, limit: int) -> int:
    rows = tx.sql(
        "SELECT n, chain, state FROM run INDEXED BY run_ended WHERE ended > 0 AND ended < ? AND open = 0 AND dead = 0 ORDER BY ended LIMIT ?",
        (old, limit),
    ).fetchall()
    for n, chain, state in rows:
        tx.sql("DELETE FROM gather_part WHERE gather IN (SELECT n FROM gather WHERE run = ?)", (n,))
        tx.sql("DELETE FROM gather WHERE run = ?", (n,))
        tx.sql("UPDATE message SET run = NULL WHERE run = ?", (n,))  # done ones whose own time has not come
        tx.sql("DELETE FROM run WHERE n = ?", (n,))
        tx.sql("UPDATE run_tally SET count = count - 1 WHERE chain = ? AND state = ?", (chain, state))
    return len(rows)


def _results(tx: Ledger, limit: int) -> int:
    """Results whose time is over. That there was one stays known by result_until."""
    sql = tx.sql
    count = 0
    rows = sql("SELECT n FROM bulk INDEXED BY bulk_until WHERE until IS NOT NULL AND until <= ? LIMIT ?", (tx.now, limit)).fetchall()
    if rows:
        sql("DELETE FROM bulk WHERE n IN (SELECT value FROM carray(?))", (apsw.carray(array("q", [n for (n,) in rows])),))
        count += len(rows)
    runs = sql("SELECT n FROM run WHERE result IS NOT NULL AND result_until <= ? LIMIT ?", (tx.now, limit)).fetchall()
    if runs:
        sql("UPDATE run SET result = NULL WHERE n IN (SELECT value FROM carray(?))", (apsw.carray(array("q", [n for (n,) in runs])),))
        count += len(runs)
    return count


def _keys(tx: Ledger, limit: int) -> int:
    tx.sql("DELETE FROM dedup WHERE (queue, key) IN (SELECT queue, key FROM dedup INDEXED BY dedup_until WHERE until <= ? LIMIT ?)", (tx.now, limit))
    return tx.db.changes()
