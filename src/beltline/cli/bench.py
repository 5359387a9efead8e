"""beltline bench: how fast this machine is with this engine. In a database of its own, on the disk of this folder, unless --url names one."""

import asyncio
import tempfile
from contextlib import ExitStack
from pathlib import Path

import click
from msgspec import Struct

from beltline.cli.command import Command, Session, check_reachable, pass_session
from beltline.cli.output import SCHEMA_VERSION
from beltline.cli.text import count, span
from beltline.core.config import redact
from beltline.core.errors import Refused


class BenchItem(Struct, frozen=True, kw_only=True):
    """Seconds, and messages a second. `start_s`: until the worker received; `drain_s`: from then until the queue was empty."""

    version: int = SCHEMA_VERSION
    url: str
    durability: str
    messages: int
    slots: int
    send_one_p50_s: float
    send_one_p99_s: float
    send_many_per_s: float
    start_s: float
    drain_s: float
    drain_per_s: float


@click.command(cls=Command, shape=BenchItem)
@click.argument("messages", type=click.IntRange(1, 10_000_000), default=10_000)
@click.option("--slots", type=click.IntRange(1, 1000), default=10, show_default=True, help="Messages at once.")
@click.option("--runners", type=click.IntRange(min=1), help="Processes that share the slots (else one per processor).")
@click.option("--durability", type=click.Choice(["disk", "os", "memory"]), help="What a send has survived when it returns.  [disk]")
@pass_session
def bench(session: Session, messages: int, slots: int, runners: int | None, durability: str | None) -> None:
    """Send MESSAGES no-ops (10000), drain them with a real worker, and print the rates. An idle machine gives a true answer."""
    from beltline.demo.measure import file_url, left_over, measure

    session.set_flags(durability=durability)
    named = session.config.origin("url") == "--url"
    with ExitStack() as stack:
        if named:
            url = session.config.url
            check_reachable(url, create=True)
            if left := asyncio.run(left_over(url, session.durability)):
                raise Refused(
                    f"Queue beltline-bench holds {left} messages.", why="A bench would mix with them.", help="beltline queue purge beltline-bench"
                )
        else:
            # Here and not in the system's temporary folder, which may be memory: then nothing would be measured.
            url = file_url(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".beltline-bench-", dir=Path.cwd()))))
        found = asyncio.run(measure(url, messages=messages, slots=slots, runners=runners, durability=session.durability, said=session.out.note))
    item = BenchItem(
        url=redact(url) if named else "sqlite, a file of its own",
        durability=session.config.durability.name.lower(),
        **{name: value if isinstance(value, int) else round(value, 6) for name, value in vars(found).items()},
    )
    lines = [
        f"send, one after the other   p50 {item.send_one_p50_s * 1000:.2f} ms   p99 {item.send_one_p99_s * 1000:.2f} ms   (durability {item.durability})",
        f"send, batches of 1000       {count(item.send_many_per_s)} a second",
        f"worker receives after       {span(item.start_s)}",
        f"drain                       {count(item.drain_per_s)} a second ({count(item.messages)} no-ops in {span(item.drain_s)}, {item.slots} slots)",
    ]
    session.out.thing(item, lambda: lines, id="bench")
