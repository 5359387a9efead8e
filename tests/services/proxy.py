"""A TCP proxy that does to a connection what networks do, when a test says so.

    with Proxy(server.port) as proxy:
        connect(server.url(database, port=proxy.port))
        proxy.hold_replies()      # requests go through, answers do not come back
        …                         # a send: the commit happens
        proxy.wait_held()         # … now it has happened
        proxy.cut()               # and the client never learns of it
        proxy.pass_through()

Two tasks for each direction of a connection: one reads and cuts the bytes into pieces (wire.py), one waits for what the test ordered (gate,
delay, rate, budget) and writes them. So bytes that are held back have been seen, which is how `wait_held` knows that an answer is there.
Orders are for all connections, those that come included, until `pass_through`; `cut`, `reset` and `half_close` are for those that exist. The
proxy lives in a thread of its own: a test may block, or run its own loop. An order has taken effect when its call returns.
"""

import asyncio
import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Literal, Self

from tests.services.ports import HOST, free_port
from tests.services.wire import Piece, Postgres, Wire

DEADLINE_S = 10.0
CHUNK_BYTES = 65_536
HELD_BYTES = 32 * 2**20  # more is left in the kernel's buffers, and then with the sender
TICK_S = 0.01
PORT_TRIES = 5
LINGER_NOT = struct.pack("ii", 1, 0)  # close() then sends RST instead of FIN


class Way(Enum):
    """A direction of travel."""

    TO_SERVER = "to server"
    TO_CLIENT = "to client"


BOTH = (Way.TO_SERVER, Way.TO_CLIENT)


class End(Enum):
    """How a side stopped sending."""

    CLOSED = "closed"
    RESET = "reset"


@dataclass(slots=True, kw_only=True)
class Orders:
    """What holds for one direction."""

    open: asyncio.Event
    delay_s: float = 0.0
    rate_bytes_s: float = 0.0  # 0: unlimited
    budget_bytes: int | None = None  # so many more, then the connection is cut


