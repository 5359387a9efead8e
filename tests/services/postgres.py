"""A real PostgreSQL for one session of tests, or for one test.

    initdb once per version   its folder is the mould; every server starts from a copy (tens of milliseconds instead of most of a second)
    in memory                 fsync stays on, for the engine refuses a server without it, and costs nothing; `disk=` puts one in a real folder
    the same port for life    a restarted server is found where it was

The superuser `beltline` needs no password, on loopback only. Every wait has a deadline; a server that does not come up says why, with the end
of its log.
"""

import contextlib
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlencode

import psutil
import psycopg

from tests.services.discovery import Found, servers
from tests.services.keeper import all_gone, as_unprivileged, environment, give, keeper
from tests.services.ports import HOST, free_port

USER = "beltline"
DEADLINE_S = 30.0
PORT_TRIES = 5
SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
SETTINGS = {
    "listen_addresses": HOST,
    "unix_socket_directories": "",
    "max_connections": "200",
    "fsync": "on",
    "wal_level": "replica",
    "max_wal_senders": "8",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_line_prefix": "%m [%p] %a ",
}
IN_MEMORY = {"max_wal_size": "256MB"}  # the log's files stand in memory too

Mode = Literal["smart", "fast", "immediate"]


class ServerFailedError(Exception):
    """A server did not come up, go down or answer in its time."""


