"""beltline health: is the engine there, and does anybody work? Imports no user code."""

import click
from msgspec import Struct

from beltline.cli.command import Command, Session, pass_session
from beltline.cli.output import SCHEMA_VERSION
from beltline.cli.problems import FAILED, OK
from beltline.cli.text import count, span, things
from beltline.core.config import redact
from beltline.engines.protocol import Browse, Engine, Fleet
from beltline.monitor.explain import LOST_S


class HealthItem(Struct, frozen=True, kw_only=True):
    """`ok`: the engine answers, and a queue with ready messages is served by somebody or paused. `unserved`: queues where that is not so."""

    version: int = SCHEMA_VERSION
    ok: bool
    engine: str
    url: str
    answer_s: float
    workers: int
    ready: int
    leased: int
    dead: int
    oldest_ready_s: float
    unserved: list[str]


@click.command(cls=Command, shape=HealthItem)
@click.option("--live", is_flag=True, help="Only ask whether the engine answers.")
@pass_session
def health(session: Session, live: bool) -> int:
    """Is the engine there, and does anybody work? Exit code 0: yes; 1: messages wait and nobody serves them; 4: no engine."""

    async def look(engine: Engine) -> HealthItem:
        import time

        began = time.monotonic()
        await engine.now()
        answer_s = time.monotonic() - began
        specs = await engine.queues() if isinstance(engine, Browse) and not live else []
        alive = [worker for worker in await engine.workers() if worker.age_s <= LOST_S] if isinstance(engine, Fleet) and not live else []
        served = {name for worker in alive for name in worker.queues}
        all_counts = {str(spec.name): await engine.counts(spec.name) for spec in specs}
        unserved = sorted(name for name, each in all_counts.items() if each.ready and not each.paused and name not in served)
        return HealthItem(
            ok=not unserved,
            engine=engine.name,
            url=redact(session.config.url),
            answer_s=round(answer_s, 5),
            workers=len(alive),
            ready=sum(each.ready for each in all_counts.values()),
            leased=sum(each.leased for each in all_counts.values()),
            dead=sum(each.dead for each in all_counts.values()),
            oldest_ready_s=round(max((each.oldest_ready_s for each in all_counts.values()), default=0.0), 3),
            unserved=unserved,
        )

    item = session.run(look)
    word = session.out.paint("ok", "green") if item.ok else session.out.paint("waiting", "red")
    lines = [f"{word}   {item.engine} answered in {span(item.answer_s)}"]
    if not live:
        lines.append(f"  {things(item.workers, 'worker')} · ready {count(item.ready)} · leased {count(item.leased)} · dead {count(item.dead)}")
        lines += [f"  no worker serves queue {name}" for name in item.unserved]
    session.out.thing(item, lambda: lines, id="ok" if item.ok else "waiting")
    return OK if item.ok else FAILED
