"""What a test asks for.

    postgres       a running server, one after the other of those we test on; shared by the whole session: never restart it
    postgres_url   a new database on it, dropped afterwards; a connection still open then fails the test
    own_postgres   a server of the test's own, stopped afterwards: restart it, kill it, give it a standby
    pooler_url     a new database, through pgbouncer in transaction mode

A server starts when the first test asks for it and stops with the session. One that cannot be started here skips its tests with the reason
and fails them in CI.
"""

import os
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import pytest

from tests.services import keeper, pooler
from tests.services.discovery import Found, servers
from tests.services.pooler import Pooler
from tests.services.postgres import PostgresServer, fresh_database

GRACE_S = 5.0  # a backend needs a moment to see that its client has gone
VERSIONS = [pytest.param(found, id=f"postgres{found.name}") for found in servers()]

running: dict[str, PostgresServer] = {}
poolers: dict[str, Pooler] = {}


def pytest_configure(config: pytest.Config) -> None:
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]  # a developer's PGOPTIONS or PGSSLMODE would reach every client of the tests


def pytest_unconfigure(config: pytest.Config) -> None:
    keeper.close()
    running.clear()
    poolers.clear()


@pytest.fixture(scope="session", params=VERSIONS)
def postgres(request: pytest.FixtureRequest) -> PostgresServer:
    found: Found = request.param
    if found.bin is None:
        refuse("PostgreSQL", found.reason)
    if found.name not in running:
        server = PostgresServer(found, session=True)
        server.start()
        running[found.name] = server
    return running[found.name]


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    url = fresh_database(postgres)
    name = url.rpartition("/")[2]
    yield url
    left = still_there(lambda: postgres.connections(name))
    postgres.drop_database(name)
    if left:
        pytest.fail(f"connections left behind: {left}", pytrace=False)


@pytest.fixture(params=VERSIONS)
def own_postgres(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    found: Found = request.param
    if found.bin is None:
        refuse("PostgreSQL", found.reason)
    with PostgresServer(found) as server:
        yield server


@pytest.fixture
def pooler_url(postgres: PostgresServer) -> Iterator[str]:
    if reason := pooler.missing():
        refuse("pgbouncer", reason)
    if (between := poolers.get(postgres.found.name)) is None:
        between = Pooler(postgres, session=True)
        between.start()
        poolers[postgres.found.name] = between
    name = postgres.create_database()
    yield between.url(name)
    left = still_there(lambda: [str(client) for client in between.show("CLIENTS") if client["database"] == name])
    postgres.drop_database(name)  # the pooler's own connections to it end here
    if left:
        pytest.fail(f"connections left behind: {left}", pytrace=False)


def still_there(look: Callable[[], list[str]]) -> list[str]:
    end = time.monotonic() + GRACE_S
    while (left := look()) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def refuse(name: str, reason: str) -> NoReturn:
    from tests.conftest import need_service  # that file registers this one

    need_service(name, reason)
