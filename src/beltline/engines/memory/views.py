"""Rows as callers may see them."""

from beltline.core.lifecycle import State
from beltline.core.names import StageName
from beltline.core.outcome import Ended
from beltline.core.views import GatherView, MessageView, ResultView, RunView
from beltline.engines.memory.queue import QueueRows
from beltline.engines.memory.rows import GatherRow, Row, RunRow


def message_view(row: Row, queue: QueueRows, now: float) -> MessageView:
    shown = row.shown(now)
    due_at = {State.DELAYED: row.ready_at, State.LEASED: row.lease_until}.get(shown, 0.0)
    return MessageView(
        message=row.message,
        state=shown.word,
        epoch=row.epoch,
        failed=row.failed,
        lost=row.lost,
        sent_at=row.sent_at,
        due_at=due_at,
        ended_at=row.ended_at,
        outcome=row.ended.value if row.ended is not None else "",
        why=row.why,
        worker=row.worker,
        blocked=queue.blocked(row),
        cancel_asked=row.cancel_asked is not None,
        progress=row.progress,
        attempts=tuple(row.attempts),
    )


def message_result(row: Row, now: float) -> ResultView:
    dead = row.state is State.DEAD
    return ResultView(
        id=row.id,
        state=row.shown(now).word,
        outcome=row.ended.value if row.ended is not None else "",
        result=row.result if now < row.result_until else None,
        expired=row.result_until <= now,
        progress=row.progress,
        failure=row.failure if dead else None,
        why=row.why,
    )


def run_result(run: RunRow, now: float) -> ResultView:
    """The states of a run in the words of a message: failed reads as dead, cancelled as done."""
    state, outcome = {
        "done": ("done", Ended.SUCCEEDED.value),
        "cancelled": ("done", Ended.CANCELLED.value),
        "failed": ("dead", ""),
    }.get(run.state, (run.state, ""))
    return ResultView(
        id=run.id,
        state=state,
        outcome=outcome,
        result=run.result if now < run.result_until else None,
        expired=run.result_until <= now,
        failure=run.failure if state == "dead" else None,
        why=run.why if run.state in ("dead", "failed", "cancelled") else "",
    )


def run_view(run: RunRow) -> RunView:
    return RunView(id=run.id, chain=run.chain, state=run.state, open=run.open, dead=run.dead, entered_at=run.entered_at, ended_at=run.ended_at)


def gather_view(row: GatherRow) -> GatherView:
    gather = row.gather
    return GatherView(
        id=gather.id,
        run=gather.run,
        stage=gather.then.place.stage if gather.then is not None and gather.then.place is not None else StageName(""),
        expected=gather.expected,
        missing=gather.expected - len(row.answers),
        dead=len(row.dead),
        fired=row.fired,
    )
