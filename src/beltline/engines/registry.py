"""From an engine URL to an engine, and the list of engines there are.

    postgresql://user:password@host/database?schema=beltline        more options: engines/postgres/address.py
    memory://            an engine of its own          memory://name          the one of that name in this process
    sqlite:///queue.db   relative to the folder we are in now                 sqlite:////var/lib/app/queue.db   absolute
    ?durability=disk|os|memory    ?audit=1 (sqlite)

Engines are imported when they are asked for.
"""

import difflib
import threading
from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, unquote, urlsplit

from msgspec import Struct

from beltline.core.capabilities import Capabilities, Durability
from beltline.core.clock import Clock
from beltline.core.errors import ExtraMissing, UrlInvalid
from beltline.core.limits import MAX_BODY_BYTES
from beltline.engines.protocol import Engine

if TYPE_CHECKING:
    from beltline.engines.memory import MemoryEngine

LEVELS = {level.name.lower(): level for level in Durability}
# Schemes a reader of the design may try. They are named so that nobody searches for an extra that does not exist.
PLANNED = ("redis", "rediss", "valkey", "nats", "sqs", "amqp", "amqps", "kafka", "azure")


class EngineInfo(Struct, frozen=True, kw_only=True):
    """One engine for `beltline engine ls`. `extra`: what to install for it ("" = nothing). `capabilities`: at its default durability; None = cannot be loaded."""

    scheme: str
    label: str
    example: str
    extra: str = ""
    capabilities: Capabilities | None = None


_named: dict[str, "MemoryEngine"] = {}
_lock = threading.Lock()


def make_engine(url: str, *, durability: str | None = None, max_body: int | None = None, clock: Clock | None = None) -> Engine:
    """An engine, not yet open. Arguments win over the URL's query. Raises UrlInvalid, ValueInvalid."""
    parts = urlsplit(url) if isinstance(url, str) else None
    if parts is None or not parts.scheme or "://" not in url:
        raise UrlInvalid(str(url), why="An engine URL begins with its scheme.", help=f"For example: {_examples()}")
    maker = _MAKERS.get(parts.scheme)
    if maker is None:
        raise _unknown(url, parts.scheme)
    options = _options(url, parts.query, _OPTIONS[parts.scheme])
    if parts.fragment:
        raise UrlInvalid(url, why="A '#' has no meaning in an engine URL.", help="Write it as %23.")
    level = _level(url, durability if durability is not None else options.get("durability"))
    return maker(
        url, parts.netloc, unquote(parts.path), level, options.get("audit", "0") == "1", MAX_BODY_BYTES if max_body is None else max_body, clock
    )


def known_engines() -> list[EngineInfo]:
    """Every engine of this version, with its capabilities in numbers."""
    from beltline.engines.memory import MemoryEngine
    from beltline.engines.sqlite.engine import SqliteEngine

    postgres = make_engine("postgresql://localhost/app").capabilities if find_spec("psycopg") is not None else None
    return [
        EngineInfo(scheme="sqlite", label="full", example="sqlite:///beltline.db", capabilities=SqliteEngine("beltline.db").capabilities),
        EngineInfo(scheme="postgresql", label="full", example="postgresql://localhost/app", extra="postgres", capabilities=postgres),
        EngineInfo(scheme="memory", label="full", example="memory://", capabilities=MemoryEngine().capabilities),
    ]


def _examples() -> str:
    return "sqlite:///beltline.db, postgresql://localhost/app, memory://"


def _unknown(url: str, scheme: str) -> UrlInvalid:
    shown = _without_password(url)
    if scheme in PLANNED:
        return UrlInvalid(shown, why=f"There is no engine for {scheme}:// in this version.", help=f"Use one of: {_examples()}")
    close = difflib.get_close_matches(scheme, _MAKERS, n=1)
    hint = f"Did you mean {close[0]}://?" if close else f"Use one of: {_examples()}"
    return UrlInvalid(shown, why=f"Nothing is known about {scheme}://.", help=hint)


def _without_password(url: str) -> str:
    """A URL for a message: whoever reads the log need not know the password."""
    scheme, _, rest = url.partition("://")
    account, at, place = rest.rpartition("@")
    return f"{scheme}://{account.partition(':')[0]}:…@{place}" if at and ":" in account else url


def _options(url: str, query: str, known: tuple[str, ...] | None) -> dict[str, str]:
    """`known` None: the engine looks at them itself."""
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if known is not None and name not in known:
            raise UrlInvalid(url, why=f"{name!r} is no option of this engine.", help=f"Options: {', '.join(known)}.")
    if options.get("audit", "0") not in ("0", "1"):
        raise UrlInvalid(url, why=f"audit = {options['audit']!r} is not allowed.", help="Use audit=1 or audit=0.")
    return options


def _level(url: str, word: str | None) -> Durability | None:
    if word is None:
        return None
    level = LEVELS.get(word.lower())
    if level is None:
        raise UrlInvalid(url, why=f"durability = {word!r} is not allowed.", help="Use disk, os or memory.")
    return level


def _memory(url: str, name: str, path: str, level: Durability | None, audit: bool, max_body: int, clock: Clock | None) -> Engine:  # noqa: ARG001 - one shape
    from beltline.engines.memory import MemoryEngine

    if path:
        raise UrlInvalid(url, why="A memory engine has no path.", help="Use memory:// or memory://name.")
    if level is not None and level is not Durability.MEMORY:
        raise UrlInvalid(url, why=f"Memory cannot hold durability {level.name.lower()}.", help="Use sqlite:///beltline.db for durable queues.")
    if not name:
        return MemoryEngine(clock=clock, max_body=max_body)
    with _lock:
        if name not in _named:
            _named[name] = MemoryEngine(clock=clock, max_body=max_body)
        return _named[name]


def _sqlite(url: str, host: str, path: str, level: Durability | None, audit: bool, max_body: int, clock: Clock | None) -> Engine:
    from beltline.engines.sqlite.engine import SqliteEngine

    if host:
        raise UrlInvalid(
            url, why="A sqlite URL has three slashes before a relative path, four before an absolute one.", help=f"sqlite:///{host}{path}"
        )
    file = path[1:]
    if not file or file.endswith("/") or "\x00" in file:
        raise UrlInvalid(url, why="It names no file.", help="For example: sqlite:///beltline.db")
    return SqliteEngine(file, durability=Durability.DISK if level is None else level, clock=clock, max_body=max_body, audit=audit)


def _postgres(url: str, host: str, path: str, level: Durability | None, audit: bool, max_body: int, clock: Clock | None) -> Engine:  # noqa: ARG001 - one shape
    shown = _without_password(url)
    if level is Durability.MEMORY:
        raise UrlInvalid(shown, why="PostgreSQL always writes its log.", help="Use durability=disk or durability=os.")
    try:
        from beltline.engines.postgres import PostgresEngine
    except ImportError as error:
        if error.name is None or not error.name.startswith("psycopg"):
            raise
        raise ExtraMissing(extra="postgres", needed_for="The PostgreSQL engine") from None
    return PostgresEngine(url, durability=Durability.DISK if level is None else level, clock=clock, max_body=max_body, shown=shown)


_OPTIONS: dict[str, tuple[str, ...] | None] = {"memory": ("durability",), "sqlite": ("durability", "audit"), "postgresql": None, "postgres": None}
_MAKERS: dict[str, Callable[[str, str, str, Durability | None, bool, int, Clock | None], Engine]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "postgresql": _postgres,
    "postgres": _postgres,
}
