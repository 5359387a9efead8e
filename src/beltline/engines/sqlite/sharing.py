"""The threads of one file, shared by all engines of this process that are open on it, and what becomes of them in a forked child."""

import os
import threading
from pathlib import Path

from beltline.engines.sqlite.reader import Reader
from beltline.engines.sqlite.transactions import Desks
from beltline.engines.sqlite.writer import Writer


class Shared:
    """`users`: how many engines are open on them."""

    def __init__(self, path: Path, audited: bool) -> None:
        self.path = path
        self.reader = Reader(path)
        self.writer = Writer(path, audited=audited, on_poison=self.reader.distrust)
        self.desks = Desks(path, audited=audited, on_poison=self.reader.distrust)
        self.users = 0


lock = threading.Lock()  # held while one of the functions below is called
_open: dict[Path, Shared] = {}
_carried: list[object] = []  # in a forked child: the parent's handles, kept for ever, because closing one would drop the parent's locks
_carried_paths: set[Path] = set()


def _after_fork() -> None:
    global lock  # noqa: PLW0603 - the parent's lock may have been held by a thread that does not exist here
    lock = threading.Lock()
    _carried.extend(_open.values())
    _carried_paths.update(_open)
    _open.clear()


os.register_at_fork(after_in_child=_after_fork)


def carried(path: Path) -> bool:
    """Whether it was open in the parent when this process was forked."""
    return path in _carried_paths


def join(path: Path, *, audited: bool) -> Shared:
    """Become one of their users; the first one makes them."""
    shared = _open.get(path)
    if shared is None:
        shared = _open[path] = Shared(path, audited)
    shared.users += 1
    return shared


def leave(shared: Shared) -> bool:
    """Whether that was the last user, who has to end them."""
    shared.users -= 1
    if shared.users:
        return False
    del _open[shared.path]
    return True
