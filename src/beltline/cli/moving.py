"""beltline engine move: all queues of one store into another."""

import asyncio
from contextlib import AsyncExitStack

from msgspec import Struct

from beltline.cli.command import Session, check_reachable
from beltline.cli.output import SCHEMA_VERSION
from beltline.cli.problems import FAILED, OK, TIMED_OUT
from beltline.cli.text import safe, span
from beltline.core.config import redact
from beltline.core.errors import Unsupported, UsageError
from beltline.engines.moving import RUN_WORDS
from beltline.engines.protocol import Browse, Engine, Movable, Runs
from beltline.upkeep.moving import Mover, MoveReport, take_back

EXIT = {"moved": OK, "waiting": TIMED_OUT, "different": FAILED}


class MoveItem(Struct, frozen=True, kw_only=True):
    """`state`: dry_run, moved, waiting (for `waits_for`; run it again), different (nothing was opened), taken_back. `messages`: queue -> state -> how many; `runs`: chain -> state -> how many."""

    version: int = SCHEMA_VERSION
    source: str
    target: str
    state: str
    move: str = ""
    waits_for: str = ""
    messages: dict[str, dict[str, int]] = {}
    runs: dict[str, dict[str, int]] = {}
    things: dict[str, int] = {}
    digest: str = ""
    copied: int = 0
    took_s: float = 0.0


def move(session: Session, source: str, target: str, *, wait_s: float, dry_run: bool, abort: bool) -> int:
    if abort:
        return asyncio.run(_abort(session, source))
    if not target:
        raise UsageError("Say where to: --to URL.", help="For example: --to postgresql://localhost/app")
    if source == target:
        raise UsageError("--from and --to name the same store.", help="Nothing was changed.")
    if dry_run:
        return asyncio.run(_dry_run(session, source, target))
    return asyncio.run(_move(session, source, target, wait_s))


async def _move(session: Session, source: str, target: str, wait_s: float) -> int:
    from beltline.sending import new_id

    async with AsyncExitStack() as stack:
        one = await _open(session, stack, source, create=False)
        other = await _open(session, stack, target, create=True)
        report = await Mover(_movable(one), _movable(other), new_id=new_id(), tell=session.out.note, wait_s=wait_s).run()
    item = _item(source, target, report)
    session.out.thing(item, lambda: _lines(item), id=item.move)
    return EXIT[report.state]


async def _dry_run(session: Session, source: str, target: str) -> int:
    messages: dict[str, dict[str, int]] = {}
    runs: dict[str, dict[str, int]] = {}
    async with AsyncExitStack() as stack:
        engine = await _open(session, stack, source, create=False)
        _movable(engine)
        assert isinstance(engine, Browse)
        assert isinstance(engine, Runs)
        for spec in await engine.queues():
            counts = await engine.counts(spec.name)
            messages[spec.name] = {
                "ready": counts.ready,
                "delayed": counts.delayed,
                "leased": counts.leased,
                "dead": counts.dead,
                "done": counts.done,
            }
    item = MoveItem(source=redact(source), target=redact(target), state="dry_run", messages=messages, runs=runs)
    session.out.thing(item, lambda: _lines(item), id="")
    session.out.note("dry run: nothing was changed")
    return OK


async def _abort(session: Session, source: str) -> int:
    async with AsyncExitStack() as stack:
        engine = _movable(await _open(session, stack, source, create=False))
        seal = await take_back(engine)
    item = MoveItem(source=redact(source), target=seal.other, state="taken_back", move=seal.move)
    session.out.thing(
        item, lambda: [f"{safe(item.source)} is open again. Drop what was copied to {safe(item.target)} before another move into it."], id=seal.move
    )
    return OK


async def _open(session: Session, stack: AsyncExitStack, url: str, *, create: bool) -> Engine:
    from beltline.engines.registry import make_engine

    check_reachable(url, create=create)
    engine = make_engine(url, durability=session.durability, max_body=session.config.max_body)
    stack.push_async_callback(engine.close)
    await engine.open()
    return engine


def _movable(engine: Engine) -> Movable:
    if isinstance(engine, Movable):
        return engine
    raise Unsupported(feature="move", need=1, have=0, engine=engine.name, engines=("sqlite", "postgresql"))


def _item(source: str, target: str, report: MoveReport) -> MoveItem:
    return MoveItem(
        source=redact(source),
        target=redact(target),
        state=report.state,
        move=report.move,
        waits_for=report.waits_for,
        messages=report.messages,
        runs=report.runs,
        things={str(section): count for section, count in report.things.items()},
        digest=report.digest,
        copied=report.copied,
        took_s=round(report.took_s, 3),
    )


def _lines(item: MoveItem) -> list[str]:
    lines = [f"{safe(name)}: {_words(counts)}" for name, counts in sorted(item.messages.items())]
    lines += [f"runs of {safe(chain)}: {_words(counts)}" for chain, counts in sorted(item.runs.items())]
    match item.state:
        case "moved":
            if item.digest:
                lines.append(f"equal on both sides, digest {item.digest}; {item.copied:,} messages copied in {span(item.took_s)}")
            lines.append(f"moved to {safe(item.target)}; {safe(item.source)} is kept and takes nothing any more")
            lines.append(f'Now change one line, in beltline.toml or as BELTLINE_URL, and start the workers: url = "{safe(item.target)}"')
        case "waiting":
            lines.append(
                f"not begun to copy: {safe(item.waits_for)}. The source stays sealed: run the same command again, or take it back with --abort"
            )
        case "different":
            lines.append(f"source and target differ: {safe(item.waits_for)}. Neither was opened: take it back with --abort")
        case _:  # a dry run
            pass
    return lines


def _words(counts: dict[str, int]) -> str:
    order = ("ready", "delayed", "leased", "dead", "done", *RUN_WORDS)
    known = {word: counts[word] for word in dict.fromkeys(order) if word in counts}
    return " · ".join(f"{count:,} {word}" for word, count in known.items())
