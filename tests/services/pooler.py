"""pgbouncer in transaction mode: between two transactions of one client the server's session may be another.

What such a pooler takes away is what an engine behind it may not use: LISTEN, prepared statements by name, SET for a session, advisory locks
for a session, temporary tables. Its settings are those of a stock installation; only the pool is small, so that clients do meet.
"""

import re
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from tests.services.keeper import as_unprivileged, environment, give, keeper
from tests.services.ports import HOST, free_port
from tests.services.postgres import DEADLINE_S, USER, PostgresServer, ServerFailedError

PORT_TRIES = 5


def missing() -> str:
    """Why no pooler can be started here; empty when one can."""
    return "" if program() else "pgbouncer is not installed (Debian, Ubuntu: apt install pgbouncer; macOS: brew install pgbouncer)"


def program() -> str | None:
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/bin")


class Pooler:
    """One pgbouncer in front of `server`; `with Pooler(server) as pooler: connect(pooler.url(database))`.

    sessions  how many of the server's sessions all clients of one database share
    """

    def __init__(self, server: PostgresServer, *, sessions: int = 4, session: bool = False) -> None:
        self.server = server
        self.sessions = sessions
        self.session = session
        self.folder = keeper().folder("pooler")
        give(self.folder)
        self.log = self.folder / "pooler.log"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        keeper().servers.append(self)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @property
    def pids(self) -> list[int]:
        return [self.process.pid] if self.process else []

    def start(self) -> None:
        command = program()
        if command is None:
            raise ServerFailedError(missing())
        for _ in range(PORT_TRIES):
            config = self.write_config()
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    [command, str(config)],
                    cwd=self.folder,
                    env=environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    **as_unprivileged(),
                )
            if self.ready():
                return
            self.process.wait(DEADLINE_S)
            self.process = None
            self.port = free_port()  # somebody was faster
        raise ServerFailedError(f"pgbouncer did not come up:\n{self.log.read_text(errors='replace')}")

    def write_config(self) -> Path:
        config = self.folder / "pgbouncer.ini"
        config.write_text(
            f"[databases]\n* = host={HOST} port={self.server.port} user={USER}\n"
            f"[pgbouncer]\nlisten_addr = {HOST}\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = any\nadmin_users = {USER}\n"
            f"pool_mode = transaction\ndefault_pool_size = {self.sessions}\nmax_client_conn = 200\n"
        )
        return config

    def ready(self) -> bool:
        """Whether it answers; False when it ended instead."""
        end = time.monotonic() + DEADLINE_S
        while time.monotonic() < end:
            assert self.process is not None
            if self.process.poll() is not None:
                return False
            try:
                self.show("VERSION")
            except psycopg.OperationalError:
                time.sleep(0.01)
            else:
                return True
        raise ServerFailedError(f"pgbouncer did not answer within {DEADLINE_S} s:\n{self.log.read_text(errors='replace')}")

    def url(self, database: str = "postgres", **parameters: object) -> str:
        """As PostgresServer.url, through the pooler."""
        return self.server.url(database, port=self.port, **parameters)

    def show(self, what: str) -> list[dict[str, object]]:
        """A table of pgbouncer's own console: POOLS, SERVERS, CLIENTS, CONFIG, VERSION."""
        assert re.fullmatch(r"[A-Z]+", what)
        # The console speaks only the simple protocol and knows no transaction.
        with psycopg.connect(
            self.url("pgbouncer"), autocommit=True, cursor_factory=psycopg.ClientCursor, row_factory=psycopg.rows.dict_row
        ) as console:
            return console.execute(f"SHOW {what}".encode()).fetchall()

    def close(self) -> None:
        if self not in keeper().servers:
            return
        keeper().servers.remove(self)
        if self.process:
            self.process.kill()  # it keeps nothing
            self.process.wait(DEADLINE_S)
            self.process = None
        shutil.rmtree(self.folder, ignore_errors=True)
