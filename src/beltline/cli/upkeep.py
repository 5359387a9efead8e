"""beltline upkeep: the scheduler, the sweep and retention without a worker. Every worker has them too; any number may run."""

import asyncio
import signal
from collections.abc import Callable

import click
from msgspec import Struct

from beltline.cli.command import Command, Session, pass_session
from beltline.cli.output import SCHEMA_VERSION
from beltline.cli.text import count
from beltline.engines.protocol import Engine
from beltline.upkeep.loops import Loop
from beltline.upkeep.retention import Retention
from beltline.upkeep.scheduler import Scheduler
from beltline.upkeep.sweeper import Sweeper

TELL_S = 10.0  # between two lines about one loop
WORDS = {"scheduler": "messages sent", "sweeper": "messages moved", "retention": "things dropped"}


class UpkeepItem(Struct, frozen=True, kw_only=True):
    """`done`: since the last line about this loop: messages sent (scheduler), messages moved (sweeper), messages, runs, results and keys dropped (retention)."""

    version: int = SCHEMA_VERSION
    loop: str
    done: int


@click.command(cls=Command, shape=UpkeepItem)
@click.option("--only", "chosen", multiple=True, type=click.Choice(tuple(WORDS)), help="Only this (again for more).")
@click.option("--once", is_flag=True, help="One round of each, then end: for the system's own cron.")
@click.option("--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least severe line that is logged.  [info]")
@pass_session
def upkeep(session: Session, chosen: tuple[str, ...], once: bool, log_level: str | None) -> int:
    """Send what schedules say, hurry what is due, drop what is over. Until ctrl-c or SIGTERM.

    Every worker does this beside its work, so it is only needed where no worker is up all the time.
    """
    from beltline.cli.logs import set_up
    from beltline.cli.output import Form

    session.set_flags(log_level=log_level)
    set_up(form="json" if session.out.form is Form.JSON else session.config.log, level=session.config.log_level)
    names = chosen or tuple(WORDS)
    session.run(lambda engine: _round(session, engine, names) if once else _run(session, engine, names), create=True)
    return 0


def _loops(session: Session, engine: Engine, names: tuple[str, ...]) -> dict[str, Loop]:
    made: dict[str, Callable[[], Loop]] = {
        "scheduler": lambda: Scheduler(lambda: engine),
        "sweeper": lambda: Sweeper(lambda: engine),
        "retention": lambda: Retention(lambda: engine, history_s=session.config.history_s),
    }
    return {name: made[name]() for name in dict.fromkeys(names)}


async def _round(session: Session, engine: Engine, names: tuple[str, ...]) -> None:
    for name, loop in _loops(session, engine, names).items():
        _tell(session, name, await loop.once())


def _tell(session: Session, name: str, done: int) -> None:
    session.out.stream(UpkeepItem(loop=name, done=done), lambda: f"{name}: {count(done)} {WORDS[name]}", id=name)


async def _run(session: Session, engine: Engine, names: tuple[str, ...]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop.set)
    loops = _loops(session, engine, names)
    told = dict.fromkeys(loops, 0)
    try:
        async with asyncio.TaskGroup() as group:
            beside = [group.create_task(each.run()) for each in loops.values()]
            beside.append(group.create_task(_tell_for_ever(session, loops, told)))
            session.out.note(f"{', '.join(loops)} on {engine.name}; ctrl-c ends")
            await stop.wait()
            for task in beside:
                task.cancel()
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
        _tell_all(session, loops, told)


async def _tell_for_ever(session: Session, loops: dict[str, Loop], told: dict[str, int]) -> None:
    while True:
        await asyncio.sleep(TELL_S)
        _tell_all(session, loops, told)


def _tell_all(session: Session, loops: dict[str, Loop], told: dict[str, int]) -> None:
    for name, loop in loops.items():
        if loop.done > told[name]:
            _tell(session, name, loop.done - told[name])
            told[name] = loop.done
