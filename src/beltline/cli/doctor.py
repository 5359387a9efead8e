"""beltline doctor: look at everything that could be wrong with this installation, and say what to do about it."""

import os
import platform
import shutil
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import click
from msgspec import Struct

from beltline.cli.command import Command, Session, pass_session, sqlite_path
from beltline.cli.engine import numbers
from beltline.cli.output import SCHEMA_VERSION, Column
from beltline.cli.problems import FAILED, OK
from beltline.cli.text import safe, size, span, things
from beltline.config import unknown_variables
from beltline.core.config import redact
from beltline.core.errors import BeltlineError, EngineUnsafe
from beltline.core.views import WorkerView
from beltline.engines.moving import Level
from beltline.engines.protocol import Browse, Engine, Fleet, Inspectable, Movable
from beltline.monitor.explain import LOST_S

Verdict = Literal["ok", "note", "problem"]
PACKAGES = ("beltline", "apsw", "psycopg", "msgspec", "click", "psutil", "setproctitle", "uuid-utils", "pillow", "watchfiles", "uvloop")
LITTLE_SPACE_BYTES = 500_000_000
LARGE_WAL_BYTES = 256 * 1024 * 1024
CLOCK_STEP_S = 2.0


class Finding(Struct, frozen=True, kw_only=True):
    """`verdict`: ok, note (worth knowing), problem (mend it). `help`: what to do."""

    version: int = SCHEMA_VERSION
    check: str
    verdict: Verdict
    found: str
    help: str = ""


@click.command(cls=Command, shape=Finding)
@pass_session
def doctor(session: Session) -> int:
    """Look for what is wrong with this installation. Exit code 1 when there is a problem."""
    findings = [*_python(), *_configuration(session), *_engine(session)]
    colours = {"ok": "green", "note": "yellow", "problem": "red"}
    columns = [
        Column("verdict", lambda item: item.verdict, lambda item: item.verdict),
        Column("check", lambda item: item.check),
        Column("found", lambda item: item.found, elastic=True),
        Column("help", lambda item: item.help, elastic=True),
    ]
    if session.out.form == "table":
        for item in findings:
            session.out.lines([f"{session.out.paint(f'{item.verdict:<8}', colours[item.verdict])} {safe(item.check):<16} {safe(item.found)}"])
            session.out.lines([f"{'':<26}{safe(item.help)}"] if item.help else [])
    else:
        session.out.things(findings, columns, id=lambda item: item.check)
    bad = sum(item.verdict == "problem" for item in findings)
    session.out.note(f"{things(bad, 'problem')} found." if bad else "No problem found.")
    return FAILED if bad else OK


def _python() -> Iterator[Finding]:
    yield Finding(
        check="python",
        verdict="ok",
        found=f"{platform.python_implementation()} {platform.python_version()} on {platform.system()} {platform.machine()}, {things(os.cpu_count() or 1, 'CPU')}",
    )
    found, missing = [], []
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    yield Finding(check="packages", verdict="ok", found=", ".join(found))
    extras = {"pillow": "demo", "watchfiles": "dev", "uvloop": "fast"}
    for name in missing:
        yield Finding(
            check="packages",
            verdict="note",
            found=f"{name} is not installed",
            help=f"Only needed for the extra {extras[name]!r}: pip install 'beltline[{extras[name]}]'"
            if name in extras
            else "Install it: pip install beltline",
        )
    year = time.gmtime().tm_year
    if year < 2025:
        yield Finding(
            check="clock", verdict="problem", found=f"this host believes it is {year}", help="Set the clock: ids and delays are made from it."
        )
    else:
        yield Finding(check="clock", verdict="ok", found=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))


def _configuration(session: Session) -> Iterator[Finding]:
    try:
        config = session.config
    except BeltlineError as error:
        yield Finding(check="configuration", verdict="problem", found=error.what, help=f"{error.why} {error.help}".strip())
        return
    yield Finding(
        check="configuration",
        verdict="ok",
        found=f"url {redact(config.url)} (from {config.origin('url')}), durability {config.durability.name.lower()} (from {config.origin('durability')})",
    )
    for variable, near in unknown_variables().items():
        yield Finding(
            check="configuration",
            verdict="note",
            found=f"{variable} is set, and this version does not read it",
            help=f"Did you mean {near}?" if near else "",
        )


def _engine(session: Session) -> Iterator[Finding]:
    try:
        url = session.config.url
    except BeltlineError:
        return
    path = sqlite_path(url)
    if path is not None:
        yield from _file(path)
        if not path.exists():
            return
    elif url.startswith("memory:"):
        yield Finding(
            check="engine", verdict="note", found="memory: everything dies with the process", help="For more than tests: sqlite:///beltline.db"
        )
        return
    try:
        yield from session.run(_opened)
    except BeltlineError as error:
        yield Finding(check="engine", verdict="problem", found=f"[{error.code}] {error.what}", help=f"{error.why} {error.help}".strip())


