"""The tables, and how an older file becomes a newer one.

    message   one row per message for its whole life: a change of state is an UPDATE in place, an ended message stays as the memory of its id
    bulk      bodies and results above INLINE_BYTES, so that a change of state does not rewrite them (n = 2 * seq for a body, + 1 for a result)
    queue     declaration and pause flag          tally    its counters, and `clock`, the ratchet: the newest time this queue was changed at
    attempt   what a delivery ended with, other than plain success (which stands in the message row)
    run, run_tally, gather, gather_part           asked    cancellations that a worker has not carried out yet
    name      tasks, chains and workers as small numbers
    dedup, worker, progress, audit, meta
    limits, bucket, hold; lane, share, flow; same     flow control: see shaping.py, limits.py and unique.py

Numbers  instants are whole milliseconds since 1970 (a float of seconds has no exact milliseconds, and six bytes are fewer than eight).
Indexes  each state that is searched has its own partial index, so that a hot query reads only rows it wants and never sorts.
Upgrade  MIGRATIONS, in order, each once, in one exclusive transaction. The name says the phase: an *expand* step leaves older readers working,
         a *contract* step raises `min_reader`, and a reader below it refuses the file (EngineTooNew).
"""

from pathlib import Path

import apsw

from beltline.core.errors import EngineForeign, EngineTooNew
from beltline.core.views import SchemaView
from beltline.engines.sqlite.trouble import explain

APPLICATION_ID = 0x424C5431  # "BLT1"; at byte 68 of the file
INLINE_BYTES = 1000  # above it, a second row costs less than rewriting this one at each change of state (figures: docs/decisions/0002)

_TABLES = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE name(n INTEGER PRIMARY KEY, kind INTEGER NOT NULL, text TEXT NOT NULL, UNIQUE(kind, text));
CREATE TABLE queue(n INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, spec BLOB NOT NULL, paused INTEGER NOT NULL DEFAULT 0);
CREATE TABLE tally(queue INTEGER PRIMARY KEY, ready INTEGER NOT NULL, delayed INTEGER NOT NULL, leased INTEGER NOT NULL, dead INTEGER NOT NULL,
  done INTEGER NOT NULL, parked INTEGER NOT NULL, clock INTEGER NOT NULL);
CREATE TABLE message(
  seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE,
  state INTEGER NOT NULL, blocked INTEGER NOT NULL, epoch INTEGER NOT NULL,
  due INTEGER NOT NULL,         -- delayed: ready at; ready: ready since; leased: lease until; done, dead: ended at
  queue INTEGER NOT NULL, task INTEGER NOT NULL,
  rank INTEGER NOT NULL, since INTEGER NOT NULL,   -- its place among the ready ones, drawn from the instant it was, or will be, ready
  failed INTEGER NOT NULL, lost INTEGER NOT NULL, sent INTEGER NOT NULL,
  group_key TEXT, run INTEGER,
  expires INTEGER,              -- only until the first hand-out
  started INTEGER, worker INTEGER, ran REAL,
  outcome INTEGER,              -- of done: 1 succeeded, 2 cancelled, 3 expired
  result BLOB, result_until INTEGER, why TEXT, error TEXT,
  head BLOB,                    -- MessagePack of the envelope fields that are no columns; NULL: all defaults
  body BLOB);                   -- NULL: in bulk