@dataclass(slots=True)
class Lane:
    """One direction of one connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    way: Way
    pieces: deque[tuple[Piece | End, float, int]] = field(default_factory=deque)  # with the instant it came and its answer's number
    size_bytes: int = 0
    came: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    number: int = 0  # of the request or answer that comes next
    ended: bool = False


class Connection:
    def __init__(
        self, wire: Wire, client: tuple[asyncio.StreamReader, asyncio.StreamWriter], server: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    ):
        self.wire = wire
        self.lanes = {Way.TO_SERVER: Lane(client[0], server[1], Way.TO_SERVER), Way.TO_CLIENT: Lane(server[0], client[1], Way.TO_CLIENT)}
        self.over = asyncio.Event()
        self.reset = False
        self.last_answer: int | None = None  # this one is withheld, and its end is ours

    def cut(self, *, reset: bool = False) -> None:
        self.reset = self.reset or reset
        self.over.set()

    def abort(self) -> None:
        for lane in self.lanes.values():
            if self.reset and (raw := lane.writer.get_extra_info("socket")) and raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_NOT)
            lane.writer.transport.abort()


class Proxy:
    """Between clients of `port` and 127.0.0.1:`target_port`. `wire` tells requests apart: Postgres, or Plain for any other protocol."""

    def __init__(self, target_port: int, *, wire: Callable[[], Wire] = Postgres) -> None:
        self.target_port = target_port
        self.wire = wire
        self.port = free_port()
        self.connections: set[Connection] = set()
        self.requests_left: int | None = None
        self.cut_before = True
        self.held = 0  # whole answers that came while replies were held
        self.news = threading.Condition()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.live()), name="proxy")
        self.up_or_failed = threading.Event()
        self.failure: Exception | None = None

    def __enter__(self) -> Self:
        self.thread.start()
        if not self.up_or_failed.wait(DEADLINE_S):
            raise TimeoutError("The proxy did not start")
        if self.failure:
            self.thread.join(DEADLINE_S)
            raise self.failure
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.loop.call_soon_threadsafe(self.stopping.set)
        self.thread.join(DEADLINE_S)
        if self.failure:
            raise self.failure

    # ------------------------------------------------------------------------------------------------ orders
    def pass_through(self) -> None:
        """All faults end; what was held back goes on its way."""

        def order() -> None:
            self.requests_left = None
            for orders in self.orders.values():
                orders.delay_s = orders.rate_bytes_s = 0.0
                orders.budget_bytes = None
                orders.open.set()

        self.order(order)

    def delay(self, delay_s: float, *ways: Way) -> None:
        """Every byte arrives so much later; order and rate stay."""
        self.each(ways, lambda orders: setattr(orders, "delay_s", delay_s))

    def throttle(self, rate_bytes_s: float, *ways: Way) -> None:
        """A narrow line: so many bytes per second on each connection."""
        self.each(ways, lambda orders: setattr(orders, "rate_bytes_s", rate_bytes_s))

    def blackhole(self, *ways: Way) -> None:
        """Nothing gets through and nobody is told, not even that the other side has closed. What was under way arrives after `pass_through`."""
        self.each(ways, lambda orders: orders.open.clear())

    def hold_replies(self) -> None:
        """Requests go through, their answers stay here: `wait_held` knows when they are there, `pass_through` hands them over, `cut` loses them."""

        def order() -> None:
            self.held = 0
            self.orders[Way.TO_CLIENT].open.clear()

        self.order(order)

    def wait_held(self, answers: int = 1, deadline_s: float = DEADLINE_S) -> None:
        """Until so many whole answers have come since `hold_replies`: the commits they answer have happened. Blocks: `asyncio.to_thread` in a loop."""
        with self.news:
            if not self.news.wait_for(lambda: self.held >= answers, deadline_s):
                raise TimeoutError(f"{self.held} of {answers} answers came within {deadline_s} s")

    def cut(self) -> None:
        """Close all connections, on both sides. New ones are taken: `down` for none."""
        self.order(self.cut_all, then=self.none_left)

    def reset(self) -> None:
        """As `cut`, with RST: both sides get "connection reset by peer"."""
        self.order(lambda: self.cut_all(reset=True), then=self.none_left)

    def cut_after(self, size_bytes: int, way: Way) -> None:
        """Cut the connection that carries the `size_bytes`th byte from now in this direction, right behind it. Once."""
        self.each((way,), lambda orders: setattr(orders, "budget_bytes", size_bytes))

    def cut_at_request(self, number: int = 1, *, when: Literal["before", "after"]) -> None:
        """Cut the connection of the `number`th request from now (1: the next), counted over all connections. Once.

        before  the request does not reach the server: certainly no effect
        after   the server has answered it completely, the client sees nothing of the answer: the effect is there
        """

        def order() -> None:
            self.requests_left = number
            self.cut_before = when == "before"

        self.order(order)

    def half_close(self, way: Way) -> None:
        """The receiver of this direction sees its end; the other direction goes on."""

        def order() -> None:
            for connection in self.connections:
                lane = connection.lanes[way]
                lane.pieces.append((End.CLOSED, 0.0, lane.number))
                lane.came.set()

        self.order(order, then=lambda: self.until(lambda: all(connection.lanes[way].ended for connection in self.connections)))

    def down(self) -> None:
        """Nobody listens: connecting is refused, what is connected is reset."""
        self.order(self.listener.close)
        self.reset()

    def up(self) -> None:
        self.order(lambda: None, then=self.listen)

    # ------------------------------------------------------------------------------------------------ in the proxy's thread
    def order(self, change: Callable[[], object], then: Callable[[], Awaitable[None]] | None = None) -> None:
        async def carry_out() -> None:
            change()
            if then:
                await then()

        asyncio.run_coroutine_threadsafe(carry_out(), self.loop).result(DEADLINE_S)

    def each(self, ways: tuple[Way, ...], change: Callable[[Orders], None]) -> None:
        def order() -> None:
            for way in ways or BOTH:
                change(self.orders[way])

        self.order(order)

    def cut_all(self, *, reset: bool = False) -> None:
        for connection in self.connections:
            connection.cut(reset=reset)

    async def none_left(self) -> None:
        gone = set(self.connections)
        await self.until(lambda: not gone & self.connections)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while not holds():  # noqa: ASYNC110 — said of sets and flags that many tasks change; an order is given a few times a test
                await asyncio.sleep(TICK_S / 10)

    async def live(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.stopping = asyncio.Event()
        self.orders = {way: Orders(open=asyncio.Event()) for way in BOTH}
        for orders in self.orders.values():
            orders.open.set()
        try:
            async with asyncio.TaskGroup() as self.group:
                for tries_left in reversed(range(PORT_TRIES)):
                    try:
                        await self.listen()
                        break
                    except OSError:
                        if not tries_left:
                            raise
                        self.port = free_port()
                self.up_or_failed.set()
                await self.stopping.wait()
                self.listener.close()
                self.cut_all()
        except Exception as error:  # noqa: BLE001 — raised in the thread that uses the proxy
            self.failure = error
        finally:
            self.up_or_failed.set()

    async def listen(self) -> None:
        self.listener = await asyncio.start_server(self.accept, HOST, self.port)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.stopping.is_set():
            writer.transport.abort()
        else:
            self.group.create_task(self.serve(reader, writer))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server = await asyncio.open_connection(HOST, self.target_port)
        except OSError:
            writer.transport.abort()
            return
        connection = Connection(self.wire(), (reader, writer), server)
        if self.stopping.is_set():
            connection.cut()
        self.connections.add(connection)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = []
                for lane in connection.lanes.values():
                    lane.writer.transport.set_write_buffer_limits(0)  # drain() then means: the kernel has it
                    tasks += [group.create_task(self.read(connection, lane)), group.create_task(self.write(connection, lane))]
                await connection.over.wait()
                for task in tasks:
                    task.cancel()
        finally:
            connection.abort()
            for lane in connection.lanes.values():
                with contextlib.suppress(OSError):
                    await lane.writer.wait_closed()
            self.connections.discard(connection)

    async def read(self, connection: Connection, lane: Lane) -> None:
        cut_up = connection.wire.from_client if lane.way is Way.TO_SERVER else connection.wire.from_server
        end = End.CLOSED
        try:
            while data := await lane.reader.read(CHUNK_BYTES):
                for piece in cut_up(data) if not lane.ended else ():
                    self.take_in(connection, lane, piece)
                while lane.size_bytes > HELD_BYTES:
                    lane.room.clear()
                    await lane.room.wait()
        except OSError:
            end = End.RESET
        lane.pieces.append((end, self.loop.time(), lane.number))
        lane.came.set()

    def take_in(self, connection: Connection, lane: Lane, piece: Piece) -> None:
        lane.pieces.append((piece, self.loop.time(), lane.number))
        lane.size_bytes += len(piece.data)
        lane.came.set()
        if not piece.ends:
            return
        if lane.way is Way.TO_CLIENT:
            if lane.number == connection.last_answer:
                connection.cut()
            if not self.orders[Way.TO_CLIENT].open.is_set():
                with self.news:
                    self.held += 1
                    self.news.notify_all()
        lane.number += 1

    async def write(self, connection: Connection, lane: Lane) -> None:
        orders = self.orders[lane.way]
        while True:
            while not lane.pieces:
                lane.came.clear()
                await lane.came.wait()
            piece, came_at, number = lane.pieces[0]
            await orders.open.wait()
            while (left_s := came_at + orders.delay_s - self.loop.time()) > 0 and orders.delay_s:  # noqa: ASYNC110 — the delay may change meanwhile
                await asyncio.sleep(min(left_s, TICK_S))
            if not orders.open.is_set():
                continue
            lane.pieces.popleft()
            if isinstance(piece, End):
                self.end(connection, lane, piece)
                return
            lane.size_bytes -= len(piece.data)
            lane.room.set()
            if lane.way is Way.TO_SERVER and piece.begins and self.requests_left is not None and not self.is_allowed(connection, number):
                return
            if lane.way is Way.TO_CLIENT and connection.last_answer is not None and number >= connection.last_answer:
                continue
            try:
                await self.deliver(connection, lane, piece.data)
            except OSError:
                connection.cut()
                return

    def is_allowed(self, connection: Connection, number: int) -> bool:
        """Count a request down; the one it stops at is cut before it goes out, or marked so that its answer is."""
        assert self.requests_left is not None
        self.requests_left -= 1
        if self.requests_left:
            return True
        self.requests_left = None
        if self.cut_before:
            connection.cut()
            return False
        connection.last_answer = number + connection.wire.startup_answers
        return True

    async def deliver(self, connection: Connection, lane: Lane, data: bytes) -> None:
        orders = self.orders[lane.way]
        while data:
            size = len(data)
            if orders.rate_bytes_s:
                size = min(size, max(1, int(orders.rate_bytes_s * TICK_S)))
            if orders.budget_bytes is not None:
                size = min(size, orders.budget_bytes)
                orders.budget_bytes -= size
            lane.writer.write(data[:size])
            await lane.writer.drain()
            data = data[size:]
            if orders.budget_bytes == 0:
                orders.budget_bytes = None
                connection.cut()
                return
            if orders.rate_bytes_s:
                await asyncio.sleep(size / orders.rate_bytes_s)

    def end(self, connection: Connection, lane: Lane, how: End) -> None:
        lane.ended = True
        if how is End.RESET:
            connection.cut(reset=True)
        else:
            with contextlib.suppress(OSError):
                lane.writer.write_eof()
        if all(lane.ended for lane in connection.lanes.values()):
            connection.cut()
