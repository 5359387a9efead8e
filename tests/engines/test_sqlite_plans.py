"""Every statement of the hot paths finds its rows in the index meant for it: no scan, no sort, whatever stands in the file."""

import re
from pathlib import Path

import apsw
import pytest

from beltline.core.capabilities import Durability
from beltline.core.queues import QueueSpec
from beltline.engines.sqlite import browsing, control, endings, facts, lanes, place, receiving, schema, settling, storing, writer
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
    "give up": (f"{FACTS} {endings.OF_RUN}", ["SEARCH message USING INDEX message_run (run=?)"]),
    "purge ready": (f"{FACTS} {control.purge_of('message_ready', 1)}", ["SEARCH message USING INDEX message_ready (queue=?)"]),
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
    assert not [line for line in own if line.startswith("SCAN message") or "TEMP B-TREE FOR ORDER BY" in line], plan


def test_no_index_stands_there_for_nothing(db: apsw.Connection) -> None:
    """An index costs every write; each must be named by a statement or serve a key."""
    source = "\n".join(path.read_text() for path in Path(schema.__file__).parent.glob("*.py") if path.name != "schema.py")
    names = [row[0] for row in db.execute("SELECT name FROM sqlite_schema WHERE type = 'index' AND sql IS NOT NULL")]
    asked_by_key = {"attempt_seq", "gather_run", "run_chain", "message_dead"}
    assert {name for name in names if name not in source} <= asked_by_key