class PostgresServer:
    """One server, stopped at first. `with PostgresServer() as server:` starts it and ends it for good.

    found     which PostgreSQL (default: the first that is here)
    settings  more of postgresql.conf, over ours
    disk      a folder on a real disk for the data; None: in memory where there is room
    session   it lives as long as this process: the checks for what a test left behind leave it out
    """

    def __init__(
        self, found: Found | None = None, *, settings: Mapping[str, str] | None = None, disk: Path | None = None, session: bool = False
    ) -> None:
        found = found or next((found for found in servers() if found.bin), servers()[-1])
        if found.bin is None:
            raise ServerFailedError(found.reason)
        self.found = found
        self.version = found.version
        self.session = session
        self.settings = SETTINGS | ({} if disk else IN_MEMORY) | dict(settings or {})
        self.folder = keeper().folder(f"postgres{found.name}", under=disk)
        give(self.folder)
        self.data = self.folder / "data"
        self.log = self.folder / "server.log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self.started = False
        self.killed = False
        self.settled_port = False
        keeper().servers.append(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------------ up and down
    @property
    def pid(self) -> int:
        assert self.process is not None, "the server is down"
        return self.process.pid

    @property
    def pids(self) -> list[int]:
        return [self.process.pid] if self.process else []

    def start(self, deadline_s: float = DEADLINE_S) -> None:
        """Start and wait until it takes connections. Raises ServerFailedError with the end of the log."""
        if self.process:
            return
        if not self.data.exists():
            run("cp", "-a", str(mould(self.found)), str(self.data), cwd=self.folder)
        for tries_left in reversed(range(PORT_TRIES)):
            self.launch()
            try:
                self.wait_ready(deadline_s)
            except ServerFailedError as error:
                self.end_process()
                # Another process took the port between our choice and the start; once it has been ours it never changes.
                if self.settled_port or not tries_left or "could not bind" not in str(error):
                    raise
                self.port = free_port()
                self.log.unlink()
            else:
                break
        self.settled_port = True
        self.killed = False

    def launch(self) -> None:
        settings = self.settings | {"port": str(self.port)}
        command = [str(program(self.found, "postgres")), "-D", str(self.data)]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                cwd=self.folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal is for us; we end the server in our order
                **as_unprivileged(),
            )

    def wait_ready(self, deadline_s: float = DEADLINE_S) -> None:
        """Until it takes connections (a standby: read-only ones)."""
        self.until(lambda: self.status() in ("ready", "standby"), "did not come up", deadline_s)

    def status(self) -> str:
        """What the server itself writes into its pid file: starting, stopping, ready, standby; empty when that is not of this start."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return ""
        return lines[7].strip() if self.process and len(lines) > 7 and lines[0].strip() == str(self.process.pid) else ""

    def stop(self, mode: Mode = "fast", deadline_s: float = DEADLINE_S) -> None:
        """fast: rolls back and writes everything; immediate: as after a power cut, the next start recovers; smart: waits for the clients."""
        if not self.process:
            return
        self.process.send_signal(SIGNALS[mode])
        try:
            self.process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise ServerFailedError(f"PostgreSQL {self.found.name} did not stop ({mode}) within {deadline_s} s:\n{self.tail()}") from None
        self.process = None

    def restart(self, mode: Mode = "fast", deadline_s: float = DEADLINE_S) -> None:
        self.stop(mode, deadline_s)
        self.start(deadline_s)

    def kill(self) -> None:
        """SIGKILL to the server's first process; the others notice and end. Returns when all are gone."""
        if not self.process:
            return
        try:
            others = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            others = []
        self.process.kill()
        self.process.wait(DEADLINE_S)
        self.process = None
        self.killed = True
        if not all_gone(others, DEADLINE_S / 2):
            for process in others:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            all_gone(others, DEADLINE_S / 2)

    def close(self) -> None:
        """End it and delete its folder; twice is once."""
        if self not in keeper().servers:
            return
        keeper().servers.remove(self)
        try:
            if self.killed:
                self.start()  # what a kill leaves in the kernel's shared memory only a start of the same data takes away
            self.stop("immediate")
        finally:
            self.end_process()
            shutil.rmtree(self.folder, ignore_errors=True)

    def end_process(self) -> None:
        if self.process and self.process.poll() is None:
            self.kill()
        self.process = None

    def until(self, holds: Callable[[], bool], otherwise: str, deadline_s: float = DEADLINE_S) -> None:
        end = time.monotonic() + deadline_s
        while not holds():
            if self.process is None or self.process.poll() is not None or time.monotonic() > end:
                raise ServerFailedError(f"PostgreSQL {self.found.name} {otherwise} within {deadline_s} s:\n{self.tail()}")
            time.sleep(0.01)

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    # ------------------------------------------------------------------------------------------------ databases
    def url(self, database: str = "postgres", *, port: int | None = None, **parameters: object) -> str:
        """postgresql://beltline@127.0.0.1:port/database?…; `port` of a proxy or pooler in between."""
        query = f"?{urlencode(parameters)}" if parameters else ""
        return f"postgresql://{USER}@{HOST}:{port or self.port}/{database}{query}"

    def execute(self, statement: str, parameters: tuple[object, ...] = (), *, database: str = "postgres") -> list[tuple[Any, ...]]:
        """One statement on a connection of its own, outside any transaction."""
        with psycopg.connect(self.url(database, connect_timeout=int(DEADLINE_S)), autocommit=True) as connection:
            cursor = connection.execute(statement.encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def create_database(self, name: str = "", *, template: str = "template1") -> str:
        """Returns the name. `template`: a database made before, to which nobody is connected; its schema comes along."""
        name = name or f"t_{secrets.token_hex(6)}"
        # Measured in memory: 9 to 12 ms; through the log (the default since 15) 16 to 19 ms. Before 15 there is no other way.
        strategy = " STRATEGY file_copy" if self.version >= (15,) else ""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"{strategy}')
        return name

    def drop_database(self, name: str) -> None:
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def connections(self, database: str) -> list[str]:
        """What clients are connected to `database`, in words."""
        rows = self.execute(
            "SELECT pid, application_name, state, left(query, 80) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'",
            (database,),
        )
        return [f"backend {pid} ({application or 'no name'}) {state}: {query}" for pid, application, state, query in rows]

    # ------------------------------------------------------------------------------------------------ a second one behind it
    def standby(self, *, synchronous: bool = False) -> "PostgresServer":
        """A running copy that streams from this one. synchronous: from now on a commit here waits for it."""
        copy = PostgresServer(
            self.found, settings={name: value for name, value in self.settings.items() if SETTINGS.get(name) != value}, session=self.session
        )
        try:
            source = f"host={HOST} port={self.port} user={USER} application_name=standby{copy.port}"
            options = ["--dbname", source, "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
            run(str(program(self.found, "pg_basebackup")), "--pgdata", str(copy.data), *options, cwd=copy.folder)
            copy.start()
            streams = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND application_name = %s"
            copy.until(lambda: bool(self.execute(streams, (f"standby{copy.port}",))), "did not stream")
            if synchronous:
                self.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
                self.execute("SELECT pg_reload_conf()")
                waits = "SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync' AND application_name = %s"
                copy.until(lambda: bool(self.execute(waits, (f"standby{copy.port}",))), "did not become synchronous")
        except BaseException:
            copy.close()
            raise
        return copy

    def promote(self) -> None:
        """Make a standby a primary. Returns when it takes writes."""
        self.execute("SELECT pg_promote(true, %s)", (int(DEADLINE_S),))
        self.until(lambda: self.execute("SELECT pg_is_in_recovery()") == [(False,)], "did not become a primary")


def fresh_database(server: PostgresServer, **parameters: object) -> str:
    """The URL of a new empty database; `parameters` go into it (schema="second", durability="disk")."""
    return server.url(server.create_database(), port=None, **parameters)


# ---------------------------------------------------------------------------------------------------- programs and the mould
def mould(found: Found) -> Path:
    """A data folder as initdb leaves it, made once in this process."""
    assert found.bin is not None
    made, key = keeper().made, ("mould", found.bin)
    if key not in made:
        folder = keeper().folder(f"mould{found.name}")
        give(folder)
        locale = "C" if sys.platform == "darwin" else "C.UTF-8"
        options = ["--auth=trust", f"--username={USER}", "--encoding=UTF8", f"--locale={locale}", "--no-sync"]
        run(str(program(found, "initdb")), "-D", str(folder / "data"), *options, cwd=folder)
        made[key] = folder / "data"
    return made[key]


def program(found: Found, name: str) -> Path:
    """A program of this PostgreSQL that the servers' user can start: a clone in a root-only folder is closed to it, so the wheel is copied out."""
    assert found.bin is not None
    made, key = keeper().made, ("programs", found.bin)
    if key not in made:
        made[key] = found.bin
        if not starts(found.bin / "postgres"):
            # Beside the package stand the libraries that the wheel brings along; the programs look for them by the way from here to there.
            package, folder = found.bin.parent.parent, keeper().folder(f"program{found.name}")
            for part in package.parent.glob(f"{package.name}*"):
                if part.name in (package.name, f"{package.name}.libs"):
                    shutil.copytree(part, folder / part.name, symlinks=True, ignore=shutil.ignore_patterns("include", "__pycache__"))
            made[key] = folder / found.bin.relative_to(package.parent)
    return made[key] / name


def starts(path: Path) -> bool:
    try:
        return subprocess.run([path, "--version"], cwd="/", env=environment(), capture_output=True, check=False, **as_unprivileged()).returncode == 0
    except OSError:
        return False


def run(*command: str, cwd: Path) -> None:
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=2 * DEADLINE_S,
            **as_unprivileged(),
        )
    except subprocess.TimeoutExpired as late:
        raise ServerFailedError(f"{Path(command[0]).name} took longer than {late.timeout} s") from None
    if done.returncode:
        raise ServerFailedError(f"{Path(command[0]).name} failed with {done.returncode}:\n{done.stderr.decode(errors='replace')}")
