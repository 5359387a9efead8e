"""The open file: connection, side lock and bell, and what happens to them when storage fails.

Fail-stop  after an error that poisons, the connection is closed at once. The next use opens the file again and checks every page of it before it goes on.
Ballast    1 MiB beside the file is given back when the disk is full, so that receives and settles (which overwrite, mostly) can go on and empty the line;
           sends are refused until there is room for the ballast again.
"""

import contextlib
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import apsw

from beltline.core.capabilities import Durability
from beltline.core.errors import BeltlineError, EngineUnavailable
from beltline.engines.sqlite import place, schema
from beltline.engines.sqlite.bell import Bell
from beltline.engines.sqlite.ledger import Ledger
from beltline.engines.sqlite.trouble import FULL, damaged, explain
from beltline.engines.sqlite.turnstile import Turnstile

LOCK_WAIT_S = 30.0
REOPEN_PAUSE_S = 0.5
PAGE_BYTES = 4096
CHECKPOINT_PAGES = (32, 2000)  # the log is brought back when it has so many pages: the fewer, the less room is left on the disk
BALLAST_BYTES = 1024 * 1024


class File:
    """Used by one thread at a time: the writer's, or that of the transaction it is lent to."""

    def __init__(self, path: Path, *, audited: bool, on_poison: Callable[[], None]) -> None:
        self.path = path
        self.level = Durability.MEMORY
        self.ledger: Ledger | None = None
        self.bell: Bell | None = None
        self.full = False  # the ballast is spent
        self._audited = audited
        self._on_poison = on_poison
        self._turnstile: Turnstile | None = None
        self._ballast = path.with_name(path.name + "-ballast")
        self._ballast_tried_at = 0.0
        self._sound = True  # False: every page must be checked before it is used again
        self._failure: BeltlineError | None = None
        self._failed_at = 0.0
        self._pages = 0
        self._most_pages = CHECKPOINT_PAGES[1]

    # --------------------------------------------------------------------------------------------------------- open
    def open(self) -> Ledger:
        """The ledger of an open connection. Raises EngineError, for REOPEN_PAUSE_S the same one again."""
        if self.ledger is not None:
            return self.ledger
        if self._failure is not None and time.monotonic() - self._failed_at < REOPEN_PAUSE_S:
            raise self._failure
        try:
            self.ledger = self._connect()
        except (BeltlineError, apsw.Error, OSError) as error:
            self._failed_at = time.monotonic()
            self._failure = self._reason(error)
            raise self._failure from None
        return self.ledger

    def forgive(self) -> None:
        """Somebody has come anew: let the next `open` try at once."""
        self._failure = None

    def raise_level(self, level: Durability) -> None:
        """Hold at least this level."""
        if level > self.level:
            self.level = level
            if self.ledger is not None:
                place.set_level(self.ledger.db, level)

    def _connect(self) -> Ledger:
        place.prepare(self.path)
        if self._turnstile is None:
            self._turnstile = Turnstile(self.path.with_name(self.path.name + "-lock"))
        with _Passage(self):
            place.create(self.path)
            place.inspect(self.path)
            db = place.connect(self.path, self.level)
            try:
                schema.check_version(db, str(self.path))
                if not self._sound or self.path.stat().st_size <= place.CHECKED_BYTES:
                    place.check_content(db, self.path)
                schema.migrate(db)
            except BaseException:
                db.close(True)
                raise
        self._sound = True
        self._failure = None
        self.bell = self.bell or Bell(self.path)
        db.set_wal_hook(self._wal_grew)
        self._fill_ballast()
        self._watch_room()
        return Ledger(db, audited=self._audited)

    def _reason(self, error: BeltlineError | apsw.Error | OSError) -> BeltlineError:
        if isinstance(error, BeltlineError):
            return error
        if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
            return damaged(str(self.path), str(error))
        if isinstance(error, apsw.Error):
            return explain(error, str(self.path), committing=False)
        return EngineUnavailable(
            f"{self.path} cannot be opened: {error}.", effect="none", help="Look at the folder, its permissions and its free space."
        )

    def close(self) -> None:
        """The last connection brings the WAL back into the file and removes it."""
        if self.ledger is not None:
            with contextlib.suppress(apsw.Error):
                self.ledger.db.close(True)
            self.ledger = None
        if self._turnstile is not None:
            self._turnstile.close()
            self._turnstile = None
        if self.bell is not None:
            self.bell.close()
            self.bell = None

    def poison(self) -> None:
        """Nothing this connection says can be trusted any more."""
        ledger, self.ledger = self.ledger, None
        self._sound = False
        self._on_poison()
        if ledger is not None:
            with contextlib.suppress(apsw.Error):
                ledger.db.close(True)

    # -------------------------------------------------------------------------------------------------- transactions
    def passage(self) -> "_Passage":
        """The side lock for one transaction. Raises EngineUnavailable when another process does not let go of it."""
        return _Passage(self)

    def begin(self, ledger: Ledger) -> None:
        """BEGIN IMMEDIATE. We hold the side lock, so only other programs, or the last step of a checkpoint, can be in the way: for a bounded time."""
        until = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                ledger.begin()
            except (apsw.BusyError, apsw.LockedError):
                roll_back(ledger)
                if time.monotonic() >= until:
                    raise
                time.sleep(random.uniform(0.001, 0.02))  # noqa: S311 - jitter, no secret
            else:
                return

    def _wal_grew(self, db: apsw.Connection, name: str, pages: int) -> int:
        self._pages = pages
        return apsw.SQLITE_OK

    def checkpoint(self) -> None:
        """Called after the answers, so that nobody waits for it: bring the WAL back into the file when it has grown."""
        if self._pages < self._most_pages or self.ledger is None:
            return
        self._pages = 0
        try:
            self.ledger.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            self._watch_room()
        except (apsw.BusyError, apsw.LockedError, apsw.FullError, OSError):
            pass  # another process does it, or the next one finds space: the WAL keeps everything
        except apsw.Error:
            self.poison()

    def _watch_room(self) -> None:
        """Keep the log so short that the ballast is always enough to bring it back into the file."""
        disk = os.statvfs(self.path.parent)
        least, most = CHECKPOINT_PAGES
        free_pages = disk.f_bavail * disk.f_frsize // PAGE_BYTES
        self._most_pages = least if self.full else max(least, min(most, free_pages // 16))

    # ------------------------------------------------------------------------------------------------------- ballast
    def spend_ballast(self) -> None:
        """The disk is full."""
        self.full = True
        self._ballast_tried_at = time.monotonic()
        self._ballast.unlink(missing_ok=True)
        self._most_pages = CHECKPOINT_PAGES[0]
        if self.ledger is not None:
            with contextlib.suppress(apsw.BusyError, apsw.LockedError, apsw.FullError):
                self.ledger.db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)

    def refuse_sends(self) -> BeltlineError | None:
        """Why nothing new may be stored now; None: go on."""
        if self.full and time.monotonic() - self._ballast_tried_at >= 1.0:
            self._ballast_tried_at = time.monotonic()
            self.full = not self._fill_ballast()
            self._watch_room()
        return EngineUnavailable(f"{self.path} {FULL.what}.", effect="none", help=FULL.help) if self.full else None

    def _fill_ballast(self) -> bool:
        fd = -1
        try:
            fd = os.open(self._ballast, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if os.fstat(fd).st_size < BALLAST_BYTES:
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(fd, 0, BALLAST_BYTES)
                else:
                    os.write(fd, bytes(BALLAST_BYTES))
        except OSError:
            self._ballast.unlink(missing_ok=True)
            return False
        finally:
            if fd >= 0:
                os.close(fd)
        return True


class _Passage:
    def __init__(self, file: File) -> None:
        self._file = file

    def __enter__(self) -> None:
        turnstile = self._file._turnstile
        assert turnstile is not None
        if not turnstile.enter(LOCK_WAIT_S):
            raise EngineUnavailable(
                f"{self._file.path} has been locked by another process for {LOCK_WAIT_S:g} s.",
                effect="none",
                help="Look for a stopped or stuck process that uses it.",
            )
        self._turnstile = turnstile

    def __exit__(self, *_: object) -> None:
        self._turnstile.leave()


def roll_back(ledger: Ledger) -> None:
    with contextlib.suppress(apsw.Error):
        if not ledger.db.getautocommit():
            ledger.sql("ROLLBACK")
    ledger.forget()
