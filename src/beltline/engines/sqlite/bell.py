"""Hints between processes: "look again", by datagram, after a commit that others may be waiting for. A hint carries nothing and may be lost.

Every process that waits has a socket in a private folder named after the file; who has written rings at all of them. The truth is the poll of
`PRAGMA data_version` in writer.py; without a folder to put sockets in (a long TMPDIR, a foreign owner) that is all there is.
"""

import contextlib
import os
import socket
import stat
import tempfile
import time
from hashlib import blake2b
from pathlib import Path

TICK_NS = 50_000_000
MAX_PATH = 100  # sun_path holds 104 bytes on macOS, 108 on Linux


class Bell:
    def __init__(self, file: Path) -> None:
        found = file.stat()
        name = blake2b(f"{found.st_dev}:{found.st_ino}".encode(), digest_size=8).hexdigest()
        self._folder = Path(tempfile.gettempdir()) / f"beltline-{os.getuid()}" / name
        self._socket: socket.socket | None = None
        self._name = ""
        self._others: list[str] = []
        self._seen = -1
        self._usable = len(str(self._folder)) + 30 < MAX_PATH and self._private()
        self._sender: socket.socket | None = None

    def _private(self) -> bool:
        try:
            for folder in (self._folder.parent, self._folder):
                folder.mkdir(mode=0o700, exist_ok=True)
                found = folder.lstat()
                if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
                    return False
        except OSError:
            return False
        return True

    def listen(self) -> int | None:
        """The file descriptor that becomes readable when somebody rings; None: only polling."""
        if self._socket is None and self._usable and self._private():
            made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            try:
                made.setblocking(False)
                self._name = f"{os.getpid()}-{os.urandom(4).hex()}"
                made.bind(str(self._folder / self._name))
            except OSError:
                made.close()
                self._usable = False
            else:
                self._socket = made
        return None if self._socket is None else self._socket.fileno()

    def drain(self) -> None:
        with contextlib.suppress(OSError):
            while self._socket is not None:
                self._socket.recv(16)

    def ring(self) -> None:
        """Hint at every other process that listens. Never blocks, never raises."""
        if not self._usable:
            return
        try:
            changed = self._folder.stat().st_mtime_ns
            if changed != self._seen:
                self._others = [path.name for path in self._folder.iterdir() if path.name != self._name]
                # Times of folders move in ticks of some milliseconds: a look within the same tick may have missed somebody.
                self._seen = changed if time.time_ns() - changed > TICK_NS else -1
        except OSError:
            return
        for name in self._others:
            self._ring_at(name)

    def _ring_at(self, name: str) -> None:
        if self._sender is None:
            self._sender = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._sender.setblocking(False)
        path = str(self._folder / name)
        try:
            self._sender.sendto(b"", path)
        except BlockingIOError:
            pass  # it has hints enough
        except (ConnectionRefusedError, FileNotFoundError):
            with contextlib.suppress(OSError):
                Path(path).unlink()  # left behind by a process that was killed
            self._seen = -1
        except OSError:
            pass

    def close(self) -> None:
        for made in (self._socket, self._sender):
            if made is not None:
                made.close()
        if self._socket is not None:
            with contextlib.suppress(OSError):
                (self._folder / self._name).unlink()
        self._socket = self._sender = None
