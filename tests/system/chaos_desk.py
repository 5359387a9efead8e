"""What the rig asks of the store, during a chaos run and at its end."""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TypeVar

from beltline import App
from beltline.core.codec import unpack
from beltline.core.errors import EngineUnavailable
from beltline.core.names import QueueName
from beltline.core.views import MessageFilter, MessageView
from beltline.engines.protocol import Browse, Engine, Results, Runs
from tests.system import chaos_flow
from tests.system.chaos_knobs import Knobs
from tests.system.chaos_line import QUEUES
from tests.system.chaos_line import app as line
from tests.system.chaos_sender import item_number
from tests.system.history import Attempt, History, RunEnd, Stored

T = TypeVar("T")
SERVER_S = 60.0  # for a server to be back
EVIDENCE = 5  # lines per finding in the report
Held = dict[str, int]  # message -> epoch


def queues_of(chain: str) -> tuple[str, ...]:
    return chaos_flow.QUEUES if chain == "flow" else QUEUES


class Desk:
    """What the rig itself asks of the store. A store that is away is asked again, for as long as a server may take to be back."""

    def __init__(self, app: App, chain: str) -> None:
        self.app = app
        self.chain = chain
        self.queues = queues_of(chain)

    def ask(self, question: Callable[[Engine], Awaitable[T]]) -> T:
        async def once() -> T:
            return await question(await self.app.ready())

        until = time.monotonic() + SERVER_S
        while True:
            try:
                return self.app.blocking(once())
            except EngineUnavailable:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)

    def declare(self) -> None:
        specs = [spec for spec in line.specs() if spec.name in self.queues]
        self.ask(lambda engine: engine.declare(specs))

    def ended(self) -> tuple[int, int]:
        """How many runs have ended, and how many messages: the measure of progress."""
        return self.ask(self._ended)

    async def _ended(self, engine: Engine) -> tuple[int, int]:
        assert isinstance(engine, Runs)
        counts = await engine.run_counts(self.chain)
        return counts.entered - counts.running, sum([(await engine.counts(QueueName(queue))).done for queue in self.queues])

    def open(self) -> int:
        """How many messages have not ended."""
        counted = self.ask(self._counted)
        return counted["ready"] + counted["delayed"] + counted["leased"]

    def held_by(self, pid: int) -> Held:
        """What the supervisor with this pid holds."""

        async def held(engine: Engine) -> Held:
            assert isinstance(engine, Browse)
            page = await engine.browse(MessageFilter(queues=self.queues, states=("leased",)), limit=1000)
            return {view.message.id: view.epoch for view in page.messages if view.worker.split("-")[-2] == str(pid)}

        return self.ask(held)

    def overtaken(self, held: Held) -> bool:
        """Whether somebody else was handed any of it."""

        async def any_later(engine: Engine) -> bool:
            assert isinstance(engine, Browse)
            page = await engine.browse(MessageFilter(ids=tuple(held)), limit=len(held))
            return any(view.epoch > held[view.message.id] for view in page.messages)

        return self.ask(any_later)

    def left_over(self) -> list[str]:
        """A few messages that have not ended well, in words, for whoever has to find out why."""
        return self.ask(self._left_over)

    async def _left_over(self, engine: Engine) -> list[str]:
        assert isinstance(engine, Browse)
        page = await engine.browse(MessageFilter(queues=self.queues, states=("delayed", "ready", "leased", "dead")), limit=EVIDENCE)
        views = [await engine.get(view.message.id) for view in page.messages]
        return [
            f"{v.message.id} {v.message.queue} {v.state} epoch {v.epoch} worker {v.worker} why {v.why!r} {[a.outcome + ' ' + a.worker for a in v.attempts]}"
            for v in views
        ]

    def testify(self, history: History, knobs: Knobs | None) -> None:
        """Add what the store says."""
        views = self.ask(self._all_messages)
        history.messages = [_stored(view) for view in views if view.message.place is not None]
        history.singles = [_stored(view) for view in views if view.message.place is None]
        history.runs = self.ask(self._runs)
        history.counted = self.ask(self._counted)
        if knobs is not None:
            knobs.testify(history, [view for view in views if view.message.task == chaos_flow.tick.name])

    async def _runs(self, engine: Engine) -> list[RunEnd]:
        assert isinstance(engine, Runs)
        assert isinstance(engine, Results)
        found, page, cursor = [], 1000, ""
        while True:
            runs = await engine.runs(self.chain, limit=page, cursor=cursor)
            views = await engine.results([run.id for run in runs])
            for run, view in zip(runs, views, strict=True):
                result = None if view is None or view.result is None else tuple(unpack(view.result))
                found.append(RunEnd(id=run.id, number=item_number(run.id), state=run.state, result=result))
            if len(runs) < page:
                return found
            cursor = runs[-1].id

    async def _all_messages(self, engine: Engine) -> list[MessageView]:
        """Every message of the line; with its attempts, where there was more than one."""
        assert isinstance(engine, Browse)
        found: list[MessageView] = []
        where, cursor = MessageFilter(queues=self.queues), ""
        while True:
            page = await engine.browse(where, limit=1000, cursor=cursor)
            found += page.messages
            cursor = page.cursor
            if not cursor:
                return [await engine.get(view.message.id) if view.epoch > 1 else view for view in found]

    async def _counted(self, engine: Engine) -> dict[str, int]:
        total: Counter[str] = Counter()
        for queue in self.queues:
            counts = await engine.counts(QueueName(queue))
            total += Counter(ready=counts.ready, delayed=counts.delayed, leased=counts.leased, dead=counts.dead, done=counts.done)
        return Counter(total)


def _stored(view: MessageView) -> Stored:
    place, flow = view.message.place, view.message.flow
    return Stored(
        id=view.message.id,
        run=place.run if place else "",
        stage=place.stage if place else "",
        number=item_number(place.run) if place else -1,
        queue=view.message.queue,
        state=view.state,
        outcome=view.outcome,
        epoch=view.epoch,
        sent_at=view.sent_at,
        ended_at=view.ended_at,
        group=view.message.group or "",
        attempts=tuple(Attempt(epoch=each.epoch, outcome=each.outcome, ended_at=each.ended_at) for each in view.attempts),
        claims=tuple((claim.limit, claim.key, claim.cost) for claim in flow.claims) if flow else (),
    )
