"""Every statement of the hot paths finds its rows in the index meant for it: no scan, no sort, whatever stands in the file."""

import re
from pathlib import Path

import apsw
import pytest

from beltline.core.capabilities import Durability
from beltline.core.queues import QueueSpec
from beltline.engines.sqlite import (
    browsing,
    control,
    endings,
    facts,
    held,
    lanes,
    limits,
    picking,
    place,
    receiving,
    schedules,
    schema,
    settling,
    shaping,
    storing,
    unique,
    writer,
)
from beltline.engines.sqlite.ledger import Ledger

FACTS = f"SELECT {facts.COLUMNS} FROM message"

# statement -> what its plan must name
HOT = {
    "take": (receiving.TAKE, ["SEARCH message USING INDEX message_ready (queue=? AND blocked=?)"]),
    "due": (receiving.DUE, ["SEARCH message USING INDEX message_delayed (queue=? AND due<?)"]),
    "over": (f"{FACTS} {receiving.OVER}", ["SEARCH message USING INDEX message_leased (queue=? AND due<?)"]),
    "expired": (f"{FACTS} {receiving.EXPIRED}", ["SEARCH message USING INDEX message_expires (queue=? AND expires>? AND expires<?)"]),
    "lease": (receiving.LEASE, ["SEARCH message USING INTEGER PRIMARY KEY (rowid=?)"]),
    "lease more": (receiving.LEASE_MORE, ["SEARCH message USING INTEGER PRIMARY KEY (rowid=?)"]),
    "again": (receiving.AGAIN, ["SEARCH message USING INTEGER PRIMARY KEY (rowid=?)"]),
    "ack": (settling.ACK, ["SEARCH message USING INTEGER PRIMARY KEY (rowid=?)"]),
    "ack each": (settling.ACK_EACH, ["SEARCH message USING INTEGER PRIMARY KEY (rowid=?)"]),
    "ack packed": (settling.ACK_PACKED, ["SEARCH message USING INTEGER PRIMARY KEY (rowid=?)"]),
    "renew": (settling.RENEW, ["SEARCH message USING INTEGER PRIMARY KEY (rowid=?)"]),
    "known ids": (storing.KNOWN, ["SEARCH message USING COVERING INDEX sqlite_autoindex_message_1 (id=?)"]),
    "by id": (facts.BY_ID, ["SEARCH message USING INDEX sqlite_autoindex_message_1 (id=?)"]),
    "lane, standing": (lanes.STANDING, ["SEARCH message USING INDEX message_lane (queue=? AND group_key=? AND blocked=?)"]),
    "lane, behind": (lanes.BEHIND, ["SEARCH message USING INDEX message_lane (queue=? AND group_key=? AND blocked=?)"]),
    "lane, dead": (lanes.FIRST_DEAD, ["SEARCH message USING COVERING INDEX message_lane_dead (queue=? AND group_key=?)"]),
    "next due": (
        writer.NEXT_DUE,
        ["SEARCH message USING COVERING INDEX message_delayed (queue=?)", "SEARCH message USING COVERING INDEX message_leased (queue=?)"],
    ),
    "count due": (browsing.DUE, ["SEARCH message USING COVERING INDEX message_delayed (queue=? AND due<?)"]),
    "count over": (browsing.OVER, ["SEARCH message USING COVERING INDEX message_leased (queue=? AND due<?)"]),
    "next share": (picking.SHARES, ["SEARCH share USING INDEX share_next (queue=? AND owner=?)"]),
    "next lane": (picking.LANES, ["SEARCH lane USING INDEX lane_next (share=?"]),
    "in a lane": (picking.IN_LANE, ["SEARCH message USING INDEX message_in_lane (lane=? AND blocked=?)"]),
    "in no lane": (picking.PLAIN, ["SEARCH message USING INDEX message_ready (queue=? AND blocked=?)"]),
    "lanes to open": (picking.REOPEN, ["SEARCH lane USING COVERING INDEX lane_due (queue=? AND closed_until>? AND closed_until<?)"]),
    "next lane to open": (picking.OPENS, ["SEARCH lane USING COVERING INDEX lane_due (queue=? AND closed_until>?)"]),
    "lanes of keepers": (picking.STICKY, ["SEARCH lane USING INDEX lane_sticky (queue=?)"]),
    "noisy shares": (picking.NOISY, ["SEARCH share USING COVERING INDEX share_noisy (queue=?)"]),
    "head of a lane": (shaping.FIRST, ["SEARCH message USING COVERING INDEX message_in_lane (lane=? AND blocked=?)"]),
    "head of a share": (shaping.FIRST_LANE, ["SEARCH lane USING INDEX lane_next (share=?"]),
    "first of nobody": (shaping.FIRST_PLAIN, ["SEARCH message USING INDEX message_ready (queue=? AND blocked=?)"]),
    "lanes that wait for a place": (shaping.WAITING, ["SEARCH lane USING COVERING INDEX lane_closed (closed_by=? AND queue=?)"]),
    "lanes of a bucket": (shaping.BEHIND, ["SEARCH lane USING COVERING INDEX lane_closed (closed_by=?)"]),
    "holders": (limits.HOLDERS, ["SEARCH h USING COVERING INDEX hold_bucket (bucket=?)", "SEARCH m USING INTEGER PRIMARY KEY (rowid=?)"]),
    "buckets": (limits.FETCH, ["SEARCH bucket USING INDEX sqlite_autoindex_bucket_1 (name=? AND key=?)"]),
    "heads": (picking.HEADS, ["SEARCH message USING INTEGER PRIMARY KEY (rowid=?)"]),
    "leases that live": (limits.LIVE, ["SEARCH message USING COVERING INDEX message_leased (queue=? AND due>?)"]),
    "unique": (unique.FIND, ["SEARCH s USING PRIMARY KEY (queue=? AND key=?)", "SEARCH m USING INTEGER PRIMARY KEY (rowid=?)"]),
    "oldest in lanes": (browsing.OLDEST_IN_LANES, ["SEARCH message USING COVERING INDEX message_in_lanes (queue=? AND blocked=?)"]),
    "behind their heads": (held.BEHIND, ["SEARCH message USING INDEX message_ready (queue=? AND blocked=?)"]),
    "in front": (held.FRONT, ["SEARCH message USING INDEX message_ready (queue=? AND blocked=?)"]),
    "behind their heads, in lanes": (
        held.BEHIND_IN_LANES,
        ["SEARCH message USING COVERING INDEX message_in_lanes (queue=? AND blocked=?)", "SEARCH l USING INTEGER PRIMARY KEY (rowid=?)"],
    ),
    "in front, in lanes": (
        held.FRONT_IN_LANES,
        ["SEARCH l USING INDEX sqlite_autoindex_lane_1 (queue=?)", "SEARCH m USING COVERING INDEX message_in_lane (lane=? AND blocked=?)"],
    ),
    "due behind their heads": (held.DUE_BEHIND, ["SEARCH m USING INDEX message_delayed (queue=? AND due<?)"]),
    "give up": (f"{FACTS} {endings.OF_RUN}", ["SEARCH message USING INDEX message_run (run=?)"]),
    "purge ready": (f"{FACTS} {control.purge_of('message_ready', 1)}", ["SEARCH message USING INDEX message_ready (queue=?)"]),
    "schedules, due": (schedules.DUE, ["SEARCH schedule USING INDEX schedule_next (next>? AND next<?)"]),
    "schedules, next": (schedules.FOLLOWING, ["SEARCH schedule USING INDEX schedule_next (next>?)"]),
    "purge lanes": (f"{FACTS} {control.purge_of('message_in_lanes', 1)}", ["SEARCH message USING INDEX message_in_lanes (queue=?)"]),
    "purge dead": (f"{FACTS} {control.purge_of('message_dead', 4)}", ["SEARCH message USING INDEX message_dead (queue=?"]),
}


