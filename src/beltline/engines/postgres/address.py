"""What an engine URL says: a libpq connection URI, with a few options of ours among its parameters.

postgresql://user:password@host:5432/database?schema=beltline&pool=4
postgresql://one,two/database                                          several servers: the one that can be written is used

schema    where the tables are (default beltline)              pool      connections at most per event loop (default 4)
listen    0: no LISTEN, polling alone                          prepare   0: no prepared statements (a pooler that does not know them is noticed anyway)
timeout   seconds after which an answer is given up (30)       durability   disk (default) or os
Everything else (sslmode, target_session_attrs, application_name, …) is libpq's. Source: PostgreSQL documentation, 34.1.1.
"""

import math
import re
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from msgspec import Struct

from beltline.core.errors import UrlInvalid

OURS = ("schema", "pool", "listen", "prepare", "timeout", "durability")
# Defaults of ours for libpq: a server that has vanished without a word is noticed in seconds, not in hours.
LIBPQ = {
    "application_name": "beltline",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "15000",
}
CONNECT_S = 5.0  # for each server of the URL
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,47}")


class Address(Struct, frozen=True, kw_only=True):
    """`conninfo` is for libpq and holds the password; `shown` is for people and does not."""

    conninfo: str
    shown: str
    schema: str = "beltline"
    pool: int = 4
    listen: bool = True
    prepare: bool = True
    timeout_s: float = 30.0


def read(url: str, shown: str) -> Address:
    """Raises UrlInvalid. `shown`: the URL without its password."""
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    ours = {name: options.pop(name) for name in OURS if name in options}
    schema = ours.get("schema", "beltline")
    if _SCHEMA.fullmatch(schema) is None or schema.startswith("pg_"):
        raise UrlInvalid(shown, why=f"schema = {schema!r} is not allowed.", help="Use 1 to 48 of a-z, 0-9 and _, beginning with a letter.")
    if not unquote(parts.path).strip("/") and "dbname" not in options and "service" not in options:
        raise UrlInvalid(shown, why="It names no database.", help="For example: postgresql://localhost/app")
    timeout_s = _number(shown, "timeout", ours.get("timeout", "30"), 0.1, 3600)
    settings = {**LIBPQ, "connect_timeout": str(math.ceil(min(CONNECT_S, timeout_s))), **options}
    if "," in parts.netloc:
        settings.setdefault("target_session_attrs", "read-write")
    conninfo = urlunsplit(("postgresql", parts.netloc, parts.path, urlencode(settings), ""))
    return Address(
        conninfo=conninfo,
        shown=shown,
        schema=schema,
        pool=int(_number(shown, "pool", ours.get("pool", "4"), 1, 1000)),
        listen=_switch(shown, "listen", ours.get("listen", "1")),
        prepare=_switch(shown, "prepare", ours.get("prepare", "1")),
        timeout_s=timeout_s,
    )


def _number(shown: str, name: str, text: str, least: float, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not least <= number <= most:
        raise UrlInvalid(shown, why=f"{name} = {text!r} is not allowed.", help=f"Use a number from {least:g} to {most:g}.")
    return number


def _switch(shown: str, name: str, text: str) -> bool:
    if text not in ("0", "1"):
        raise UrlInvalid(shown, why=f"{name} = {text!r} is not allowed.", help="Use 0 or 1.")
    return text == "1"
