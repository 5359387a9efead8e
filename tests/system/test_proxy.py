"""Each fault of tests/services/proxy.py happens, and only that one: first to plain bytes, then to requests of PostgreSQL."""

import socket
import struct
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Self

import psycopg
import pytest

from tests.services.ports import HOST, free_port
from tests.services.proxy import Proxy, Way
from tests.services.wire import Plain, Postgres

BOUND_S = 10.0
SHORT_S = 0.2  # what does not come within it is taken as withheld


class Echo:
    """Sends back what it gets, keeps it, and notes how each connection ended: "end" or "reset"."""

    def __init__(self) -> None:
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.got = bytearray()
        self.ends: list[str] = []
        self.news = threading.Condition()
        self.threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.spawn(self.accept)
        return self

    def __exit__(self, *error: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(BOUND_S)
        self.listener.close()

    def spawn(self, work, *arguments) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self.threads.append(thread)
        thread.start()

    def accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.spawn(self.serve, connection)

    def serve(self, connection: socket.socket) -> None:
        end = "end"
        with connection:
            try:
                while data := connection.recv(65_536):
                    with self.news:
                        self.got += data
                        self.news.notify_all()
                    connection.sendall(data)
            except OSError:
                end = "reset"
        with self.news:
            self.ends.append(end)
            self.news.notify_all()

    def wait(self, holds) -> None:
        with self.news:
            assert self.news.wait_for(holds, BOUND_S), (self.ends, len(self.got))


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        yield server


@pytest.fixture
def proxy(echo: Echo) -> Iterator[Proxy]:
    with Proxy(echo.port, wire=Plain) as proxy:
        yield proxy


@contextmanager
def client(proxy: Proxy) -> Iterator[socket.socket]:
    with socket.create_connection((HOST, proxy.port), BOUND_S) as connection:
        yield connection


def receive(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size and (more := connection.recv(size - len(data))):
        data += more
    return data


def ask(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    return receive(connection, len(data))


def nothing_comes(connection: socket.socket) -> bool:
    connection.settimeout(SHORT_S)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(BOUND_S)
    return False


def test_without_orders_every_byte_arrives_and_the_end_too(echo, proxy):
    text = bytes(range(256)) * 4_000
    with client(proxy) as one, client(proxy) as other, ThreadPoolExecutor() as pool:
        answer = pool.submit(receive, one, len(text))
        one.sendall(text)
        assert ask(other, b"meanwhile") == b"meanwhile"
        assert answer.result(BOUND_S) == text
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1) == b""
        assert ask(other, b"still") == b"still"
    echo.wait(lambda: echo.ends == ["end", "end"])


def test_delayed_bytes_come_later_and_in_order(echo, proxy):
    with client(proxy) as one:
        proxy.delay(60.0, Way.TO_CLIENT)
        one.sendall(b"first")
        echo.wait(lambda: echo.got == b"first")
        assert nothing_comes(one)
        one.sendall(b"second")
        proxy.pass_through()
        assert receive(one, 11) == b"firstsecond"


def test_a_throttled_line_carries_a_part_at_a_time(echo, proxy):
    with client(proxy) as one:
        proxy.throttle(100.0, Way.TO_SERVER)
        one.sendall(b"x" * 100_000)
        echo.wait(lambda: len(echo.got) > 3)
        assert len(echo.got) < 50_000
        proxy.pass_through()
        assert receive(one, 100_000) == b"x" * 100_000


@pytest.mark.parametrize("way", Way)
def test_a_black_hole_swallows_one_direction_until_it_is_healed(echo, proxy, way):
    with client(proxy) as one:
        assert ask(one, b"hello") == b"hello"
        proxy.blackhole(way)
        one.sendall(b"lost?")
        if way is Way.TO_CLIENT:
            echo.wait(lambda: echo.got == b"hellolost?")
        assert nothing_comes(one)
        assert (b"lost?" in echo.got) is (way is Way.TO_CLIENT)
        proxy.pass_through()
        assert receive(one, 5) == b"lost?"


def test_a_black_hole_hides_that_the_client_has_gone(echo, proxy):
    with client(proxy) as one:
        assert ask(one, b"hello") == b"hello"
        proxy.blackhole()
    with client(proxy) as other:
        other.sendall(b"nobody hears")
        assert nothing_comes(other)
    assert echo.ends == []
    proxy.pass_through()
    echo.wait(lambda: len(echo.ends) == 2)


def test_a_cut_is_an_end_for_both_sides(echo, proxy):
    with client(proxy) as one:
        assert ask(one, b"hello") == b"hello"
        proxy.cut()
        assert one.recv(1) == b""
        echo.wait(lambda: echo.ends == ["end"])
    with client(proxy) as next_one:
        assert ask(next_one, b"again") == b"again"


def test_a_reset_is_an_error_for_both_sides(echo, proxy):
    with client(proxy) as one:
        assert ask(one, b"hello") == b"hello"
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            one.recv(1)
        echo.wait(lambda: echo.ends == ["reset"])


def test_a_clients_own_reset_reaches_the_server_as_one(echo, proxy):
    with client(proxy) as one:
        assert ask(one, b"hello") == b"hello"
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    echo.wait(lambda: echo.ends == ["reset"])


def test_a_connection_is_cut_after_so_many_bytes_to_the_server(echo, proxy):
    with client(proxy) as one:
        proxy.cut_after(7, Way.TO_SERVER)
        one.sendall(b"0123456789")
        while one.recv(16):
            pass
        echo.wait(lambda: len(echo.ends) == 1)
        assert echo.got == b"0123456"


def test_a_connection_is_cut_after_so_many_bytes_to_the_client(echo, proxy):
    with client(proxy) as one:
        assert ask(one, b"hello") == b"hello"
        proxy.cut_after(7, Way.TO_CLIENT)
        one.sendall(b"0123456789")
        assert receive(one, 10) == b"0123456"
        assert echo.got == b"hello0123456789"
    with client(proxy) as next_one:
        assert ask(next_one, b"longer than seven") == b"longer than seven"


def test_a_half_closed_connection_still_carries_the_other_direction(echo, proxy):
    with client(proxy) as one:
        assert ask(one, b"hello") == b"hello"
        proxy.half_close(Way.TO_CLIENT)
        assert one.recv(1) == b""
        one.sendall(b"you still hear me")
        echo.wait(lambda: echo.got == b"helloyou still hear me")


def test_held_replies_are_there_and_come_later_or_never(echo, proxy):
    with client(proxy) as one:
        proxy.hold_replies()
        one.sendall(b"asked")
        proxy.wait_held()
        assert echo.got == b"asked"
        assert nothing_comes(one)
        proxy.pass_through()
        assert receive(one, 5) == b"asked"
        proxy.hold_replies()
        one.sendall(b"never")
        proxy.wait_held()
        proxy.cut()
        proxy.pass_through()
        assert one.recv(1) == b""
    assert echo.got == b"askednever"


def test_nobody_listens_while_it_is_down(echo, proxy):
    with client(proxy) as one:
        assert ask(one, b"hello") == b"hello"
        proxy.down()
        with pytest.raises(ConnectionResetError):
            one.recv(1)
    with pytest.raises(ConnectionRefusedError), client(proxy):
        pass
    proxy.up()
    with client(proxy) as next_one:
        assert ask(next_one, b"again") == b"again"


def test_a_target_that_is_not_there_ends_the_client():
    with Proxy(free_port(), wire=Plain) as proxy, client(proxy) as one, suppress(ConnectionResetError):
        assert one.recv(1) == b""


# ---------------------------------------------------------------------------------------------------- requests of PostgreSQL
@pytest.fixture
def before_postgres(postgres, postgres_url) -> Iterator[tuple[Proxy, str]]:
    """A proxy in front of a database with the table `t`, and the URL through it."""
    with psycopg.connect(postgres_url) as direct:
        direct.execute("CREATE TABLE t (number integer)")
    with Proxy(postgres.port) as proxy:
        yield proxy, postgres.url(postgres_url.rpartition("/")[2], port=proxy.port)


def numbers(url: str) -> list[int]:
    with psycopg.connect(url) as direct:
        return [number for (number,) in direct.execute("SELECT number FROM t ORDER BY number")]


INSERT = "INSERT INTO t SELECT %s"


def test_a_request_cut_before_it_arrives_has_no_effect(before_postgres, postgres_url):
    proxy, url = before_postgres
    connection = psycopg.connect(url, autocommit=True)
    connection.execute(INSERT, (1,))
    proxy.cut_at_request(2, when="before")
    connection.execute(INSERT, (2,))
    with pytest.raises(psycopg.OperationalError):
        connection.execute(INSERT, (3,))
    connection.close()
    assert numbers(postgres_url) == [1, 2]
    with psycopg.connect(url, autocommit=True) as next_one:
        next_one.execute(INSERT, (4,))
    assert numbers(postgres_url) == [1, 2, 4]


@pytest.mark.parametrize("rows", [1, 20_000])
def test_a_request_cut_after_it_was_answered_has_its_effect_and_the_client_does_not_know(before_postgres, postgres_url, rows):
    """A long answer begins to arrive before its transaction commits: the proxy waits for the end of it."""
    proxy, url = before_postgres
    connection = psycopg.connect(url, autocommit=True)
    proxy.cut_at_request(2, when="after")
    connection.execute(INSERT, (1,))
    with pytest.raises(psycopg.OperationalError):
        connection.execute("INSERT INTO t SELECT generate_series(2, %s) RETURNING number, repeat('x', 100)", (rows + 1,))
    connection.close()
    assert numbers(postgres_url) == list(range(1, rows + 2))


def test_a_pipeline_is_cut_at_its_second_request(before_postgres, postgres_url):
    proxy, url = before_postgres
    connection = psycopg.connect(url, autocommit=True)
    proxy.cut_at_request(2, when="after")

    def two_requests() -> None:
        with connection.pipeline() as pipeline:
            answers.append(connection.execute(INSERT, (1,)))
            pipeline.sync()
            answers.append(connection.execute(INSERT, (2,)))
            pipeline.sync()

    answers = []
    with pytest.raises(psycopg.OperationalError):
        two_requests()
    connection.close()
    assert answers[0].rowcount == 1, "the answer before the cut one came through"
    assert numbers(postgres_url) == [1, 2]


def test_a_commit_whose_answer_was_held_and_lost_has_happened(before_postgres, postgres_url):
    proxy, url = before_postgres
    connection = psycopg.connect(url)
    connection.execute(INSERT, (1,))
    proxy.hold_replies()
    with ThreadPoolExecutor() as pool:
        commit = pool.submit(connection.commit)
        proxy.wait_held()
        assert numbers(postgres_url) == [1]
        assert not commit.done()
        proxy.cut()
        with pytest.raises(psycopg.OperationalError):
            commit.result(BOUND_S)
    connection.close()


def test_copying_counts_as_one_request(before_postgres, postgres_url):
    proxy, url = before_postgres
    connection = psycopg.connect(url, autocommit=True)
    proxy.cut_at_request(2, when="before")
    with connection.cursor().copy("COPY t FROM STDIN") as copy:
        for number in range(3):
            copy.write_row((number,))
    with pytest.raises(psycopg.OperationalError):
        connection.execute(INSERT, (9,))
    connection.close()
    assert numbers(postgres_url) == [0, 1, 2]


def test_messages_are_found_however_the_bytes_are_torn():
    wire = Postgres()
    question, startup = struct.pack("!ii", 8, 80_877_103), struct.pack("!ii4s", 12, 196_608, b"a\0b\0")
    parse, sync, query, goodbye = b"P\0\0\0\x08abcd", b"S\0\0\0\x04", b"Q\0\0\0\x06s\0", b"X\0\0\0\x04"
    sent = question + startup + parse + sync + query + goodbye
    found = [piece for byte in sent for piece in wire.from_client(bytes([byte]))]
    assert [piece.data for piece in found] == [question, startup, parse, sync, query, goodbye]
    assert [(piece.begins, piece.ends) for piece in found[2:]] == [(True, False), (False, True), (True, True), (False, False)]
    answered = b"N" + b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I"
    found = [piece for byte in answered for piece in wire.from_server(bytes([byte]))]
    assert [(piece.data[:1], piece.ends) for piece in found] == [(b"N", False), (b"R", False), (b"Z", True)]
