"""One writing process at a time, fairly: a kernel lock (flock) on `<file>-lock` before every transaction.

SQLite's own busy handler sleeps and tries again, so one of four processes starves for seconds; waiters of a kernel lock stand in line. A wait must have a
bound and flock has none, so who finds the lock taken leaves the waiting to a thread of its own and gives up when its time is over.
"""

import fcntl
import os
import threading
from pathlib import Path


class Turnstile:
    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._ask = threading.Semaphore(0)
        self._got = threading.Event()
        self._lock = threading.Lock()
        self._waiting = False  # the helper stands in line
        self._wanted = False  # and somebody still wants what it will get
        self._helper: threading.Thread | None = None
        self._closed = False

    def enter(self, wait_s: float) -> bool:
        """Take the lock; False if it could not be had in time."""
        if not self._waiting:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                return True
        if self._helper is None:
            self._helper = threading.Thread(target=self._stand_in_line, name="beltline-sqlite-lock", daemon=True)
            self._helper.start()
        with self._lock:
            self._wanted = True
            if not self._waiting:
                self._waiting = True
                self._ask.release()
        if not self._got.wait(wait_s):
            with self._lock:
                if not self._got.is_set():
                    self._wanted = False
                    return False
        self._got.clear()
        return True

    def leave(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        self._closed = True
        self._ask.release()
        helper = self._helper
        if helper is not None:
            helper.join(timeout=1.0)
        if helper is None or not helper.is_alive():
            os.close(self._fd)

    def _stand_in_line(self) -> None:
        while True:
            self._ask.acquire()
            if self._closed:
                return
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            with self._lock:
                self._waiting = False
                if self._wanted:
                    self._wanted = False
                    self._got.set()
                else:
                    fcntl.flock(self._fd, fcntl.LOCK_UN)
