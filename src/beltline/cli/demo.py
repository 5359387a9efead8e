"""beltline demo: photos through a line of three stages, with a live picture. Draws what demo/runner.py sees."""

import os
import sys
import time
from pathlib import Path

import click
from msgspec import Struct

from beltline.cli.command import Command, Session, pass_session
from beltline.cli.output import SCHEMA_VERSION, Form, Output
from beltline.cli.problems import FAILED, INTERRUPTED, OK, PARTLY, TERMINATED
from beltline.cli.text import bar, clip, count, pad, safe, span, things
from beltline.core.config import Slots, queue_slots, redact, slots
from beltline.core.errors import ConfigInvalid, NameInvalid
from beltline.demo.runner import CODE, SAMPLES, Demo, Now, Plan, Summary, prepare

PLAIN_EVERY_S = 2.0
STAGES = ("watermark", "resize", "thumbnail")


class DeadItem(Struct, frozen=True, kw_only=True):
    photo: str
    id: str
    reason: str


class DemoItem(Struct, frozen=True, kw_only=True):
    """Printed once, at the end. `outputs`: paths of finished pictures. `resumed`: photos an earlier start had sent. `skipped`: files that are no pictures."""

    version: int = SCHEMA_VERSION
    entered: int
    done: int
    dead: int
    cancelled: int
    seconds: float
    outputs: list[str]
    dead_letters: list[DeadItem]
    resumed: int
    skipped: int
    interrupted: bool
    out: str
    url: str
    code: str


@click.command(cls=Command, shape=DemoItem)
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.option(
    "--out", metavar="OUT", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Where the pictures go, and the database."
)
@click.option("-q", "--queue", "stages", multiple=True, metavar="STAGE:SLOTS", help="Slots of a stage: watermark:4, resize:2..8 (again for more).")
@click.option("--no-open", is_flag=True, help="Open no browser. (This version has no page to open yet.)")
@pass_session
def demo(session: Session, folder: Path | None, out: Path, stages: tuple[str, ...], no_open: bool) -> int:
    """Photos through a line of three stages: a mark, three sizes, then thumbnail and copyright. Ends by itself.

    Without DIR the sample photos are used; one of them is broken and ends in the dead letters. ctrl-c, or even kill -9, loses nothing: the same command goes on
    where it stopped.
    """
    del no_open  # accepted so that scripts written for later versions work; there is nothing to open
    import asyncio

    from beltline.cli.logs import set_up

    plan = Plan(
        folder=folder if folder is not None else SAMPLES,
        out=out,
        url=str(session.flags["url"] or ""),
        slots=_slots(stages),
        cpus=os.cpu_count() or 1,
    )
    found = prepare(plan)
    set_up(form="text", level="critical")  # the picture is the log; a dead photo is listed at the end
    picture = _Picture(session.out, plan)
    picture.head(0 if plan.samples else found.skipped)
    try:
        summary = asyncio.run(Demo(plan, found).run(picture.look))
    except KeyboardInterrupt:
        summary = None
    if summary is not None and summary.interrupted and summary.worker_code not in (0, INTERRUPTED, TERMINATED):
        return summary.worker_code  # the worker has said why
    if summary is None or summary.interrupted:
        session.out.note("Stopped. Nothing is lost: the same command goes on where this one stopped.")
        if summary is None or session.out.form is not Form.JSON:
            return INTERRUPTED
    _print(session, plan, summary)
    return INTERRUPTED if summary.interrupted else _exit_code(plan, summary)


def _slots(words: tuple[str, ...]) -> dict[str, Slots]:
    found = {}
    for word in words:
        try:
            name, number = queue_slots(word)
            found[name] = slots(number)
            if name not in STAGES or not found[name].most:
                raise ValueError(word)
        except (ValueError, NameInvalid):
            raise ConfigInvalid(
                key="-q", value=word, allowed="STAGE:SLOTS with watermark, resize or thumbnail, for example resize:2..8", origin="-q"
            ) from None
    return found


def _exit_code(plan: Plan, summary: Summary) -> int:
    """The broken sample is meant to die; in a folder of the user's every dead photo counts."""
    if plan.samples and {dead.photo for dead in summary.dead_photos} <= {"broken.jpg"}:
        return OK
    if not summary.dead and not summary.cancelled:
        return OK
    return PARTLY if summary.done else FAILED


