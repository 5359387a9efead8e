"""What SQLite's errors mean for a caller. One table; tests/engines/test_sqlite_trouble.py has a test per entry.

Before the COMMIT a failure is certain: the transaction is rolled back, effect "none". A COMMIT that raised may be on the disk after a restart: "unknown".
Fail-stop: after an error that `poisons`, nothing this connection says can be trusted; it is closed, and the file checked before it serves again.
"""

from typing import NamedTuple

import apsw

from beltline.core.errors import BeltlineError, EngineForeign, EngineUnavailable


class Meaning(NamedTuple):
    what: str
    help: str
    poisons: bool


# SQLite reports a full disk from the write of a frame, before the one that commits: the rollback is good and the connection can be trusted.
FULL = Meaning(
    "has no space left on its disk",
    "Free some space: until then sends are refused, receives and settles go on from a reserve of 1 MiB.",
    poisons=False,
)
_RETRY = "Try again; if it stays, look at who else uses the file."
TABLE: dict[type[apsw.Error], Meaning] = {
    apsw.FullError: FULL,
    apsw.IOError: Meaning("could not be read or written", "Look at the disk and the system's log.", poisons=True),
    apsw.CorruptError: Meaning("is damaged", "Stop all workers, copy the file aside, restore a backup.", poisons=True),
    apsw.NotADBError: Meaning("is no SQLite database any more", "Stop all workers, copy the file aside, restore a backup.", poisons=True),
    apsw.CantOpenError: Meaning(
        "could not be opened", "Look at the folder and its permissions, and at the number of open files (ulimit -n).", poisons=True
    ),
    apsw.NoMemError: Meaning("needs more memory than there is", "Give the process more memory or send smaller batches.", poisons=True),
    apsw.ReadOnlyError: Meaning(
        "may not be written",
        "Give this user the right to write the file and its folder (chmod u+w), on a disk that is not mounted read-only.",
        poisons=True,
    ),
    apsw.PermissionsError: Meaning("may not be used", "Give this user the right to read and write the file and its folder.", poisons=True),
    apsw.ProtocolError: Meaning("is fought over by too many processes", _RETRY, poisons=True),
    apsw.BusyError: Meaning("is locked by another program", _RETRY, poisons=False),
    apsw.LockedError: Meaning("is locked within this process", _RETRY, poisons=False),
    apsw.InterruptError: Meaning("was interrupted", "Try again.", poisons=False),
    apsw.TooBigError: Meaning("cannot hold a value of this size", "Send a path or key instead of the content.", poisons=False),
}
OTHER = Meaning("gave an answer nobody expected", "This is a fault of Beltline: please report it with this text.", poisons=True)


def meaning(error: apsw.Error) -> Meaning:
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), OTHER)


def explain(error: apsw.Error, path: str, *, committing: bool) -> BeltlineError:
    """The error a caller gets. `committing`: COMMIT had been asked for, so it may have happened."""
    found = meaning(error)
    return EngineUnavailable(f"{path} {found.what} ({error}).", effect="unknown" if committing else "none", help=found.help)


def damaged(path: str, detail: str) -> EngineForeign:
    return EngineForeign(
        f"{path} is damaged: {detail}.",
        why="Nothing in it was changed.",
        help="Stop all workers, copy the file (with its -wal) aside, then restore a backup or start with a new file.",
    )


__all__ = ["FULL", "OTHER", "TABLE", "Meaning", "damaged", "explain", "meaning"]
