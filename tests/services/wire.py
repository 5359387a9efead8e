"""Where a request of PostgreSQL's protocol begins and ends, and where its answer does.

    client   startup (length, no type), then messages: type (1 byte), length (4 bytes, counts itself), content
             a request ends with Query 'Q', Sync 'S' or FunctionCall 'F'; the Sync behind a COPY's rows only repeats the one before them
    server   the same messages; an answer ends with ReadyForQuery 'Z': one for the startup, one for each request
             before them one bare byte answers each question for encryption

The commit of a request has happened when its 'Z' is on the way, and not before: a long answer begins earlier. Source: PostgreSQL, frontend/backend
protocol 3.0. With encryption nothing of this could be seen; our test servers have none.
"""

import struct
from typing import NamedTuple, Protocol

QUESTIONS = (80_877_103, 80_877_104)  # SSLRequest, GSSENCRequest
CANCEL = 80_877_102
ENDS_REQUEST = b"QSF"
ENDS_ANSWER = b"Z"
COPYING = b"dcf"  # CopyData, CopyDone, CopyFail: the rest of a request that seemed complete
NO_REQUEST = b"Xp" + COPYING  # Terminate, password


class Piece(NamedTuple):
    """Bytes that travel together."""

    data: bytes
    begins: bool = False  # the first piece of a request
    ends: bool = False  # the last one of a request or an answer


class Wire(Protocol):
    """Both directions of one connection. Fed every byte, in order; gives back whole pieces."""

    startup_answers: int  # answers that come before that of the first request

    def from_client(self, data: bytes) -> list[Piece]: ...

    def from_server(self, data: bytes) -> list[Piece]: ...


class Plain:
    """No protocol: what was read at once is a request, or an answer."""

    startup_answers = 0

    def from_client(self, data: bytes) -> list[Piece]:
        return [Piece(data, begins=True, ends=True)]

    def from_server(self, data: bytes) -> list[Piece]:
        return [Piece(data, ends=True)]


class Postgres:
    startup_answers = 1

    def __init__(self) -> None:
        self.questions = 0  # asked for encryption and not answered yet
        self.started = False
        self.between = True  # no request is open
        self.copying = False
        self.client = bytearray()
        self.server = bytearray()

    def from_client(self, data: bytes) -> list[Piece]:
        self.client += data
        found = []
        while not self.started and (size := startup_size(self.client)):
            code = struct.unpack_from("!i", self.client, 4)[0]
            self.questions += code in QUESTIONS
            self.started = code not in (*QUESTIONS, CANCEL)
            found.append(Piece(take(self.client, size)))
        while self.started and (size := message_size(self.client)):
            kind = self.client[0]
            repeated = self.copying and kind in b"S"
            self.copying = kind in COPYING
            begins = self.between and kind not in NO_REQUEST and not repeated
            ends = kind in ENDS_REQUEST and not repeated
            self.between = ends or (self.between and not begins)
            found.append(Piece(take(self.client, size), begins, ends))
        return found

    def from_server(self, data: bytes) -> list[Piece]:
        self.server += data
        found = []
        while self.server and self.questions:
            self.questions -= 1
            found.append(Piece(take(self.server, 1)))
        while size := message_size(self.server):
            ends = self.server[0] in ENDS_ANSWER
            found.append(Piece(take(self.server, size), ends=ends))
        return found


def startup_size(data: bytearray) -> int:
    """The size of the first message without a type; 0 while it is not there completely."""
    size = int(struct.unpack_from("!i", data)[0]) if len(data) >= 8 else 0
    return size if 0 < size <= len(data) else 0


def message_size(data: bytearray) -> int:
    """The size of the first message with its type; 0 while it is not there completely."""
    size = 1 + int(struct.unpack_from("!i", data, 1)[0]) if len(data) >= 5 else 0
    return size if 0 < size <= len(data) else 0


def take(data: bytearray, size: int) -> bytes:
    piece = bytes(data[:size])
    del data[:size]
    return piece
