"""What every figure needs: a fresh store, shared marks, a worker in its own processes, and one line of JSON at the end."""

import argparse
import json
import mmap
import os
import platform
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
LONGEST_S = 300.0
ENVIRON = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}  # users' machines keep compiled modules


@dataclass
class Place:
    """A folder of its own with a store and marks; gone afterwards."""

    folder: Path
    url: str
    durability: str
    slots: int
    marks: mmap.mmap = field(init=False)

    def __post_init__(self) -> None:
        path = self.folder / "marks"
        path.write_bytes(bytes(8 * self.slots))
        with path.open("r+b") as file:
            self.marks = mmap.mmap(file.fileno(), 0)

    @property
    def environ(self) -> dict[str, str]:
        ours = {"BENCH_URL": self.url, "BENCH_MARKS": str(self.folder / "marks"), "BENCH_DURABILITY": self.durability}
        return {**ENVIRON, **ours, "PYTHONPATH": str(Path(__file__).parent.parent)}

    def times(self, first: int, count: int) -> list[float]:
        """Marked slots only, in slot order."""
        return [t for t in struct.unpack_from(f"<{count}d", self.marks, 8 * first) if t]

    def await_marks(self, first: int, count: int, process: "subprocess.Popen[bytes] | None" = None) -> list[float]:
        """Wait until all are marked. Raises RuntimeError after LONGEST_S or when the worker is gone."""
        until = time.monotonic() + LONGEST_S
        while len(found := self.times(first, count)) < count:
            if time.monotonic() > until or (process is not None and process.poll() is not None):
                raise RuntimeError(f"{len(found)} of {count} marked; worker {process.poll() if process else '-'}")
            time.sleep(0.02)
        return found


@contextmanager
def place(url: str, durability: str, slots: int) -> Iterator[Place]:
    """`url` "" = a fresh SQLite file; postgresql://… = a fresh schema there, dropped afterwards."""
    with tempfile.TemporaryDirectory(prefix="beltline-bench-") as name, fresh(url or f"sqlite:///{name}/bench.db") as store:
        made = Place(Path(name), store, durability, slots)
        try:
            yield made
        finally:
            made.marks.close()


def adopt(at: Place) -> None:
    """Let this very process use the place: before bench.tasks is imported here."""
    os.environ.update({name: value for name, value in at.environ.items() if name.startswith("BENCH_")})


@contextmanager
def fresh(url: str) -> Iterator[str]:
    """A store with nothing in it at this URL."""
    if not url.startswith("postgres"):
        yield url
        return
    import psycopg

    schema = f"bench_{time.time_ns()}"
    yield f"{url}{'&' if '?' in url else '?'}schema={schema}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"SET client_min_messages = warning; DROP SCHEMA IF EXISTS {schema} CASCADE")


@contextmanager
def worker(at: Place, queues: Sequence[str], runners: int = 2, app: str = "bench.tasks:app") -> Iterator["subprocess.Popen[bytes]"]:
    """A real `beltline worker` with its runner processes; stopped by SIGTERM, killed if it does not stop."""
    chosen = [part for queue in queues for part in ("-q", queue)]
    command = [sys.executable, "-m", "beltline", "worker", app, *chosen, "--runners", str(runners)]
    process = subprocess.Popen(command, env=at.environ, stdout=subprocess.DEVNULL, cwd=Path(__file__).parent.parent)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=40)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def python(at: Place, code: str) -> str:
    """Run `code` in another process with bench.tasks at hand; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, env=at.environ, cwd=Path(__file__).parent.parent, capture_output=True, text=True, timeout=LONGEST_S
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def settings(given: argparse.Namespace, **more: object) -> dict[str, object]:
    return {"engine": given.shown, "durability": given.durability, **more}


def percentile(values: Sequence[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def pss_mb(pid: int) -> float:
    """Proportional memory of a process and its children, in MB (Linux)."""
    import psutil

    root = psutil.Process(pid)
    total = 0
    for process in [root, *root.children(recursive=True)]:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup")
        if rollup.exists():
            total += next(int(row.split()[1]) for row in rollup.read_text().splitlines() if row.startswith("Pss:"))
        else:
            total += process.memory_info().rss // 1024
    return total / 1024


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], check=False, capture_output=True, text=True, cwd=Path(__file__).parent)
    return done.stdout.strip()


def tell(name: str, figures: dict[str, object], *, target: str, settings: dict[str, object]) -> None:
    """One JSON line on stdout and in bench/results/."""
    row = {
        "bench": name,
        **{key: round(value, 3) if isinstance(value, float) else value for key, value in figures.items()},
        "target": target,
        "settings": settings,
        "commit": commit(),
        "machine": f"{os.cpu_count()} CPU {platform.machine()} {platform.system()} Python {platform.python_version()}",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    text = json.dumps(row)
    print(text, flush=True)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{datetime.now(UTC):%Y-%m}.jsonl").open("a") as file:
        file.write(text + "\n")
