"""beltline send: one message to a task, one item into a chain, or one per line of stdin. With the app's code the arguments are checked here, without it at the worker."""

import sys
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import click
from msgspec import Struct

from beltline.cli.arguments import by_signature, named_values
from beltline.cli.command import Command, Session, check_reachable, pass_session
from beltline.cli.names import Name, unknown
from beltline.cli.output import SCHEMA_VERSION, Form
from beltline.cli.selecting import Span
from beltline.cli.text import count, safe, safe_json, things
from beltline.core.codec import from_json, to_json
from beltline.core.errors import EngineUnavailable, TaskFailed, UsageError, ValueInvalid

if TYPE_CHECKING:
    from beltline.app import App
    from beltline.handles import Handle
    from beltline.sending import Sendable

BATCH = 1000


class Send(Command):
    """`--json -` is input and output in JSON; `--json` alone is only output. Which of them is meant is seen here, before the parser takes both for a flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        for index, word in enumerate(args[:end]):
            if word == "--json=-" or (word == "--json" and args[index + 1 : index + 2] == ["-"]):
                args[index : index + (1 if word == "--json=-" else 2)] = ["--json", "--arguments", "-"]
                break
        return super().parse_args(ctx, args)


class Moment(click.ParamType[Any]):
    """An instant in ISO 8601; without a zone it is this host's."""

    name = "instant"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            return datetime.fromisoformat(value).astimezone() if datetime.fromisoformat(value).tzinfo is None else datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is no instant; write 2026-12-24T18:00 or 2026-12-24T18:00+01:00.", param, ctx)


class SentItem(Struct, frozen=True, kw_only=True):
    """`new` false: a message with this id, this dedup key or this unique key was there already and stands for it. `result`, `outcome`: only with --wait."""

    version: int = SCHEMA_VERSION
    id: str
    target: str
    queue: str
    new: bool
    outcome: str | None = None
    result: Any = None


@click.command(cls=Send, shape=SentItem)
@click.argument("target", metavar="TASK|CHAIN", type=Name("task", "chain"))
@click.argument("args", nargs=-1, metavar="[ARGS…]")
@click.option("--app", "app_name", metavar="MODULE:APP", help="Where the task's code is; without it arguments travel as text.")
@click.option("--queue", metavar="QUEUE", type=Name("queue"), help="Its queue, when the code is not here (else the last part of the task's name).")
@click.option("--arg", "named", multiple=True, metavar="NAME=VALUE", help="A named argument (again for more).")
@click.option("--arguments", type=click.Choice(["-"]), hidden=True)
@click.option("--stdin", "lines", is_flag=True, help="One message per line of stdin, the line as its only argument.")
@click.option("--delay", type=Span(), metavar="TIME", help="Not before 90, 10m, 2h, 7d from now.")
@click.option("--at", type=Moment(), metavar="WHEN", help="Not before this instant (ISO 8601).")
@click.option("--priority", type=click.IntRange(-100, 100), help="Larger first.")
@click.option("--group", help="FIFO lane: one at a time, in order.")
@click.option("--dedup-key", help="The same key within 5 minutes is the same message.")
@click.option("--unique-key", help="While another with this key waits or runs, it is that one.")
@click.option("--tenant", help="Whose it is: tenants share the queue fairly.")
@click.option("--sticky", metavar="KEY", help="One worker keeps this key while it lives.")
@click.option("--expires", type=Span(), metavar="TIME", help="Not worth running after this time.")
@click.option("--header", "headers", multiple=True, metavar="NAME=TEXT", help="A small fact that travels along (again for more).")
@click.option("--id", "id_", metavar="UUID", help="An id of your own; repeating it is safe.")
@click.option("--wait", is_flag=True, help="Wait for the end and print the result.")
@click.option("--timeout", type=Span(), metavar="TIME", help="With --wait: how long (else without end).")
@pass_session
def send(
    session: Session, /, target: str, args: tuple[str, ...], app_name: str | None, queue: str | None, wait: bool, timeout: float | None, **more: Any
) -> int:
    """Send to a task or into a chain.

    \b
    beltline send resize cat.jpg 640             text becomes what the signature says
    beltline send resize --json - < args.json    an object names the arguments, an array gives them in order
    ls in/*.jpg | beltline send album --stdin    one message per line
    --json - reads arguments and prints JSON; --json alone only prints it.
    """
    session.set_flags(app=app_name)
    given = (more["arguments"] is not None) + more["lines"] + bool(args or more["named"])
    if given > 1:
        raise UsageError("Arguments come from one place.", help="Give them as ARGS, by --json -, or by --stdin.")
    if more["lines"] and (wait or more["id_"]):
        raise UsageError(f"--stdin sends many messages: {'--wait' if wait else '--id'} fits one.")
    app = session.app() if session.has_app else without_code(session)
    found = find(app, target, queue, known=session.has_app)
    sendable = _prepared(found, more)
    check_reachable(app.url, create=True)
    try:
        if more["lines"]:
            return _send_lines(session, found, sendable, target)
        positional, named = given_arguments(found, args, more)
        try:
            handle = sendable.send(*positional, **named)
        except EngineUnavailable as error:
            if error.effect == "unknown" and error.ids:
                session.out.lines(error.ids[:1])
                error.help = f"Repeat the same command with --id {error.ids[0]}."
            raise
        _said(session, handle, target, _queue_of(found), wait=wait)
        return _wait(session, handle, target, _queue_of(found), timeout) if wait else 0
    finally:
        app.close()


