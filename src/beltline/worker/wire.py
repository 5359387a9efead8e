"""One end of a socketpair that carries length-prefixed frames: 8 bytes little-endian length, then MessagePack.

Nothing here waits: a frame that does not fit into the socket's buffer is kept and goes on when the other side has read. What may pile up is bounded
by what is dealt to a runner. A Wire belongs to one event loop.
"""

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Generic, TypeVar

from msgspec import DecodeError, MsgspecError

from beltline.worker.frames import ToRunner, ToSupervisor, encode

F = TypeVar("F")

HEAD = struct.Struct("<Q")
MAX_FRAME = 1 << 33
READ_BYTES = 256 * 1024


class Wire(Generic[F]):
    """`on_end` is called once, when the other side is gone; never after close()."""

    def __init__(
        self,
        sock: socket.socket,
        loop: asyncio.AbstractEventLoop,
        decode: Callable[..., F],
        on_frame: Callable[[F], None],
        on_end: Callable[[], None],
    ) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._loop = loop
        self._decode = decode
        self._on_frame = on_frame
        self._on_end = on_end
        self._partial = bytearray()
        self._need = HEAD.size
        self._unsent = bytearray()
        self._empty = asyncio.Event()
        self.closed = False
        loop.add_reader(sock, self._readable)

    def send(self, frame: ToRunner | ToSupervisor) -> int:
        """Returns the size of the frame in bytes. A wire that has ended swallows it: its reader is gone, and `on_end` has said so or will."""
        data = encode(frame)
        if self.closed:
            return len(data)
        head = HEAD.pack(len(data))
        if self._unsent:
            self._unsent += head
            self._unsent += data
            return len(data)
        try:
            sent = self._sock.sendmsg((head, data))
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return len(data)
        if sent < HEAD.size + len(data):
            self._unsent += (head + data)[sent:]
            self._empty.clear()
            self._loop.add_writer(self._sock, self._writable)
        return len(data)

    def _writable(self) -> None:
        try:
            sent = self._sock.send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._unsent.clear()
            sent = 0
        del self._unsent[:sent]
        if not self._unsent:
            self._empty.set()
            self._loop.remove_writer(self._sock)

    def _readable(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        try:
            if data:
                self._feed(data)
        except MsgspecError:  # a task has written into our socket: nobody can tell any more where a frame begins
            data = b""
        if not data and not self.closed:
            self.close()
            self._on_end()

    def _feed(self, data: bytes) -> None:
        if self._partial:
            self._partial += data
            if len(self._partial) < self._need:
                return
            data = bytes(self._partial)
            self._partial.clear()
        at, end, view = 0, len(data), memoryview(data)
        self._need = HEAD.size
        while end - at >= HEAD.size and not self.closed:
            (size,) = HEAD.unpack_from(data, at)
            if size > MAX_FRAME:
                raise DecodeError(f"a frame of {size} bytes")
            until = at + HEAD.size + size
            if until > end:
                self._need = until - at
                break
            self._on_frame(self._decode(view[at + HEAD.size : until]))
            at = until
        if at < end:
            self._partial += view[at:]

    def read_rest(self) -> None:
        """Take in what a dead writer has left in the socket: outcomes it has sent are outcomes."""
        while not self.closed:
            try:
                data = self._sock.recv(READ_BYTES)
            except OSError:
                return
            if not data:
                return
            try:
                self._feed(data)
            except MsgspecError:
                return

    async def flush(self) -> None:
        """Until everything is in the socket or the wire is closed."""
        if self._unsent and not self.closed:
            await self._empty.wait()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._empty.set()
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
