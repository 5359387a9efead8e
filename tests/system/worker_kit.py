"""Real workers on a real file, and the question what has become of them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from beltline.engines.sqlite import SqliteEngine
from tests.worker import lines
from tests.worker.kit import APP, ROOT, until


class Host:
    """One worker process. `url`: of the store in `directory`."""

    def __init__(self, directory: Path, **options: Any) -> None:
        self.directory = directory
        self.log = directory / f"worker-{len(list(directory.glob('worker-*')))}.log"
        given = {"app": APP, "app_dir": ROOT, "url": url(directory), "queues": {"work": 4}, "lease_s": 1.0, "grace_s": 0.3, "runners": 2, **options}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.system.worker_host", json.dumps(given)], stdout=log, stderr=log, cwd=ROOT, start_new_session=True
            )

    async def ready(self) -> None:
        await until(lambda: "ready" in self.text or self.process.poll() is not None)
        assert self.process.poll() is None, self.text

    @property
    def text(self) -> str:
        return self.log.read_text()

    def runners(self) -> list[psutil.Process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.process.pid).children()
        return []

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    async def exit_code(self) -> int:
        await until(lambda: self.process.poll() is not None, what="the end of the worker")
        code = self.process.poll()
        assert code is not None
        return code

    def kill_all(self) -> list[psutil.Process]:
        """SIGKILL to supervisor and runners in one sweep; the runners there were."""
        found = self.runners()
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()  # nobody shall see the other die
        for pid in [self.process.pid, *(process.pid for process in found)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        return found


def url(directory: Path) -> str:
    return f"sqlite:///{directory / 'store.db'}"


@contextlib.contextmanager
def hosts(directory: Path) -> Iterator[list[Host]]:
    """A list to put hosts into; what is left of them at the end is killed, and the logs of a failed test are printed."""
    started: list[Host] = []
    try:
        yield started
    except BaseException:
        for host in started:
            print(f"--- {host.log.name}\n{host.text[-4000:]}")
        raise
    finally:
        for host in started:
            if host.process.poll() is None:
                host.kill_all()


async def store(directory: Path) -> SqliteEngine:
    engine = SqliteEngine(directory / "store.db")
    await engine.open()
    await engine.declare(lines.app.specs())
    return engine
