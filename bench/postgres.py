"""What only a server has: one of our own on this disk, the bytes of its log, and what a long transaction elsewhere costs."""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from bench import rig

BATCH = 100


@contextmanager
def engine(given: argparse.Namespace) -> Iterator[None]:
    """Fill in `given.engine` and `given.shown`: `postgres` becomes the URL of a server that lives as long as this block."""
    if given.engine != "postgres":
        with connected(given.engine) as connection:
            version = connection.info.parameter_status("server_version") if connection is not None else ""
        given.shown = f"postgresql {version}" if version else given.engine or "sqlite (fresh file)"
        yield
        return
    from tests.services.discovery import servers
    from tests.services.postgres import PostgresServer

    found = next(found for found in servers() if found.origin == given.server)
    with tempfile.TemporaryDirectory(prefix="beltline-bench-") as folder:
        Path(folder).chmod(0o755)
        with PostgresServer(found, disk=Path(folder), settings={"shared_buffers": "512MB", "max_wal_size": "4GB"}) as server:
            given.engine = server.url(server.create_database())
            given.shown = f"postgresql {'.'.join(map(str, found.version))} (own server, this disk, shared_buffers 512MB)"
            yield


@contextmanager
def connected(url: str) -> Iterator[psycopg.Connection | None]:
    if not urlsplit(url).scheme.startswith("postgres"):
        yield None
        return
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def figure_wal(given: argparse.Namespace) -> None:
    """Bytes of the server's log per message, in batches of 100: send, receive, settle."""
    code = """
import asyncio, json, psycopg
from bench.tasks import app, noop
from beltline.core.outcome import Ack, Settlement
async def main(count=20_000, batch=100):
    with psycopg.connect({url!r}, autocommit=True) as look:
        def written():
            return look.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()[0]
        async with app:
            engine = await app.ready()
            start = written()
            for _ in range(count // batch):
                await noop.asend_many(noop.call(0) for _ in range(batch))
            sent = written()
            receive = settle = 0
            for _ in range(count // batch):
                before = written()
                got = await engine.receive([noop.queue], limit=batch, lease_s=60)
                between = written()
                await engine.settle([Settlement(each.receipt, Ack()) for each in got])
                receive += int(between - before)
                settle += int(written() - between)
            print(json.dumps({{"send_bytes": int(sent - start) / count, "receive_bytes": receive / count, "settle_bytes": settle / count}}))
asyncio.run(main())
"""
    with rig.place(given.engine, given.durability, 1) as at:
        figures = json.loads(rig.python(at, code.format(url=given.engine)))
    figures["all_bytes"] = sum(figures.values())
    rig.tell("wal_per_message", figures, target="receive + settle about 430 bytes in the prototype", settings=rig.settings(given, batch=BATCH))


PINNED = """
import asyncio, json, statistics, time
from bench.tasks import app, noop
from beltline.core.outcome import Ack, Settlement
async def main(seconds={seconds}, batch=100, ahead=20_000):
    async with app:
        engine = await app.ready()
        for _ in range(ahead // 1000):
            await noop.asend_many(noop.call(0) for _ in range(1000))
        receives, settles, done, end = [], [], 0, time.monotonic() + seconds
        while time.monotonic() < end:
            await noop.asend_many(noop.call(0) for _ in range(batch))
            t0 = time.monotonic()
            got = await engine.receive([noop.queue], limit=batch, lease_s=60)
            t1 = time.monotonic()
            await engine.settle([Settlement(each.receipt, Ack()) for each in got])
            receives.append(t1 - t0)
            settles.append(time.monotonic() - t1)
            done += len(got)
        last = len(receives) // 6  # the last sixth: what it has come to
        print(json.dumps({{"receive_ms": 1000 * statistics.median(receives[-last:]), "settle_ms": 1000 * statistics.median(settles[-last:]), "messages": done}}))
asyncio.run(main())
"""


def figure_pinned(given: argparse.Namespace) -> None:
    """Receive of 100, at the end of a minute of traffic in which a long transaction elsewhere holds vacuum back, against the same without."""
    found: dict[str, dict[str, float]] = {}
    for name in ("free", "pinned"):
        with rig.place(given.engine, given.durability, 1) as at, psycopg.connect(given.engine) as other:
            if name == "pinned":
                other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
                other.execute("SELECT count(*) FROM pg_class")
            found[name] = json.loads(rig.python(at, PINNED.format(seconds=given.pinned)))
            other.rollback()
    figures: dict[str, object] = {f"{name}_{key}": value for name, row in found.items() for key, value in row.items()}
    figures["ratio"] = found["pinned"]["receive_ms"] / found["free"]["receive_ms"]
    rig.tell(
        "pinned",
        figures,
        target="3.3 ms against 1.9 ms in the prototype (1.7x)",
        settings=rig.settings(given, batch=BATCH, seconds=given.pinned, ahead=20_000),
    )


FIGURES: dict[str, Callable[[argparse.Namespace], None]] = {"wal": figure_wal, "pinned": figure_pinned}
