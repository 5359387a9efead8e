"""Nothing we start outlives us.

    we       make a folder, tell the keeper, start a server whose working directory lies in that folder
    keeper   a process of its own; holds the reading end of a pipe and does nothing until that ends
    pipe     ends when we close it, or when the kernel does it for us: killed, crashed, out of memory

Then the keeper ends every process whose working directory lies in a folder it was told of, and deletes the folder. The folder is told
before anything runs in it, so no moment exists in which a kill of ours leaves a server behind. A process number could be somebody else's by
then; a working directory below our folder cannot.
"""

import atexit
import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

import psutil

MEMORY = Path("/dev/shm")
ROOM_BYTES = 2 * 2**30  # two servers, a standby and their write-ahead logs
END_S = 5.0
UNPRIVILEGED = ("postgres", "nobody")


class Server(Protocol):
    session: bool

    @property
    def pids(self) -> list[int]: ...

    def close(self) -> None: ...


class Keeper:
    """The folders of this process. One for all servers: `keeper()`."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.servers: list[Server] = []
        self.made: dict[tuple[str, Path], Path] = {}  # what servers share: moulds of data folders, copies of programs
        self.process = subprocess.Popen(
            [sys.executable, "-I", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C goes to the whole group; the keeper must see the end of it
        )
        atexit.register(self.close)

    def folder(self, name: str, *, under: Path | None = None) -> Path:
        """A new empty folder that unprivileged servers may enter; in memory when there is room, so that fsync costs nothing."""
        if under is None and MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= ROOM_BYTES:
            under = MEMORY
        folder = Path(tempfile.mkdtemp(prefix=f"beltline-{name}-", dir=under)).resolve()
        assert self.process.stdin is not None
        self.process.stdin.write(f"{folder}\n".encode())
        self.process.stdin.flush()
        folder.chmod(0o755)
        return folder

    def session_pids(self) -> set[int]:
        """Our own children that live as long as we do: no test left them behind."""
        return {self.process.pid}.union(*(server.pids for server in self.servers if server.session))

    def close(self) -> None:
        if self.owner != os.getpid():
            return  # a forked child that ends is not our end
        for server in list(self.servers):
            server.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(4 * END_S)
        atexit.unregister(self.close)
        del keepers[self.owner]


keepers: dict[int, Keeper] = {}  # by the process they belong to: a forked child has none yet


def keeper() -> Keeper:
    if (pid := os.getpid()) not in keepers:
        keepers[pid] = Keeper()
    return keepers[pid]


def session_pids() -> set[int]:
    """As Keeper.session_pids; empty when nothing was started here."""
    ours = keepers.get(os.getpid())
    return ours.session_pids() if ours else set()


def close() -> None:
    """End whatever was started here."""
    if ours := keepers.get(os.getpid()):
        ours.close()


def as_unprivileged() -> dict[str, Any]:
    """Arguments for `subprocess`: database servers refuse to run as root. Empty when we are not root."""
    if os.geteuid() != 0:
        return {}
    for name in UNPRIVILEGED:
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise RuntimeError(f"Servers do not run as root, and none of the users {', '.join(UNPRIVILEGED)} exists here.")


def give(path: Path) -> None:
    """Make `path` belong to the user the servers run as."""
    if user := as_unprivileged():
        os.chown(path, user["user"], user["group"])


def environment() -> dict[str, str]:
    """Ours without what would change a server or its client: a developer's PGDATA, PGOPTIONS, locale."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")}
    return kept | {"LC_ALL": "C", "TZ": "UTC"}


def all_gone(processes: list[psutil.Process], deadline_s: float) -> bool:
    """Wait until none of them runs. A zombie does not: an orphan is waited for by the machine's first process, whenever that finds time."""
    end = time.monotonic() + deadline_s
    while any(runs(process) for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ------------------------------------------------------------------------------------------------ the keeper's own process
def end(folders: list[Path]) -> None:
    # SIGQUIT first: PostgreSQL then gives its shared memory back, which a SIGKILL leaves in the kernel.
    for number in (signal.SIGQUIT, signal.SIGKILL):
        found = [process for process in psutil.process_iter() if inside(process, folders)]
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        if all_gone(found, END_S):
            break
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def inside(process: psutil.Process, folders: list[Path]) -> bool:
    try:
        directory = Path(process.cwd())
    except (psutil.Error, OSError):
        return False
    return any(directory.is_relative_to(folder) for folder in folders)


if __name__ == "__main__":
    told = [Path(line.rstrip("\n")) for line in sys.stdin]  # blocks until the pipe ends
    end(told)
