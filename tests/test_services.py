"""The servers of tests/services are what the tests take them for: real, durable where they say so, apart from each other, and gone afterwards."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import psycopg
import pytest

from tests.conftest import processes
from tests.services import keeper
from tests.services.discovery import servers, system
from tests.services.ports import HOST, first_client_port, free_port
from tests.services.postgres import PostgresServer, ServerFailedError, fresh_database

ROOT = Path(__file__).resolve().parent.parent
BOUND_S = 30.0


def until(holds) -> None:
    end = time.monotonic() + BOUND_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def rows(server: PostgresServer) -> list[int]:
    return [number for (number,) in server.execute("SELECT number FROM t ORDER BY number")]


def test_the_server_is_the_version_the_test_is_named_after(postgres, request):
    [(number,)] = postgres.execute("SELECT current_setting('server_version_num')::int / 10000")
    assert request.node.name.endswith(f"[postgres{number}]")
    assert number >= 13


def test_a_server_writes_through_and_takes_many_connections(postgres):
    settings = dict(postgres.execute("SELECT name, setting FROM pg_settings"))
    assert (settings["fsync"], settings["synchronous_commit"], settings["full_page_writes"]) == ("on", "on", "on")
    assert int(settings["max_connections"]) >= 200
    assert settings["listen_addresses"] == HOST
    assert settings["unix_socket_directories"] == ""


def test_every_test_has_an_empty_database_of_its_own(postgres, postgres_url):
    other = fresh_database(postgres)
    with psycopg.connect(postgres_url) as one, psycopg.connect(other) as two:
        one.execute("CREATE TABLE t (number integer)")
        one.commit()
        assert two.execute("SELECT to_regclass('t')").fetchone() == (None,)
    postgres.drop_database(other.rpartition("/")[2])


def test_a_database_may_be_made_from_another(postgres, postgres_url):
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE TABLE t (number integer)")
    name = postgres.create_database(template=postgres_url.rpartition("/")[2])
    assert postgres.execute("SELECT count(*) FROM t", database=name) == [(0,)]
    postgres.drop_database(name)


def test_a_forgotten_connection_is_found(postgres, postgres_url):
    name = postgres_url.rpartition("/")[2]
    with psycopg.connect(postgres_url, application_name="forgotten"):
        [left] = postgres.connections(name)
        assert "(forgotten)" in left
    until(lambda: postgres.connections(name) == [])


def test_parameters_stand_in_the_url(postgres):
    assert postgres.url("app") == f"postgresql://beltline@127.0.0.1:{postgres.port}/app"
    assert postgres.url("app", port=1, schema="a b", pool=4) == "postgresql://beltline@127.0.0.1:1/app?schema=a+b&pool=4"


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_what_was_committed_survives_a_restart_at_the_same_place(own_postgres, how):
    port, pid = own_postgres.port, own_postgres.pid
    own_postgres.execute("CREATE TABLE t (number integer)")
    own_postgres.execute("INSERT INTO t VALUES (1)")
    open_one = psycopg.connect(own_postgres.url())
    open_one.execute("INSERT INTO t VALUES (2)")
    if how == "kill":
        own_postgres.kill()
        assert not psutil.pid_exists(pid)
        own_postgres.start()
    else:
        own_postgres.restart(how)
    with pytest.raises(psycopg.OperationalError):
        open_one.commit()
    open_one.close()
    assert own_postgres.port == port
    assert own_postgres.pid != pid
    assert rows(own_postgres) == [1]


def test_a_stopped_server_refuses_and_comes_back(own_postgres):
    own_postgres.stop()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        psycopg.connect(own_postgres.url())
    own_postgres.stop()
    own_postgres.start()
    own_postgres.start()
    assert own_postgres.execute("SELECT 1") == [(1,)]


def test_a_standby_reads_only_until_it_is_promoted(own_postgres):
    own_postgres.execute("CREATE TABLE t (number integer)")
    with own_postgres.standby(synchronous=True) as standby:
        own_postgres.execute("INSERT INTO t VALUES (1)")
        until(lambda: rows(standby) == [1])
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            standby.execute("INSERT INTO t VALUES (2)")
        own_postgres.kill()
        standby.promote()
        standby.execute("INSERT INTO t VALUES (3)")
        assert rows(standby) == [1, 3]


def test_a_commit_waits_for_a_synchronous_standby(own_postgres):
    own_postgres.execute("CREATE TABLE t (number integer)")
    with own_postgres.standby(synchronous=True) as standby:
        standby.stop()
        with psycopg.connect(own_postgres.url(), autocommit=True) as waiting:
            waiting.execute("SET statement_timeout = 0")
            [(pid,)] = waiting.execute("SELECT pg_backend_pid()").fetchall()
            waiting.pgconn.send_query(b"INSERT INTO t VALUES (1)")
            until(lambda: own_postgres.execute("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND wait_event = 'SyncRep'", (pid,)) == [(1,)])
            standby.start()
            while (result := waiting.pgconn.get_result()) is not None:
                assert result.status == psycopg.pq.ExecStatus.COMMAND_OK


def test_a_server_that_cannot_start_says_why(own_postgres):
    with pytest.raises(ServerFailedError, match="no_such_setting"), PostgresServer(own_postgres.found, settings={"no_such_setting": "1"}):
        pass


def test_a_server_moves_when_its_port_was_taken_before_the_start(own_postgres):
    other = PostgresServer(own_postgres.found)
    other.port = own_postgres.port
    with other:
        assert other.port != own_postgres.port
        assert other.execute("SELECT 1") == [(1,)]


def test_data_may_stand_in_a_named_folder(own_postgres, tmp_path_factory):
    folder = Path(keeper.keeper().folder("test"))
    with PostgresServer(own_postgres.found, disk=folder) as server:
        assert server.data.is_relative_to(folder)
        assert server.execute("SELECT 1") == [(1,)]
    assert list(folder.iterdir()) == []
    folder.rmdir()


def test_ports_lie_outside_the_range_of_client_ports():
    assert {free_port() < first_client_port() for _ in range(20)} == {True}


HOLDER = """
import sys
from tests.services.postgres import PostgresServer
from tests.services.discovery import servers
server = PostgresServer(next(found for found in servers() if found.name == sys.argv[1]))
server.start()
print(server.pid, server.folder, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, None])
def test_a_server_ends_with_the_process_that_started_it(own_postgres, how):
    """Killed or ended by itself: no process and no file of the server stays."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, own_postgres.found.name], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        pid, folder = holder.stdout.readline().split()
        server = psutil.Process(int(pid))
        assert Path(folder, "data").is_dir()
        if how is None:
            holder.stdin.write("go\n")
            holder.stdin.flush()
        else:
            holder.send_signal(how)
        assert holder.wait(BOUND_S) == (-how if how else 0)
        assert keeper.all_gone([server], BOUND_S)
        until(lambda: not Path(folder).exists())
    finally:
        holder.kill()
        holder.communicate()


def test_the_check_for_left_processes_sees_a_tests_own_server_and_leaves_the_sessions_out(own_postgres, postgres):
    seen = processes()
    assert own_postgres.pid in seen
    assert {child.pid for child in psutil.Process(own_postgres.pid).children()} & seen.keys()
    assert not {postgres.pid, keeper.keeper().process.pid} & seen.keys()
    assert not {child.pid for child in psutil.Process(postgres.pid).children()} & seen.keys()


def test_a_server_does_not_run_as_root(postgres):
    assert psutil.Process(postgres.pid).uids().effective != 0


def test_a_named_folder_without_a_server_is_missing_with_its_reason(monkeypatch, tmp_path):
    monkeypatch.setenv("TEST_POSTGRES_BIN", str(tmp_path))
    found = system()
    assert found.bin is None
    assert str(tmp_path) in found.reason


def test_two_servers_are_looked_for():
    assert [found.origin for found in servers()] == ["system", "wheel"]
    assert all((found.bin is None) == bool(found.reason) for found in servers())


# ---------------------------------------------------------------------------------------------------- the pooler
def test_behind_the_pooler_a_session_is_not_ones_own(pooler_url):
    """More clients than sessions, all in turn: each transaction works, and what one client sets another one meets."""
    clients = [psycopg.connect(pooler_url, autocommit=True, prepare_threshold=None) for _ in range(20)]
    backends = {client.execute("SELECT pg_backend_pid()").fetchone() for client in clients}
    assert len(backends) <= 4
    clients[0].execute("SET application_name = 'left behind'")
    names = [client.execute("SELECT current_setting('application_name')").fetchone() for client in clients]
    assert ("left behind",) in names[1:] or names.count(("left behind",)) == 1
    for client in clients:
        client.close()


def test_the_pooler_keeps_a_transaction_on_one_session(pooler_url):
    with psycopg.connect(pooler_url) as one, psycopg.connect(pooler_url) as two:
        first = one.execute("SELECT pg_backend_pid()").fetchone()
        assert two.execute("SELECT pg_backend_pid()").fetchone() != first
        assert one.execute("SELECT pg_backend_pid()").fetchone() == first


def test_the_desk_starts_the_services_and_stops_them(tmp_path):
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    desk = subprocess.Popen(
        [sys.executable, "-m", "tests.services"], cwd=ROOT, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said = []
        while "Ctrl-C" not in (line := desk.stdout.readline()):
            assert line, said
            said.append(line)
        urls = [word for line in said for word in line.split() if word.startswith("postgresql://")]
        for url in urls:
            with psycopg.connect(url, prepare_threshold=None) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
        assert len(urls) >= 1
        desk.send_signal(signal.SIGINT)
        assert desk.wait(BOUND_S) == 0
        for url in urls:
            with pytest.raises(psycopg.OperationalError):
                psycopg.connect(url)
    finally:
        desk.kill()
        desk.communicate()
