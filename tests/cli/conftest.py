"""The command line as its users meet it: in a folder of its own, with no configuration but what the test writes."""

import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

from beltline.cli.main import main
from beltline.core.codec import pack
from beltline.core.message import Message
from beltline.core.names import MessageId, QueueName, TaskName
from beltline.core.outcome import Cause, DeadLetter, Failure, Settlement
from beltline.core.queues import QueueSpec
from beltline.engines.sqlite.engine import SqliteEngine
from beltline.sending import new_id

T = TypeVar("T")
ENDS_S = 40.0  # a bound for every real process; none comes near it


class Said:
    """What one call said and how it ended."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """TSV without its header."""
        return [line.split("\t") for line in self.out.splitlines()[1:]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("BELTLINE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / ".cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Commands set up logging to the stderr of their test, which is closed after it."""
    root, handlers, level = logging.getLogger(), logging.getLogger().handlers[:], logging.getLogger().level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def beltline(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Run a command in this process: fast, and the same `main` the console script calls."""

    def call(*args: str) -> Said:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return call


@pytest.fixture
def process() -> Any:
    """Run a command as a process; whatever is still running at the end of the test is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*args: str, stdin: str | None = None, environ: dict[str, str] | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "beltline", *(str(arg) for arg in args)]
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(environ or {})},
        )
        started.append(child)
        return child

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        child.wait(ENDS_S)


@pytest.fixture
def run(process: Any) -> Callable[..., Said]:
    """The same, waited for."""

    def call(*args: str, stdin: str | None = None, environ: dict[str, str] | None = None) -> Said:
        child = process(*args, stdin=stdin, environ=environ)
        out, err = child.communicate(stdin, timeout=ENDS_S)
        return Said(child.returncode, out, err)

    return call


def until(look: Callable[[], T], *, within_s: float = ENDS_S) -> T:
    """Ask again until the answer is true."""
    end = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


class Store:
    """The folder's database, filled by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def do(self, work: Callable[[SqliteEngine], Coroutine[Any, Any, T]]) -> T:
        async def whole() -> T:
            engine = SqliteEngine(self.path)
            await engine.open()
            try:
                return await work(engine)
            finally:
                await engine.close()

        return asyncio.run(whole())

    def declare(self, *names: str, **numbers: Any) -> None:
        self.do(lambda engine: engine.declare([QueueSpec(name=QueueName(name), **numbers) for name in names]))

    def send(self, queue: str, *bodies: object, task: str = "tasks.resize", **more: Any) -> list[str]:
        messages = [Message(id=new_id(), queue=QueueName(queue), task=TaskName(task), body=pack(body), **more) for body in bodies or ({"n": 1},)]
        self.do(lambda engine: engine.send(messages))
        return [message.id for message in messages]

    def kill(self, queue: str, *bodies: object, type: str = "ValueError", text: str = "no good", **more: Any) -> list[str]:
        """Messages that are dead already."""
        ids = self.send(queue, *bodies, **more)

        async def end(engine: SqliteEngine) -> None:
            deliveries = await engine.receive([QueueName(queue)], limit=len(ids), lease_s=30, wait_s=0)
            failure = Failure(Cause.ERROR, type, text, f"Traceback\n  line\n{type}: {text}")
            await engine.settle([Settlement(each.receipt, DeadLetter(reason="failed after 1 attempt", failure=failure)) for each in deliveries])

        self.do(end)
        return ids

    def state(self, id: str) -> str:
        return self.do(lambda engine: engine.get(MessageId(id))).state


@pytest.fixture
def store(folder: Path) -> Store:
    made = Store(folder / "beltline.db")
    made.declare("resize", "mail")
    return made


TASKS = """
from pathlib import Path
from beltline import App, Reject, current

app = App()

@app.task
def double(number: int) -> int:
    return 2 * number

@app.task
def join(left: str, right: float = 0.5, *, path: Path | None = None) -> str:
    return f"{left}/{right}/{path}"

@app.task
def refuse(why: str) -> None:
    raise Reject(why)

@app.task
def lines(text: str) -> list[str]:
    return text.split(",")

@app.task
def measure(line: str) -> int:
    if line == "bad":
        raise Reject("a bad line")
    return len(line)

@app.task
def total(numbers: list[int]) -> int:
    return sum(numbers)

words = app.chain("words", lines >> measure.each() >> total.gather())
"""


@pytest.fixture
def tasks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An app of the folder's own, under a module name no other test has imported."""
    name = f"tasks_{new_id()}"
    (folder / f"{name}.py").write_text(TASKS)
    (folder / "beltline.toml").write_text(f'app = "{name}:app"\n')
    monkeypatch.syspath_prepend(str(folder))
    return folder / f"{name}.py"