CREATE INDEX message_ready ON message(queue, blocked, rank) WHERE state = 1;
CREATE INDEX message_leased ON message(queue, due) WHERE state = 2;
CREATE INDEX message_delayed ON message(queue, due) WHERE state = 0;
CREATE INDEX message_dead ON message(queue) WHERE state = 4;
CREATE INDEX message_done ON message(due) WHERE state = 3;
CREATE INDEX message_forgotten ON message(due) WHERE state = 5;
CREATE INDEX message_expires ON message(queue, expires) WHERE expires IS NOT NULL;
CREATE INDEX message_lane ON message(queue, group_key, blocked) WHERE group_key IS NOT NULL AND state <= 2;
CREATE INDEX message_lane_dead ON message(queue, group_key) WHERE group_key IS NOT NULL AND state = 4;
CREATE INDEX message_run ON message(run) WHERE run IS NOT NULL;
CREATE TABLE bulk(n INTEGER PRIMARY KEY, data BLOB NOT NULL, until INTEGER);
CREATE INDEX bulk_until ON bulk(until) WHERE until IS NOT NULL;
CREATE TABLE attempt(n INTEGER PRIMARY KEY, seq INTEGER NOT NULL, epoch INTEGER NOT NULL, outcome TEXT NOT NULL, worker INTEGER, started INTEGER,
  ended INTEGER NOT NULL, ran REAL NOT NULL, note TEXT NOT NULL, failure BLOB);