async def _opened(engine: Engine) -> list[Finding]:
    found = []
    began = time.monotonic()
    now = await engine.now()
    took_s = time.monotonic() - began
    have = numbers(engine.capabilities)
    found.append(
        Finding(
            check="engine",
            verdict="ok",
            found=f"{engine.name} answered in {span(took_s)}; durability {have['durability']}, fence {have['fence']}, order {have['order']}",
        )
    )
    apart_s = now - time.time()
    if abs(apart_s) > CLOCK_STEP_S:
        found.append(
            Finding(
                check="clock",
                verdict="note",
                found=f"the engine's clock is {span(abs(apart_s))} {'ahead of' if apart_s > 0 else 'behind'} this host's",
                help="A clock was set back once, or hosts disagree: delays follow the engine's clock.",
            )
        )
    if isinstance(engine, Inspectable):
        found += [Finding(**{name: getattr(remark, name) for name in remark.__struct_fields__}) for remark in await engine.inspect()]
    if isinstance(engine, Movable) and (seal := await engine.seal()) is not None:
        where, what = ("from", "being filled") if seal.level is Level.FILLING else ("to", "closed by a move")
        found.append(
            Finding(
                check="move",
                verdict="note",
                found=f"{what}, {where} {seal.other}",
                help="Use the new store, or go on: beltline engine move --from … --to …",
            )
        )
    if isinstance(engine, Fleet):
        found += _workers(await engine.workers())
    if isinstance(engine, Browse):
        specs = await engine.queues()
        all_counts = {str(spec.name): await engine.counts(spec.name) for spec in specs}
        waiting = sum(each.ready + each.delayed for each in all_counts.values())
        found.append(Finding(check="queues", verdict="ok", found=f"{things(len(specs), 'queue')}, {things(waiting, 'message')} waiting"))
        for name, each in all_counts.items():
            if each.dead:
                found.append(
                    Finding(
                        check="queues",
                        verdict="note",
                        found=f"{name}: {things(each.dead, 'dead message')}",
                        help=f"beltline dead ls --queue {name} --by error",
                    )
                )
            if each.parked:
                found.append(
                    Finding(
                        check="queues",
                        verdict="problem",
                        found=f"{name}: no worker knows the task of {things(each.parked, 'message')}",
                        help="Deploy the code that has it, or cancel them. None was lost, none spent an attempt.",
                    )
                )
            if each.paused:
                found.append(Finding(check="queues", verdict="note", found=f"{name} is paused", help=f"beltline queue resume {name}"))
            if each.snoozed_until:
                found.append(Finding(check="queues", verdict="note", found=f"{name} is snoozed", help=f"beltline queue resume {name} ends it"))
            if each.tripped_until or each.trying:
                found.append(
                    Finding(
                        check="queues",
                        verdict="problem",
                        found=f"{name} was stopped by its kill switch",
                        help=f"beltline dead ls --queue {name} --by error",
                    )
                )
    return found


def _workers(workers: list[WorkerView]) -> list[Finding]:
    if not workers:
        return [Finding(check="workers", verdict="note", found="no worker is up", help="beltline worker tasks:app")]
    lost = [worker for worker in workers if worker.age_s > LOST_S]
    found = [Finding(check="workers", verdict="ok", found=f"{things(len(workers) - len(lost), 'worker')} up")]
    found += [
        Finding(
            check="workers",
            verdict="note",
            found=f"{worker.id} on {worker.host} was last heard of {span(worker.age_s)} ago",
            help="Its messages are received by others when their leases end.",
        )
        for worker in lost
    ]
    versions = {str(worker.detail.get("version")) for worker in workers if worker.detail.get("version")}
    if len(versions) > 1:
        found.append(
            Finding(
                check="workers",
                verdict="note",
                found=f"workers run {len(versions)} versions of Beltline: {', '.join(sorted(versions))}",
                help="Fine during a deployment.",
            )
        )
    return found


def _file(path: Path) -> Iterator[Finding]:
    """The SQLite library, the file, and the folder and disk below it."""
    from beltline.engines.sqlite import place

    try:
        place.check_library()
    except EngineUnsafe as error:
        yield Finding(check="sqlite", verdict="problem", found=error.what, help=error.help)
    else:
        yield Finding(check="sqlite", verdict="ok", found=f"the library of apsw {version('apsw')} is free of the known WAL bug")
    folder = path.absolute().parent
    if not folder.is_dir():
        yield Finding(check="folder", verdict="problem", found=f"{folder} does not exist", help=f"mkdir -p {folder}")
        return
    writable = os.access(folder, os.W_OK | os.X_OK)
    yield Finding(
        check="folder",
        verdict="ok" if writable else "problem",
        found=f"{folder} is {'writable' if writable else 'not writable for this user'}",
        help="" if writable else "SQLite writes two files beside the database: give this user the folder.",
    )
    kind = place.filesystem_of(folder)
    try:
        place.check_filesystem(folder)
    except EngineUnsafe as error:
        yield Finding(check="file system", verdict="problem", found=error.what, help=error.help)
    else:
        yield Finding(check="file system", verdict="ok", found=kind or "a local one, as far as can be seen")
    free = shutil.disk_usage(folder).free
    yield Finding(
        check="disk",
        verdict="ok" if free > LITTLE_SPACE_BYTES else "problem",
        found=f"{size(free)} free",
        help="" if free > LITTLE_SPACE_BYTES else "A full disk refuses sends. Nothing acknowledged is lost.",
    )
    if not path.exists():
        yield Finding(check="file", verdict="note", found=f"{path} does not exist yet", help="The first send or worker makes it.")
        return
    mode = path.stat()
    readable = os.access(path, os.R_OK | os.W_OK)
    yield Finding(
        check="file",
        verdict="ok" if readable else "problem",
        found=f"{path}, {size(mode.st_size)}" + ("" if readable else ", not writable for this user"),
        help="" if readable else f"It belongs to uid {mode.st_uid}; this is uid {os.getuid()}.",
    )
    wal = path.with_name(path.name + "-wal")
    if wal.exists():
        wal_size = wal.stat().st_size
        large = wal_size > LARGE_WAL_BYTES
        yield Finding(
            check="write-ahead log",
            verdict="note" if large else "ok",
            found=size(wal_size),
            help="A process reads for very long, or was killed: it shrinks when the last one closes." if large else "",
        )
