"""Both engines side by side, and the ledger of what they have answered."""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar, cast

from hypothesis.stateful import RuleBasedStateMachine
from msgspec import structs

from beltline.core.errors import BeltlineError
from beltline.core.message import Delivery, Message
from beltline.core.names import MessageId, QueueName, RunId
from beltline.core.outcome import Admission, Sent
from beltline.core.views import MessageView
from beltline.testing.conformance import kit
from beltline.testing.conformance.harness import Full, Harness
from beltline.testing.machine.looking import difference


class Driver(RuleBasedStateMachine):
    """Subclasses (made by `case`) say which engines. What it keeps is what was answered, never what an engine thinks."""

    subject_kind: ClassVar[type[Harness]]
    oracle_kind: ClassVar[type[Harness] | None]
    parts: ClassVar[frozenset[str] | None]  # what every history has; None: as it is drawn

    def __init__(self) -> None:
        super().__init__()
        kit.number_from(1)
        self.folder = Path(tempfile.mkdtemp(prefix="beltline-machine-"))
        self.runner = asyncio.Runner()
        kinds = [self.subject_kind] if self.oracle_kind is None else [self.subject_kind, self.oracle_kind]
        self.harnesses = [kind(self.folder / str(number)) for number, kind in enumerate(kinds)]
        for harness in self.harnesses:
            harness.folder.mkdir()
        self.engines: list[Full] = [cast("Full", harness.engine(clock=harness.clock)) for harness in self.harnesses]
        self.sent: dict[MessageId, Message] = {}
        self.followers: dict[MessageId, Message] = {}  # handed on, if their run was not given up; or to be sent by a gather
        self.stored_at: dict[tuple[QueueName, str], tuple[float, float]] = {}
        self.runs: list[RunId] = []
        self.deliveries: list[Delivery] = []
        self.epochs: dict[MessageId, int] = {}
        self.settled: set[tuple[MessageId, int]] = set()
        self.results: dict[MessageId, bytes] = {}
        self.group_epochs: dict[tuple[QueueName, str], int] = {}
        self.begun: dict[tuple[QueueName, str], list[MessageId]] = {}
        self.order: dict[MessageId, int] = {}
        self.views: dict[MessageId, MessageView] = {}
        self.retained = False
        self.ageing_s = 60.0
        self.time = self.began_at = 0.0

    def teardown(self) -> None:
        try:
            for engine in self.engines:
                self.runner.run(engine.close())
        finally:
            self.runner.close()
            shutil.rmtree(self.folder)

    # ------------------------------------------------------------------------------------------- driving both engines

    def do(self, verb: Callable[[Full], Awaitable[Any]]) -> Any:
        """The answer of the engine under test; the other one must give the same. A refusal is an answer too: (code, its fields)."""
        answers = [self._one(engine, verb) for engine in self.engines]
        assert len(answers) == 1 or answers[0] == answers[1], f"{self.engines[0].name} / {self.engines[1].name}: {difference(*answers)}"
        return answers[0]

    def _one(self, engine: Full, verb: Callable[[Full], Awaitable[Any]]) -> Any:
        async def call() -> Any:
            async with asyncio.timeout(10.0):
                return await verb(engine)

        try:
            return self.runner.get_loop().run_until_complete(call())
        except BeltlineError as error:
            return error.code

    def pick(self, number: int) -> MessageId:
        """One of the messages that were sent, or an id that never was."""
        ids = list(self.sent)
        return ids[number % (len(ids) + 1)] if number % (len(ids) + 1) < len(ids) else kit.NEVER_SENT

    def held(self, number: int) -> Delivery:
        """One of the deliveries that may still be settled, if there is one; one draw in five falls on any there ever was."""
        held = [delivery for delivery in self.deliveries if self.current(*structs.astuple(delivery.receipt))]
        among = self.deliveries if number % 5 == 0 or not held else held
        return among[number // 5 % len(among)]

    def run_id(self, number: int) -> RunId:
        return self.runs[number % len(self.runs)] if self.runs else RunId(kit.NEVER_SENT)

    def current(self, id: MessageId, epoch: int) -> bool:
        """Whether a settle under this epoch may still count."""
        return self.epochs.get(id) == epoch and (id, epoch) not in self.settled

    def move_clocks(self, seconds: float) -> None:
        for harness in self.harnesses:
            if seconds < 0:
                harness.clock.set_back(-seconds)
            else:
                harness.clock.advance(seconds)

    # ------------------------------------------------------------------------------------------------------- what was sent

    def send_all(self, messages: list[Message]) -> None:
        now = self.time
        answers = self.do(lambda engine: engine.send(messages))
        if isinstance(answers, str):
            return
        assert len(answers) == len(messages)
        for message, answer in zip(messages, answers, strict=True):
            self._sent(message, answer, now)

    def _sent(self, message: Message, answer: Sent, now: float) -> None:
        key = (message.queue, message.dedup_key) if message.dedup_key is not None else None
        if answer.admission is Admission.SAME_ID:
            assert message.id in self.sent, "I3: a new id was taken for an old one"
            return
        unique = message.flow.unique if message.flow is not None else None
        if answer.admission is not Admission.STORED:
            assert key is not None or unique is not None
            assert answer.admission is Admission.DEDUPLICATED or (unique is not None and unique.replace)
            assert answer.id in self.sent
            return
        assert message.id not in self.sent or self.retained, "I3: one id was stored twice"
        if message.id in self.sent:
            self.forget(message.id)
        if key is not None:
            at, window_s = self.stored_at.get(key, (0.0, 0.0))
            assert now >= at + window_s, "I12: two messages with one dedup key in one window"
            self.stored_at[key] = (now, message.dedup_window_s)
        self.admit(message)

    def admit(self, message: Message) -> None:
        self.sent[message.id] = message
        if message.place is not None and message.place.run not in self.runs:
            self.runs.append(message.place.run)

    def forget(self, id: MessageId) -> None:
        """Its history was dropped, and a day later the id was sent anew: what is known of the old message is no longer true of any."""
        self.deliveries = [delivery for delivery in self.deliveries if delivery.message.id != id]
        self.settled = {(other, epoch) for other, epoch in self.settled if other != id}
        for known in (self.epochs, self.order, self.results):
            known.pop(id, None)
        for begun in self.begun.values():
            if id in begun:
                begun.remove(id)
