"""What an error of psycopg means for the caller: certainly no effect, or perhaps one.

An error that the server itself reports for a statement rolled that statement back: none. When the connection broke while an answer was awaited, the commit may
have happened: unknown. Source of the codes: PostgreSQL documentation, appendix A.
"""

from enum import Enum

import psycopg

from beltline.core.errors import BeltlineError, EngineError, EngineForeign, EngineUnavailable
from beltline.engines.moving import read_seal, refusal

AGAIN = frozenset(["40001", "40P01", "57P05"])  # serialization failure, deadlock, a session that was too long idle: nothing happened, once more
# A pooler gave us another session than the one that prepared; a cached plan whose tables changed.
UNPREPARED = frozenset(["26000", "42P05", "0A000"])
MOVED = "BL002"  # raised by our own functions: the queues are moving, the detail is the seal
_GOING = frozenset(
    ["57P01", "57P02", "57P03", "57P04", "57P05"]
)  # shut down by the administrator, crashed, starting up, database dropped, too long idle
_OURS = (
    psycopg.DataError,
    psycopg.ProgrammingError,
    psycopg.NotSupportedError,
)  # without a code of the server: psycopg itself could not write the statement
_MISSING = frozenset(["42883", "42P01", "3F000", "42704"])  # function, table, schema, type
_BUSY = frozenset(["57014", "55P03", "25P03"])  # statement, lock, idle time-outs
_FULL = frozenset(["53100", "53200", "53300", "53400"])  # disk, memory, connections


class Remedy(Enum):
    AGAIN = 1  # the same connection, the same statement, after a short pause
    UNPREPARED = 2  # the same without prepared statements
    NONE = 3


def remedy(error: psycopg.Error) -> Remedy:
    if error.sqlstate in AGAIN:
        return Remedy.AGAIN
    return Remedy.UNPREPARED if error.sqlstate in UNPREPARED else Remedy.NONE


def broken(error: psycopg.Error) -> bool:
    """The connection cannot be used any more, or leads to a server that cannot be written."""
    state = error.sqlstate
    if state is None:
        return not isinstance(error, _OURS)
    return state in _GOING or state.startswith("08") or state == "25006"


def missing(error: psycopg.Error) -> bool:
    """A function, table or type is not there: the schema is of another version."""
    return error.sqlstate in _MISSING


def connecting(error: psycopg.Error, shown: str) -> BeltlineError:
    """No connection could be made: nothing happened."""
    text = _text(error)
    helps = {
        "28P01": "Check user and password of the URL.",
        "28000": "Check user and password of the URL, and pg_hba.conf of the server.",
        "3D000": "Create the database first (createdb), or name another.",
        "53300": "The server has no connection left: lower ?pool=, raise max_connections, or put a pooler between.",
    }
    code = next((code for words, code in _WORDS.items() if words in text), error.sqlstate or "")
    return EngineUnavailable(
        f"{shown} cannot be reached: {text}", effect="none", help=helps.get(code, "Is the server running? A worker tries again by itself.")
    )


# libpq reports the failures of a connection attempt as text only.
_WORDS = {
    "password authentication failed": "28P01",
    "no pg_hba.conf entry": "28000",
    'role "': "28000",
    "does not exist": "3D000",
    "too many clients": "53300",
    "too many connections": "53300",
    "connection slots are reserved": "53300",
}


def asking(error: psycopg.Error, shown: str, schema: str) -> BeltlineError:
    """A statement failed."""
    state, text = error.sqlstate, _text(error)
    if state is None and isinstance(error, _OURS):
        return EngineError(f"This cannot be said to {shown}: {text}", why="Nothing was stored.")
    if state is None or state in _GOING or state.startswith("08") or state == "40003":
        return EngineUnavailable(f"The connection to {shown} broke: {text}", effect="unknown", help="It is made again by itself.")
    if state == MOVED:
        return refusal(read_seal(error.diag.message_detail or None), shown)
    if state == "25006":
        return EngineUnavailable(
            f"{shown} cannot be written: {text}", effect="none", help="Give the URL of the primary, or of all servers: postgresql://one,two/database"
        )
    if state in _MISSING:
        return EngineForeign(
            f"Schema {schema} of {shown} does not fit this Beltline: {text}",
            why="Nothing in it was changed.",
            help="Compare the two: beltline migrate --check. Newer tables than this process knows: upgrade it and start it again; older ones: beltline migrate",
        )
    if state in _BUSY:
        return EngineUnavailable(
            f"{shown} gave up: {text}", effect="none", help="A long transaction, or a time-out of this role, stands in the way (beltline doctor)."
        )
    if state in _FULL:
        return EngineUnavailable(f"{shown} is full: {text}", effect="none", help="Make room on the server.")
    if state == "42501":
        return EngineUnavailable(f"{shown} forbids it: {text}", effect="none", help=_GRANT.format(schema=schema), forbidden=True)
    return EngineError(f"{shown} refused: {text} ({state})", why="Nothing was stored.")


def overdue(error: psycopg.Error | None, shown: str, seconds: float) -> BeltlineError:
    """An answer did not come in time. 57014: the server was asked to stop, and has undone it."""
    if error is not None and error.sqlstate == "57014":
        return EngineUnavailable(
            f"{shown} was not done within {seconds:g} s and was stopped.",
            effect="none",
            help="Something holds a lock, or the server is overloaded (beltline doctor). ?timeout= sets the limit.",
        )
    return EngineUnavailable(f"{shown} did not answer within {seconds:g} s.", effect="unknown", help="?timeout= sets the limit.")


_GRANT = (
    "As the owner of schema {schema}, for this role: GRANT USAGE ON SCHEMA {schema} TO …; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO …; "
    "GRANT USAGE, SELECT, UPDATE ON ALL SEQUENCES IN SCHEMA {schema} TO …"
)


def _text(error: psycopg.Error) -> str:
    return " ".join((error.diag.message_primary or str(error)).split()) or type(error).__name__