@pytest.fixture
def db(tmp_path: Path) -> apsw.Connection:
    path = tmp_path / "queue.db"
    place.create(path)
    made = place.connect(path, Durability.OS)
    ledger = Ledger(made)
    ledger.begin()
    control.declare(ledger, [QueueSpec(name="work")])
    ledger.flush()
    ledger.sql("COMMIT")
    return made


@pytest.mark.parametrize("name", HOT)
def test_a_hot_statement_uses_its_index(db: apsw.Connection, name: str) -> None:
    sql, wanted = HOT[name]
    count = max(sql.count("?") - len(re.findall(r"\?\d", sql)), *(int(n) for n in re.findall(r"\?(\d)", sql)), 0)
    values = [apsw.carray((b"x" * 16,)) if "carray" in sql and f"carray(?{'' if '?1' not in sql else n + 1})" in sql else 1 for n in range(count)]
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", values)]
    for step in wanted:
        assert any(line.startswith(step) for line in plan), plan
    own = [line for line in plan if "VIRTUAL TABLE" not in line]  # the values handed in
    assert not [
        line for line in own if line.startswith(("SCAN message", "SCAN lane", "SCAN share", "SCAN h", "SCAN m")) or "TEMP B-TREE FOR ORDER BY" in line
    ], plan


def test_no_index_stands_there_for_nothing(db: apsw.Connection) -> None:
    """An index costs every write; each must be named by a statement or serve a key."""
    source = "\n".join(path.read_text() for path in Path(schema.__file__).parent.glob("*.py") if path.name != "schema.py")
    names = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL")]
    asked_by_key = {"attempt_seq", "gather_run", "run_chain", "message_dead", "same_seq", "decision_queue"}
    assert {name for name in names if name not in source} <= asked_by_key