CREATE INDEX attempt_seq ON attempt(seq);
CREATE TABLE dedup(queue INTEGER NOT NULL, key TEXT NOT NULL, id BLOB NOT NULL, until INTEGER NOT NULL, PRIMARY KEY(queue, key)) WITHOUT ROWID;
CREATE INDEX dedup_until ON dedup(until);
CREATE TABLE asked(seq INTEGER PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE progress(seq INTEGER PRIMARY KEY, value BLOB NOT NULL);
CREATE TABLE run(n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, chain INTEGER NOT NULL, state INTEGER NOT NULL, open INTEGER NOT NULL,
  dead INTEGER NOT NULL, entered INTEGER NOT NULL, ended INTEGER NOT NULL, result BLOB, result_until INTEGER, why TEXT, failure BLOB);
CREATE INDEX run_chain ON run(chain, id);
CREATE INDEX run_ended ON run(ended) WHERE ended > 0;
CREATE TABLE run_tally(chain INTEGER NOT NULL, state INTEGER NOT NULL, count INTEGER NOT NULL, PRIMARY KEY(chain, state)) WITHOUT ROWID;
CREATE TABLE gather(n INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, run INTEGER NOT NULL, expected INTEGER NOT NULL, missing INTEGER NOT NULL,
  dead INTEGER NOT NULL, fired INTEGER NOT NULL, data BLOB NOT NULL);
CREATE INDEX gather_run ON gather(run);
CREATE TABLE gather_part(gather INTEGER NOT NULL, part INTEGER NOT NULL, dead INTEGER NOT NULL, value BLOB, PRIMARY KEY(gather, part)) WITHOUT ROWID;
CREATE TABLE worker(id TEXT PRIMARY KEY, seen INTEGER NOT NULL, data BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE audit(n INTEGER PRIMARY KEY, at INTEGER NOT NULL, move TEXT NOT NULL, id BLOB NOT NULL, queue INTEGER NOT NULL, epoch INTEGER NOT NULL,
  run INTEGER);
"""

_SCHEDULES = """
CREATE TABLE schedule(
  name TEXT PRIMARY KEY, spec BLOB NOT NULL, revision INTEGER NOT NULL, origin TEXT NOT NULL, owner TEXT NOT NULL,
  paused INTEGER NOT NULL, gone INTEGER NOT NULL, named INTEGER NOT NULL,
  stood INTEGER NOT NULL,       -- all up to here is decided
  next INTEGER,                 -- nothing is due before; 0: not worked out, NULL: never again
  last_due INTEGER, last_sent INTEGER, last_id BLOB, sent INTEGER NOT NULL, skipped INTEGER NOT NULL, error TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX schedule_next ON schedule(next) WHERE paused = 0 AND gone = 0 AND next IS NOT NULL;
"""

_FLEETS = """
CREATE TABLE fleet(queue INTEGER PRIMARY KEY, turn INTEGER NOT NULL, slots INTEGER NOT NULL,
  decided INTEGER NOT NULL,     -- 0: the next decision is due
  state BLOB NOT NULL, least INTEGER, most INTEGER);   -- what deciders remember; an operator's range
CREATE TABLE decision(n INTEGER PRIMARY KEY, queue INTEGER NOT NULL, data BLOB NOT NULL);   -- MessagePack of a Decision
CREATE INDEX decision_queue ON decision(queue, n);
"""

_FLOW = """
ALTER TABLE message ADD COLUMN lane INTEGER;     -- NULL: it has no tenant, no claims and no sticky key
DROP INDEX message_ready;
CREATE INDEX message_ready ON message(queue, blocked, rank) WHERE state = 1 AND lane IS NULL;
CREATE INDEX message_in_lane ON message(lane, blocked, rank) WHERE state = 1 AND lane IS NOT NULL;
CREATE INDEX message_in_lanes ON message(queue, blocked, due, lane) WHERE state = 1 AND lane IS NOT NULL;
ALTER TABLE tally ADD COLUMN flow INTEGER NOT NULL DEFAULT 0;   -- 1: the queue has a row in `flow`
CREATE TABLE flow(queue INTEGER PRIMARY KEY,
  shaped INTEGER NOT NULL, sticky INTEGER NOT NULL,             -- has lanes; has lanes with a sticky key
  snoozed INTEGER NOT NULL, switch BLOB NOT NULL,
  turn INTEGER NOT NULL, members TEXT NOT NULL,                 -- those of the last receive, a line each
  held INTEGER NOT NULL, lent INTEGER NOT NULL,                 -- ready behind closed limits; leased by others than nobody's share
  span INTEGER NOT NULL, work INTEGER NOT NULL, work_before INTEGER NOT NULL);
CREATE TABLE share(n INTEGER PRIMARY KEY, queue INTEGER NOT NULL, tenant TEXT NOT NULL, owner TEXT NOT NULL,
  tag INTEGER NOT NULL, weight REAL NOT NULL, noisy INTEGER NOT NULL, standing INTEGER NOT NULL,
  place INTEGER NOT NULL, priority INTEGER NOT NULL,            -- of what it would give next
  lanes INTEGER NOT NULL, leased INTEGER NOT NULL, span INTEGER NOT NULL, work INTEGER NOT NULL, work_before INTEGER NOT NULL,
  UNIQUE(queue, tenant, owner));
CREATE INDEX share_next ON share(queue, owner, noisy, place, tenant) WHERE standing = 1;
CREATE INDEX share_noisy ON share(queue) WHERE noisy = 1;
CREATE INDEX share_empty ON share(queue) WHERE lanes = 0;
CREATE TABLE lane(n INTEGER PRIMARY KEY, queue INTEGER NOT NULL, tenant TEXT NOT NULL, sticky TEXT NOT NULL, code BLOB NOT NULL, priority INTEGER NOT NULL,
  share INTEGER NOT NULL, ready INTEGER NOT NULL, leased INTEGER NOT NULL, other INTEGER NOT NULL,   -- other: delayed and dead
  head_rank INTEGER, head_seq INTEGER,                          -- NULL: nothing stands in it
  closed_by INTEGER, closed_until INTEGER, closed_at INTEGER,   -- a bucket, NULL: open; NULL: until a place is given back
  UNIQUE(queue, tenant, sticky, code, priority));
CREATE INDEX lane_next ON lane(share, head_rank, head_seq) WHERE closed_by IS NULL AND head_seq IS NOT NULL;
CREATE INDEX lane_due ON lane(queue, closed_until, closed_at, tenant, sticky, code, priority) WHERE closed_until IS NOT NULL;
CREATE INDEX lane_closed ON lane(closed_by, queue, closed_at, tenant, sticky, code, priority) WHERE closed_by IS NOT NULL;
CREATE INDEX lane_sticky ON lane(queue) WHERE sticky <> '';
CREATE INDEX lane_empty ON lane(queue) WHERE ready = 0 AND leased = 0 AND other = 0;
CREATE TABLE limits(name TEXT PRIMARY KEY, declared BLOB, given BLOB) WITHOUT ROWID;   -- what code says, and an operator over it
CREATE TABLE bucket(n INTEGER PRIMARY KEY, name TEXT NOT NULL, key TEXT NOT NULL,
  tat INTEGER NOT NULL,         -- microseconds since 1970: when it would be full again
  waiting INTEGER NOT NULL,     -- ready messages of the lanes it has closed
  started INTEGER NOT NULL,     -- something has begun in it
  UNIQUE(name, key));
CREATE TABLE hold(seq INTEGER NOT NULL, bucket INTEGER NOT NULL, PRIMARY KEY(seq, bucket)) WITHOUT ROWID;   -- a leased message and the places it holds
CREATE INDEX hold_bucket ON hold(bucket);
CREATE TABLE same(queue INTEGER NOT NULL, key TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY(queue, key)) WITHOUT ROWID;   -- the last one sent with a unique key
CREATE INDEX same_seq ON same(seq);
"""

# (name, SQL, min_reader after it). Append only; the number of a step is its place from 1 and becomes PRAGMA user_version.
MIGRATIONS: tuple[tuple[str, str, int], ...] = (
    ("0001_expand_first_tables", _TABLES, 1),
    ("0002_contract_schedules_limits_fleets", _SCHEDULES + _FLEETS + _FLOW, 2),  # a worker that knows no limits would not keep them
)
SCHEMA = len(MIGRATIONS)


def look(path: Path) -> SchemaView:
    """What stands in the file, without changing anything. Raises EngineForeign, EngineTooNew, EngineUnavailable."""
    names = tuple(name for name, _, _ in MIGRATIONS)
    if not path.exists() or path.stat().st_size == 0:
        return SchemaView(have=0, newest=SCHEMA, oldest=1, min_reader=0, missing=names)
    try:
        db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
        try:
            check_version(db, str(path))
            have = db.execute("PRAGMA user_version").get
            min_reader = db.execute("SELECT value FROM meta WHERE key = 'min_reader'").get
        finally:
            db.close(True)
    except apsw.NotADBError:
        raise EngineForeign(f"{path} is not a Beltline queue.", why="Nothing in it was changed.", help="Give Beltline a path of its own.") from None
    except apsw.Error as error:
        raise explain(error, str(path), committing=False) from error
    return SchemaView(have=have, newest=SCHEMA, oldest=1, min_reader=min_reader, missing=names[have:])


def check_version(db: apsw.Connection, path: str) -> None:
    """Raises EngineForeign (not ours), EngineTooNew (its min_reader is above our schema)."""
    if db.execute("PRAGMA application_id").get != APPLICATION_ID:
        raise EngineForeign(
            f"{path} is a SQLite database of another program.", why="Nothing in it was changed.", help="Give Beltline a path of its own."
        )
    if db.execute("PRAGMA user_version").get > SCHEMA:
        needed = db.execute("SELECT value FROM meta WHERE key = 'min_reader'").get
        if needed is None or needed > SCHEMA:
            raise EngineTooNew(
                f"{path} was written by a newer Beltline (schema {needed}; this one reads up to {SCHEMA}).",
                why="Nothing in it was changed.",
                help="Upgrade this installation: pip install --upgrade beltline",
            )


def migrate(db: apsw.Connection) -> list[str]:
    """Bring the file to our schema in one transaction. Returns the names of the steps taken. The caller holds the lock of the file."""
    if db.execute("PRAGMA user_version").get >= SCHEMA:
        return []
    taken = []
    db.execute("BEGIN IMMEDIATE")
    try:
        have = db.execute("PRAGMA user_version").get
        for number, (name, sql, min_reader) in enumerate(MIGRATIONS[have:], have + 1):
            db.execute(sql)
            db.execute("INSERT OR REPLACE INTO meta(key, value) VALUES('min_reader', ?), ('schema', ?)", (min_reader, number))
            taken.append(name)
        db.execute("INSERT OR IGNORE INTO meta(key, value) VALUES('declared', 0), ('hand_outs', 0), ('next_seq', 1), ('clock', 0)")
        db.execute(f"PRAGMA user_version = {SCHEMA}")
        db.execute("COMMIT")
    except BaseException:
        if not db.getautocommit():
            db.execute("ROLLBACK")
        raise
    return taken