def without_code(session: Session) -> "App":
    from beltline.app import App

    return App(session.config.url, durability=session.durability, max_body=session.config.max_body)


def find(app: "App", target: str, queue: str | None, *, known: bool) -> "Sendable[..., Any]":
    """With the code, a name that it does not have is a mistake, unless a queue says that the code is elsewhere. Raises NotFound."""
    if known and queue is None and app.find(target) is None:
        raise unknown("task or chain", target, [*app.chains, *app.tasks])
    return app.by_name(target, queue=queue)


def _queue_of(found: Any) -> str:
    plan = getattr(found, "plan", None)
    return str(plan.stages[0].queue if plan is not None else found.queue)


def _prepared(found: "Sendable[..., Any]", more: dict[str, Any]) -> "Sendable[..., Any]":
    plain = ("delay", "at", "priority", "group", "dedup_key", "unique_key", "tenant", "sticky", "expires")
    names = {"id": "id_", "headers": "headers", **{name: name for name in plain}}
    chosen = {name: more[field] for name, field in names.items() if more[field] not in (None, ())}
    if "delay" in chosen and "at" in chosen:
        raise UsageError("--delay and --at exclude each other.")
    if "headers" in chosen:
        chosen["headers"] = named_values(chosen["headers"], "--header")
    return found.with_options(**chosen) if chosen else found


def given_arguments(found: Any, args: tuple[str, ...], more: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    if more["arguments"] is None:
        return by_signature(found, args, named_values(more["named"], "--arg"))
    value = from_json(sys.stdin.read())
    if isinstance(value, dict):
        return [], value
    if isinstance(value, list):
        return value, {}
    raise ValueInvalid(name="the JSON on stdin", value=to_json(value)[:80], allowed="an object (arguments by name) or an array (by position)")


def _said(session: Session, handle: "Handle[Any]", target: str, queue: str, *, wait: bool) -> None:
    if wait:
        session.out.note(f"sent {handle.id}" + ("" if handle.new else " (it was there already)"))
        return
    item = SentItem(id=handle.id, target=target, queue=queue, new=handle.new)
    session.out.thing(item, lambda: [handle.id], id=handle.id)
    if not handle.new:
        session.out.note("It was there already: nothing was stored a second time.")


def _wait(session: Session, handle: "Handle[Any]", target: str, queue: str, timeout_s: float | None) -> int:
    try:
        result = handle.result(timeout=timeout_s)
    except TaskFailed as error:
        if session.out.form is Form.JSON:
            session.out.json(SentItem(id=handle.id, target=target, queue=queue, new=handle.new, outcome=error.outcome))
        raise
    item = SentItem(id=handle.id, target=target, queue=queue, new=handle.new, outcome="succeeded", result=result)
    session.out.thing(item, lambda: [safe_json(to_json(result))], id=handle.id)
    return 0


def _send_lines(session: Session, found: Any, sendable: "Sendable[..., Any]", target: str) -> int:
    """In batches of 1000, each all or nothing. After a failure the count says which line to go on from. Exit code 8: some were sent."""
    sent = again = 0
    queue = _queue_of(found)
    stream = _lines()
    while lines := list(islice(stream, BATCH)):
        try:
            handles = sendable.send_many([sendable.call(*by_signature(found, (line,), {})[0]) for line in lines])
        except EngineUnavailable as error:
            error.help = f"{count(sent)} lines were sent before. {error.help}"
            raise
        except Exception:
            session.out.warn(f"{count(sent)} lines were sent; none of the {count(len(lines))} from line {sent + 1} on")
            raise
        sent += len(handles)
        again += sum(not handle.new for handle in handles)
        if session.out.form in (Form.JSON, Form.IDS, Form.TSV):
            for handle in handles:
                item = SentItem(id=handle.id, target=target, queue=queue, new=handle.new)
                session.out.thing(item, lambda handle=handle: [handle.id], id=handle.id)  # type: ignore[misc]
        session.out.note(f"{count(sent)} sent")
    if sent == 0:
        raise UsageError("stdin had no line to send.")
    if session.out.form is Form.TABLE:
        session.out.lines([f"{things(sent, 'message')} sent to {safe(target)}" + (f", {count(again)} were there already" if again else "")])
    return 0


def _lines() -> Iterator[str]:
    """Lines without their ends; empty ones are skipped. A name that is no valid text is a ValueInvalid, as the codec says it."""
    for line in sys.stdin:
        text = line.rstrip("\r\n")
        if text:
            yield text
