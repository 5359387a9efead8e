"""Opening a file: what is made, what is refused, what an older file becomes."""

import os
import sqlite3
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import apsw
import pytest

from beltline.core.capabilities import Durability
from beltline.core.errors import EngineForeign, EngineTooNew, EngineUnavailable, EngineUnsafe, HandleMisused, ValueInvalid
from beltline.core.queues import QueueSpec
from beltline.engines.sqlite import SqliteEngine, place, schema
from tests.engines.sqlite_kit import BOUND_S, WORK, child, message, opened, output


async def test_a_new_file_belongs_to_its_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    async with opened(folder / "queue.db") as engine:
        await engine.send([message()])
        assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_a_file_has_our_mark_and_is_in_wal_mode(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db"):
        db = apsw.Connection(str(tmp_path / "queue.db"))
        assert db.execute("PRAGMA application_id").get == schema.APPLICATION_ID
        assert db.execute("PRAGMA user_version").get == schema.SCHEMA
        assert db.execute("PRAGMA journal_mode").get == "wal"
        db.close()


@pytest.mark.parametrize(("level", "synchronous"), [(Durability.DISK, 2), (Durability.OS, 1), (Durability.MEMORY, 0)])
async def test_a_level_is_held_by_name(tmp_path: Path, level: Durability, synchronous: int) -> None:
    async with opened(tmp_path / "queue.db", durability=level) as engine:
        assert engine.capabilities.durability is level
        assert engine._shared is not None
        ledger = engine._shared.writer._file.ledger
        assert ledger is not None
        assert ledger.sql("PRAGMA synchronous").get == synchronous


async def test_the_highest_level_asked_for_in_a_process_is_held(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db", durability=Durability.MEMORY) as low, opened(tmp_path / "queue.db", durability=Durability.DISK):
        assert low._shared is not None
        ledger = low._shared.writer._file.ledger
        assert ledger is not None
        assert ledger.sql("PRAGMA synchronous").get == 2


async def test_closing_leaves_one_sound_file_without_a_log(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db") as engine:
        await engine.send([message() for _ in range(100)])
    assert not (tmp_path / "queue.db-wal").exists()
    db = sqlite3.connect(tmp_path / "queue.db")  # the standard library's: the file is closed, nothing is shared
    assert db.execute("SELECT count(*) FROM message").fetchone() == (100,)
    db.close()


async def test_what_is_not_sqlite_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("shopping list\n" * 20)
    before = path.read_bytes()
    with pytest.raises(EngineForeign, match="not a Beltline queue"):
        await SqliteEngine(path).open()
    assert path.read_bytes() == before
    assert not (tmp_path / "notes.txt-wal").exists()


async def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE message(x)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(EngineForeign, match="another program"):
        await SqliteEngine(path).open()
    assert path.read_bytes() == before


async def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineForeign, match="folder"):
        await SqliteEngine(tmp_path).open()


async def test_an_empty_file_becomes_a_queue(tmp_path: Path) -> None:
    (tmp_path / "queue.db").touch(mode=0o600)
    async with opened(tmp_path / "queue.db") as engine:
        await engine.send([message()])


async def test_a_file_written_by_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with opened(path):
        pass
    db = apsw.Connection(str(path))
    db.execute(f"UPDATE meta SET value = {schema.SCHEMA + 1} WHERE key = 'min_reader'; PRAGMA user_version = {schema.SCHEMA + 1}")
    db.close()
    with pytest.raises(EngineTooNew, match="newer Beltline"):
        await SqliteEngine(path).open()


async def test_a_newer_file_that_we_may_still_read_is_served(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with opened(path):
        pass
    db = apsw.Connection(str(path))
    db.execute(f"ALTER TABLE message ADD COLUMN of_tomorrow TEXT; PRAGMA user_version = {schema.SCHEMA + 1}")
    db.close()
    async with opened(path) as engine:
        sent = message()
        await engine.send([sent])
        assert [delivery.message for delivery in await engine.receive([WORK], limit=1, lease_s=30.0)] == [sent]
    db = apsw.Connection(str(path))
    assert db.execute("PRAGMA user_version").get == schema.SCHEMA + 1
    db.close()


async def test_a_file_before_the_first_step_is_migrated(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    db = apsw.Connection(str(path))
    db.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}; CREATE TABLE meta_of_old(x)")
    db.close()
    path.chmod(0o600)
    async with opened(path) as engine:
        await engine.send([message()])
    db = apsw.Connection(str(path))
    assert db.execute("PRAGMA user_version").get == schema.SCHEMA
    assert db.execute("SELECT value FROM meta WHERE key = 'schema'").get == schema.SCHEMA
    db.close()


def test_each_step_is_taken_once_in_order_and_a_broken_one_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = (
        "0001_expand_first_tables",
        "CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID; CREATE TABLE message(seq INTEGER PRIMARY KEY)",
        1,
    )
    second = ("0002_expand_colour", "ALTER TABLE message ADD COLUMN colour TEXT", 1)
    broken = ("0003_contract_nothing", "ALTER TABLE message DROP COLUMN nonsense", 3)
    db = apsw.Connection(":memory:")
    for steps in ((first,), (first, second)):
        monkeypatch.setattr(schema, "MIGRATIONS", steps)
        monkeypatch.setattr(schema, "SCHEMA", len(steps))
        assert schema.migrate(db) == [steps[-1][0]]
        assert schema.migrate(db) == []
    db.execute("INSERT INTO message(colour) VALUES('blue')")
    monkeypatch.setattr(schema, "MIGRATIONS", (first, second, broken))
    monkeypatch.setattr(schema, "SCHEMA", 3)
    with pytest.raises(apsw.SQLError):
        schema.migrate(db)
    assert db.getautocommit()
    assert db.execute("PRAGMA user_version").get == 2
    assert db.execute("SELECT value FROM meta WHERE key = 'schema'").get == 2


def test_the_names_of_the_steps_carry_order_and_phase() -> None:
    for number, (name, _, min_reader) in enumerate(schema.MIGRATIONS, 1):
        order, phase, _ = name.split("_", 2)
        assert int(order) == number
        assert phase in ("expand", "contract")
        assert min_reader <= number


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "9p", "fuse.sshfs"])
def test_a_network_file_system_is_refused_with_a_cure(kind: str) -> None:
    mounts = f"/dev/vda / ext4 rw 0 0\nhost:/data /mnt/share\\040one {kind} rw 0 0\n"
    with pytest.raises(EngineUnsafe, match="network file system") as refused:
        place.check_filesystem(Path("/mnt/share one/queues"), mounts)
    assert "local disk" in refused.value.help
    place.check_filesystem(Path("/mnt/share"), mounts)
    place.check_filesystem(Path("/mnt/share onerous"), mounts)


@pytest.mark.parametrize(
    ("version", "bad"),
    [
        *((version, True) for version in ("3.7.0", "3.40.1", "3.44.5", "3.45.0", "3.50.6", "3.51.2")),
        *((version, False) for version in ("3.6.23", "3.44.6", "3.50.7", "3.51.3", "3.54.1", "4.0.0")),
    ],
)
def test_libraries_that_corrupt_a_log_are_known(version: str, bad: bool) -> None:
    assert place.affected(version) is bad


def test_an_affected_library_is_refused_and_ours_is_not() -> None:
    place.check_library()
    with pytest.raises(EngineUnsafe, match="pip install"):
        place.check_library("3.40.1")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Root may write everywhere, so it becomes somebody else first, and uses a folder whose parents are open to all."""
    program = """
import asyncio, os, sys
from beltline.core.errors import EngineUnavailable
from beltline.engines.sqlite import SqliteEngine
if os.geteuid() == 0:
    os.setuid(65534)
async def main():
    try:
        await SqliteEngine(sys.argv[1]).open()
    except EngineUnavailable as error:
        print(error.effect, error)
asyncio.run(main())
"""
    folder = Path(tempfile.gettempdir()) / f"beltline-test-{os.getpid()}" if os.geteuid() == 0 else tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    try:
        said = output(child(program, folder / "queue.db"))
    finally:
        folder.rmdir()
    assert said.startswith("none ")
    assert str(folder) in said
    assert "chmod" in said


async def test_a_parent_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineUnavailable, match="file"):
        await SqliteEngine(tmp_path / "file" / "queue.db").open()


async def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    async with opened(path):
        pass
    path.chmod(0o666)
    with pytest.raises(EngineUnsafe, match="other users") as refused:
        await SqliteEngine(path).open()
    assert "chmod go-w" in refused.value.help


@pytest.mark.parametrize("damage", ["header", "cut", "middle"])
async def test_a_damaged_file_is_refused_and_left_alone(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "queue.db"
    async with opened(path) as engine:
        await engine.send([message(body=bytes(1000)) for _ in range(300)])
    data = bytearray(path.read_bytes())
    if damage == "header":
        data[40:60] = bytes(20)
        data[16:18] = b"\x00\x03"
    elif damage == "cut":
        del data[80:]
    else:
        for start in range(4096, len(data), 4096):
            data[start : start + 40] = b"\xff" * 40
    path.write_bytes(data)
    with pytest.raises(EngineForeign, match="damaged") as refused:
        await SqliteEngine(path).open()
    assert "backup" in refused.value.help
    assert path.read_bytes() == bytes(data)


async def test_a_failed_open_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "queue.db"
    path.write_text("not yet")
    path.chmod(0o600)
    engine = SqliteEngine(path)
    with pytest.raises(EngineForeign):
        await engine.open()
    path.unlink()
    await engine.open()
    await engine.declare([QueueSpec(name=WORK)])
    await engine.close()


async def test_nothing_works_before_open_and_after_close(tmp_path: Path) -> None:
    engine = SqliteEngine(tmp_path / "queue.db")
    with pytest.raises(HandleMisused, match="not open"):
        await engine.send([message()])
    await engine.open()
    await engine.open()
    await engine.close()
    await engine.close()
    with pytest.raises(HandleMisused):
        await engine.counts(WORK)


@pytest.mark.parametrize("max_body", [0, -1, 1 << 40, True, 1.5])
def test_a_senseless_limit_is_refused(tmp_path: Path, max_body: int) -> None:
    with pytest.raises(ValueInvalid):
        SqliteEngine(tmp_path / "queue.db", max_body=max_body)


async def test_a_link_and_its_target_are_one_queue(tmp_path: Path) -> None:
    async with opened(tmp_path / "queue.db") as engine:
        (tmp_path / "link.db").symlink_to(tmp_path / "queue.db")
        async with opened(tmp_path / "link.db") as other:
            assert other._shared is engine._shared
            await other.send([message()])
            assert (await engine.counts(WORK)).ready == 1


def test_opening_needs_no_module_that_is_slow_to_import() -> None:
    program = "import sys; import beltline.engines.registry; print([m for m in ('apsw', 'sqlite3', 'asyncio') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=BOUND_S, check=True)
    assert done.stdout.strip() == "[]"