def _print(session: Session, plan: Plan, summary: Summary) -> None:
    item = DemoItem(
        entered=summary.entered,
        done=summary.done,
        dead=summary.dead,
        cancelled=summary.cancelled,
        seconds=summary.seconds,
        outputs=[str(path) for path in summary.outputs],
        dead_letters=[DeadItem(photo=dead.photo, id=dead.id, reason=dead.reason) for dead in summary.dead_photos],
        resumed=summary.resumed,
        skipped=summary.skipped,
        interrupted=summary.interrupted,
        out=str(plan.out),
        url=redact(plan.engine_url),
        code=str(CODE),
    )
    url = "" if plan.url else f" --url sqlite:///{plan.out / 'beltline.db'}"

    def lines() -> list[str]:
        dead = [f"  dead  {safe(each.photo)}: {safe(each.reason)}" for each in summary.dead_photos[:10]]
        dead += [f"        and {count(len(summary.dead_photos) - 10)} more"] if len(summary.dead_photos) > 10 else []
        before = f", {count(summary.resumed)} sent by an earlier start" if summary.resumed else ""
        if summary.idle:
            before = f"; an earlier start had done them all (to see it again: rm -r {safe(plan.out)})"
        return [
            f"{things(summary.done, 'photo')} done, {count(summary.dead)} dead, in {span(summary.seconds)}{before}",
            *dead,
            f"  {things(len(summary.outputs), 'picture')} in {safe(plan.out)}{os.sep}",
            "",
            "Look at it:",
            f"  {_code()}",
            "      the whole line, in one short file",
            f"  beltline chain show album --app beltline.demo.image_line:app{url}",
            *([f"  beltline dead ls --by error{url}"] if summary.dead else []),
            "  beltline init          a project of your own",
        ]

    session.out.thing(item, lines, id="\n".join(item.outputs))


def _code() -> str:
    """Relative where it is shorter: the reader shall open it."""
    try:
        return str(CODE.relative_to(Path.cwd()))
    except ValueError:
        return str(CODE)


class _Picture:
    """The live picture: redrawn in place on a terminal, a plain line every two seconds elsewhere, nothing with --json or --quiet."""

    def __init__(self, out: Output, plan: Plan) -> None:
        self._out = out
        self._plan = plan
        self._silent = out.form in (Form.JSON, Form.IDS)
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not self._silent
        self._drawn = 0
        self._next_at = 0.0

    def head(self, skipped: int) -> None:
        if self._silent:
            return
        from importlib.metadata import version

        where = redact(self._plan.url) if self._plan.url else f"sqlite {self._plan.out / 'beltline.db'}"
        major = ".".join(version("beltline").split(".")[:2])
        self._out.note(f"Beltline {major} · {safe(where)} · {things(self._plan.cpus, 'CPU')} · ctrl-c leaves everything resumable")
        if skipped:
            self._out.note(f"{things(skipped, 'file')} skipped: no pictures by their names")

    def look(self, now: Now) -> None:
        if self._silent:
            return
        if self._live:
            self._redraw(now)
        elif time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + PLAIN_EVERY_S
            stages = " · ".join(f"{stage.name} {stage.done + stage.dead}/{stage.total}" for stage in now.stages)
            self._out.note(f"{stages} · {_foot(now)}")

    def _redraw(self, now: Now) -> None:
        columns = self._out.columns
        wide = max(len(stage.name) for stage in now.stages)
        numbers = max(len(f"{stage.done + stage.dead}/{stage.total}") for stage in now.stages)
        lines = []
        for stage in now.stages:
            progress = pad(f"{stage.done + stage.dead}/{stage.total}", numbers, right=True)
            line = f" {stage.name:<{wide}}  {bar(stage.done + stage.dead, stage.total)} {progress}  backlog {stage.backlog:<4} running {stage.running:<3}"
            line += f" {stage.ran_s:.2f} s" if stage.ran_s else ""
            line += f"   oldest {span(stage.oldest_s)}" if stage.oldest_s >= 1 else ""
            line += "  <- slowest now" if stage.slowest else ""
            lines.append(clip(line, columns - 1))
        lines.append(clip(f" {_foot(now)}", columns - 1))
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        print(up + "".join(f"\x1b[2K{line}\n" for line in lines), end="", file=sys.stderr, flush=True)
        self._drawn = len(lines)


def _foot(now: Now) -> str:
    dead = f"dead {count(now.dead)}" + (f" ({clip(safe(now.last_dead), 60)})" if now.last_dead else "")
    parts = [f"done {count(now.done)}", dead]
    parts += [f"cancelled {count(now.cancelled)}"] if now.cancelled else []
    parts += [f"{now.per_minute:.0f}/min"] if now.per_minute else []
    parts += [f"about {span(max(1.0, now.left_s))} left"] if now.left_s is not None else []
    return " · ".join(parts)
