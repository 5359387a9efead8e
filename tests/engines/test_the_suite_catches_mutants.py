"""The suite is tested too: each engine below is wrong in one way, and the law that is named must fail for it.

The mutants are made from the memory engine by twisting what goes into its verbs or comes out of them, so they stay mutants whatever it looks like inside.
"""

from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import Phase, settings
from msgspec import structs

from beltline.core.clock import Clock
from beltline.core.errors import NotFound
from beltline.core.flow import Claim, Limit
from beltline.core.lifecycle import State
from beltline.core.message import Delivery, Message, Receipt
from beltline.core.outcome import Ack, Release, RetryAfter, Sent, Settled, Settlement
from beltline.core.queues import QueueSpec
from beltline.core.views import MessageFilter
from beltline.engines.memory import MemoryEngine
from beltline.testing import conformance, machine
from beltline.testing.conformance import kit
from tests.engines import mutants_of_schedules
from tests.engines.test_memory import MemoryHarness

EVERYTHING = MessageFilter()


class Twisted(MemoryEngine):
    """What the mutants below twist: one outcome, one message, one queue at a time."""

    def twist_outcome(self, settlement: Settlement) -> Settlement:
        return settlement

    def twist_message(self, message: Message) -> Message:
        return message

    def twist_queue(self, spec: QueueSpec) -> QueueSpec:
        return spec

    async def settle(self, settlements: Sequence[Settlement]) -> list[Settled]:
        return await super().settle([self.twist_outcome(each) for each in settlements])

    async def send(self, messages, *, gathers=()):
        return await super().send([self.twist_message(each) for each in messages], gathers=gathers)

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        await super().declare([self.twist_queue(each) for each in specs])

    async def current(self, receipt: Receipt) -> Receipt:
        try:
            return Receipt(receipt.id, (await self.get(receipt.id)).epoch)
        except NotFound:
            return receipt

    async def is_over(self, receipt: Receipt) -> bool:
        """Its lease has run out, and nobody else has the message yet."""
        try:
            view = await self.get(receipt.id)
        except NotFound:
            return False
        return view.state == "ready" and view.epoch == receipt.epoch


class SettleIgnoresTheEpoch(Twisted):
    async def settle(self, settlements):
        return await super().settle([Settlement(await self.current(each.receipt), each.outcome) for each in settlements])


class RenewRevivesALostLease(Twisted):
    async def renew(self, receipts, *, lease_s):
        return await super().renew([await self.current(each) for each in receipts], lease_s=lease_s)


class ALateSettleIsRefused(Twisted):
    async def settle(self, settlements):
        over = [await self.is_over(each.receipt) for each in settlements]
        rest = iter(await super().settle([each for each, late in zip(settlements, over, strict=True) if not late]))
        return [Settled.LEASE_LOST if late else next(rest) for late in over]


class HandOffBeforeTheEpochCheck(Twisted):
    async def settle(self, settlements):
        for each in settlements:
            if isinstance(each.outcome, Ack) and not each.outcome.gathers:
                await super().send(each.outcome.then)
        return await super().settle(settlements)


class HandOffInASecondWrite(Twisted):
    """Seen from outside by what a refused second write leaves: the message has ended, its follower is nowhere."""

    async def settle(self, settlements):
        answers = await super().settle(
            [Settlement(each.receipt, structs.replace(each.outcome, then=())) if isinstance(each.outcome, Ack) else each for each in settlements]
        )
        for each, answer in zip(settlements, answers, strict=True):
            if answer is Settled.DONE and isinstance(each.outcome, Ack):
                await super().send(each.outcome.then)
        return answers


class ReleaseCountsAnAttempt(Twisted):
    def twist_outcome(self, settlement):
        if isinstance(settlement.outcome, Release):
            return Settlement(settlement.receipt, RetryAfter(delay_s=settlement.outcome.delay_s, failure=kit.failure()))
        return settlement


class RetryBeforeItIsDue(Twisted):
    def twist_outcome(self, settlement):
        if isinstance(settlement.outcome, RetryAfter):
            return Settlement(settlement.receipt, structs.replace(settlement.outcome, delay_s=settlement.outcome.delay_s / 2))
        return settlement


class AckWithoutItsResult(Twisted):
    def twist_outcome(self, settlement):
        return Settlement(settlement.receipt, structs.replace(settlement.outcome, result=None)) if isinstance(settlement.outcome, Ack) else settlement


class SplitHalfWritten(Twisted):
    def twist_outcome(self, settlement):
        outcome = settlement.outcome
        if isinstance(outcome, Ack) and outcome.gathers:
            return Settlement(settlement.receipt, structs.replace(outcome, then=outcome.then[: len(outcome.then) // 2]))
        return settlement


class GatherFiresTwice(Twisted):
    async def settle(self, settlements):
        before = {view.message.id for view in (await self.browse(EVERYTHING, limit=10_000)).messages}
        answers = await super().settle(settlements)
        for view in (await self.browse(EVERYTHING, limit=10_000)).messages:
            if view.message.id not in before and view.message.place is not None and view.message.place.stage == "gathered":
                await super().send([structs.replace(view.message, id=kit.fresh_id())])
        return answers


class ADeadPartNeverCounts(Twisted):
    def twist_outcome(self, settlement):
        outcome = settlement.outcome
        if isinstance(outcome, Ack) and outcome.gathers:
            held = tuple(structs.replace(gather, on_dead="hold") for gather in outcome.gathers)
            return Settlement(settlement.receipt, structs.replace(outcome, gathers=held))
        return settlement


class HandOutWithoutANewEpoch(Twisted):
    """Every delivery of a message has the same receipt."""

    async def receive(self, queues, **how):
        return [structs.replace(each, receipt=Receipt(each.message.id, 1)) for each in await super().receive(queues, **how)]

    async def settle(self, settlements):
        return await super().settle([Settlement(await self.current(each.receipt), each.outcome) for each in settlements])


class LostDeliveriesAreNotCounted(Twisted):
    async def receive(self, queues, **how) -> list[Delivery]:
        return [structs.replace(each, lost=0) for each in await super().receive(queues, **how)]


class ReceiveExceedsItsLimit(Twisted):
    async def receive(self, queues, *, limit, **how):
        return await super().receive(queues, limit=limit + 1 if limit > 2 else limit, **how)


class TheIdIsForgottenAtTheEnd(Twisted):
    async def send(self, messages, *, gathers=()):
        ids = {}
        for message in messages:
            try:
                if (await self.get(message.id)).state == "done":
                    ids[message.id] = kit.fresh_id()
            except NotFound:
                continue
        return await super().send([structs.replace(each, id=ids.get(each.id, each.id)) for each in messages], gathers=gathers)


class TheDedupKeyIsForgottenAtSettle(Twisted):
    async def send(self, messages, *, gathers=()):
        ended = {view.message.dedup_key for view in (await self.browse(MessageFilter(states=("done",)), limit=10_000)).messages}
        return await super().send([structs.replace(each, dedup_key=None) if each.dedup_key in ended else each for each in messages], gathers=gathers)


class TheDedupWindowIsThatOfTheNewMessage(Twisted):
    async def send(self, messages, *, gathers=()):
        now = await self.now()
        views = (await self.browse(EVERYTHING, limit=10_000)).messages
        sent_at = {view.message.dedup_key: view.sent_at for view in views}
        return await super().send(
            [structs.replace(each, dedup_key=None) if now - sent_at.get(each.dedup_key, now) >= each.dedup_window_s else each for each in messages],
            gathers=gathers,
        )


class ABatchIsSentOneByOne(Twisted):
    async def send(self, messages, *, gathers=()) -> list[Sent]:
        return [(await super(Twisted, self).send([message]))[0] for message in messages]


class RedriveWithANewId(Twisted):
    async def redrive(self, where, *, limit, queue=None):
        ids = await super().redrive(where, limit=limit, queue=queue)
        old = [(await self.get(id)).message for id in ids]
        await super().cancel(ids)
        new = [structs.replace(message, id=kit.fresh_id()) for message in old]
        await super().send(new)
        return [message.id for message in new]


class GroupsAreIgnored(Twisted):
    def twist_message(self, message):
        return structs.replace(message, group=None)


class PriorityIsIgnored(Twisted):
    def twist_message(self, message):
        return structs.replace(message, priority=0)


class PrioritiesStarve(Twisted):
    def twist_queue(self, spec):
        return structs.replace(spec, ageing_s=kit.ENDLESS)


class LongDelaysAreCut(Twisted):
    def twist_message(self, message):
        return structs.replace(message, delay_s=min(message.delay_s, 900.0))


class MessagesNeverExpire(Twisted):
    def twist_message(self, message):
        return structs.replace(message, expires_s=None)


class PoisonIsFoundOneDeliveryLate(Twisted):
    def twist_queue(self, spec):
        return structs.replace(spec, max_deliveries=spec.max_deliveries + 1)


class BackpressureIsIgnored(Twisted):
    def twist_queue(self, spec):
        return structs.replace(spec, feeds=())


class TheBoundIsIgnored(Twisted):
    def twist_queue(self, spec):
        return structs.replace(spec, max_backlog=kit.ENDLESS)


class SweepTakesLiveLeases(Twisted):
    async def sweep(self):
        leased = (await self.browse(EVERYTHING, limit=10_000)).messages
        answers = await super().settle([Settlement(Receipt(view.message.id, view.epoch), Release()) for view in leased if view.epoch])
        return await super().sweep() + answers.count(Settled.DONE)


class PurgeTakesLiveLeases(Twisted):
    async def purge(self, queue):
        leased = (await self.browse(MessageFilter(queues=(queue,), states=("leased",)), limit=10_000)).messages
        await super().settle([Settlement(Receipt(view.message.id, view.epoch), Release()) for view in leased])
        return await super().purge(queue)


class PauseIsForgottenWhenDeclaredAnew(Twisted):
    async def declare(self, specs):
        await super().declare(specs)
        for spec in specs:
            await super().resume(spec.name)


class CancellingALeasedMessageIsForgotten(Twisted):
    async def cancel(self, ids, *, reason=""):
        leased = {view.message.id for view in (await self.browse(MessageFilter(states=("leased",)), limit=10_000)).messages}
        rest = iter(await super().cancel([id for id in ids if id not in leased], reason=reason))
        return [State.LEASED if id in leased else next(rest) for id in ids]


class PagesRepeatTheirLastMessage(Twisted):
    async def browse(self, where, *, limit=100, cursor=""):
        page = await super().browse(where, limit=limit, cursor=cursor)
        return structs.replace(page, cursor=str(int(page.cursor) - 1)) if page.cursor and limit > 1 else page


class OnlyClosedLanesAreHeld(Twisted):
    """Neither a group nor a limit of a whole queue, nor a pause, is a reason for no more slots."""

    async def counts(self, queue):
        closed = self._store.queues[queue].behind(lambda _: True, await self.now())
        return structs.replace(await super().counts(queue), held=closed)


class WhatIsBehindItsGroupIsNotHeld(Twisted):
    async def counts(self, queue):
        ready = (await self.browse(MessageFilter(queues=(queue,), states=("ready",)), limit=10_000)).messages
        counts = await super().counts(queue)
        return structs.replace(counts, held=max(0, counts.held - sum(view.blocked for view in ready)))


class CountsForgetTheLeases(Twisted):
    async def counts(self, queue):
        return structs.replace(await super().counts(queue), leased=0)


class RetentionDropsTheMemoryOfIds(Twisted):
    async def retain(self, *, history_s, limit=5000):
        self.forgotten = {view.message.id for view in (await self.browse(MessageFilter(states=("done",)), limit=10_000)).messages}
        return await super().retain(history_s=history_s, limit=limit)

    def twist_message(self, message):
        return structs.replace(message, id=kit.fresh_id()) if message.id in getattr(self, "forgotten", ()) else message


class TimeRunsBackwards(Twisted):
    async def now(self):
        return self._clock.now()


class CloseLosesWhatIsStored(Twisted):
    async def close(self):
        await super().close()
        self.__init__(clock=self._clock)


class AStepIsTakenFromAnywhere(Twisted):
    async def step_schedules(self, steps):
        stands = {view.schedule.name: view for view in await self.schedules()}
        return await super().step_schedules(
            [structs.replace(each, stood_at=stands[each.name].stood_at) if each.name in stands else each for each in steps]
        )


class AStepOfTheSpecBeforeIsTaken(Twisted):
    async def step_schedules(self, steps):
        stands = {view.schedule.name: view for view in await self.schedules()}
        return await super().step_schedules(
            [structs.replace(each, revision=stands[each.name].revision) if each.name in stands else each for each in steps]
        )


class AStepAndItsSendsAreTwoWrites(Twisted):
    async def step_schedules(self, steps):
        for each in steps:
            await self.send(each.messages)
        return await super().step_schedules([structs.replace(each, messages=()) for each in steps])


class AnOccurrenceHasARandomId(Twisted):
    async def step_schedules(self, steps):
        fresh = [structs.replace(each, messages=tuple(structs.replace(message, id=kit.fresh_id()) for message in each.messages)) for each in steps]
        return await super().step_schedules(fresh)


class ADeclarationRewindsASchedule(Twisted):
    async def put_schedules(self, specs, *, origin, owner="", replace=True):
        for spec in specs:
            with suppress(NotFound):
                await self.remove_schedule(spec.name)
        return await super().put_schedules(specs, origin=origin, owner=owner, replace=replace)


class AResumedScheduleCatchesUp(Twisted):
    async def pause_schedule(self, name, paused):
        stood = self._schedules.row(name).stood
        await super().pause_schedule(name, paused)
        self._schedules.rows[name] = structs.replace(self._schedules.row(name), stood=stood)
        return await self.schedule(name)


class WhatLeftTheCodeIsFired(Twisted):
    async def put_schedules(self, specs, *, origin, owner="", replace=True):
        return await super().put_schedules(specs, origin=origin, owner="", replace=replace)


class Limiting(Twisted):
    """Knows what an operator has set, so that it can be wrong about it."""

    def __init__(self, **how):
        super().__init__(**how)
        self.numbers: dict[str, Limit] = {}

    async def set_limit(self, limit):
        await super().set_limit(limit)
        self.numbers[limit.name] = limit

    async def places(self, settled: int, by: int) -> None:
        """Each limit has so many places more for each delivery that was settled."""
        for name, limit in self.numbers.items():
            self.numbers[name] = structs.replace(limit, concurrency=max(0, limit.concurrency + settled * by))
            await super().set_limit(self.numbers[name])


class TheLimitIsReadOutsideOfTheReceive(Limiting):
    """What was free before a receive is free for all of its messages."""

    async def receive(self, queues, *, limit, **how):
        first = await super().receive(queues, limit=1, **how)
        if not first or limit == 1 or not how["lease_s"]:
            return first
        for name in self.numbers:
            await super(Limiting, self).set_limit(Limit(name=name))
        rest = await super().receive(queues, limit=limit - 1, **how)
        for each in self.numbers.values():
            await super(Limiting, self).set_limit(each)
        return first + rest


class APlaceIsNotGivenBack(Limiting):
    async def settle(self, settlements):
        answers = await super().settle(settlements)
        await self.places(answers.count(Settled.DONE), -1)
        return answers


class APlaceIsGivenBackTwice(Limiting):
    async def settle(self, settlements):
        answers = await super().settle(settlements)
        await self.places(answers.count(Settled.DONE), 1)
        return answers


class AStaleSettleGivesAPlaceBack(Limiting):
    async def settle(self, settlements):
        answers = await super().settle(settlements)
        await self.places(answers.count(Settled.LEASE_LOST), 1)
        return answers


class ALateRenewTakesWhatOthersHave(MemoryEngine):
    async def renew(self, receipts, *, lease_s):
        self._store.limits.keeps = lambda *_: True
        return await super().renew(receipts, lease_s=lease_s)


class CostsAreIgnored(Twisted):
    def twist_message(self, message):
        if message.flow is None:
            return message
        return structs.replace(message, flow=structs.replace(message.flow, claims=tuple(Claim(each.limit, each.key) for each in message.flow.claims)))


class WeightsAreIgnored(Twisted):
    def twist_message(self, message):
        return message if message.flow is None else structs.replace(message, flow=structs.replace(message.flow, weight=1.0))


class TurnsAreSavedUp(Twisted):
    """The tag of a tenant that comes back is not lifted. The one mutant that reaches inside: turns cannot be seen from without."""

    async def receive(self, queues, **how):
        for queue in self._store.queues.values():
            queue.shaper.turn = 0
        return await super().receive(queues, **how)

    async def send(self, messages, *, gathers=()):
        for queue in self._store.queues.values():
            queue.shaper.turn = 0
        return await super().send(messages, gathers=gathers)


class TheUniqueKeyIsForgottenAtTheHandOut(Twisted):
    async def send(self, messages, *, gathers=()):
        leased = (await self.browse(MessageFilter(states=("leased",)), limit=10_000)).messages
        keys = {view.message.flow.unique.key for view in leased if view.message.flow is not None and view.message.flow.unique is not None}
        return await super().send(
            [
                structs.replace(each, flow=structs.replace(each.flow, unique=None))
                if each.flow is not None and each.flow.unique is not None and each.flow.unique.key in keys
                else each
                for each in messages
            ],
            gathers=gathers,
        )


class WorkersKeepNoKeys(Twisted):
    async def beat(self, worker):
        await super().beat(structs.replace(worker, queues={}))


class TheQueueIsNotSnoozedWithTheRelease(Twisted):
    def twist_outcome(self, settlement):
        return (
            Settlement(settlement.receipt, structs.replace(settlement.outcome, queue_s=0.0))
            if isinstance(settlement.outcome, Release)
            else settlement
        )


class TheKillSwitchNeverTrips(Twisted):
    def twist_queue(self, spec):
        return structs.replace(spec, kill_switch=None)


class TheKillSwitchNeverCloses(Twisted):
    """However many of those that try succeed, a few at a time are all that is let through."""

    def twist_queue(self, spec):
        if spec.kill_switch is None:
            return spec
        self.tries = spec.kill_switch.tries
        return structs.replace(spec, kill_switch=structs.replace(spec.kill_switch, tries=1_000_000))

    async def receive(self, queues, *, limit, **how):
        for queue in queues:
            counts = await self.counts(queue)
            limit = min(limit, self.tries - counts.leased) if counts.trying else limit
        return await super().receive(queues, limit=limit, **how) if limit > 0 else []


MUTANTS: list[tuple[type[MemoryEngine], str]] = [
    (SettleIgnoresTheEpoch, "L09"),
    (RenewRevivesALostLease, "L09"),
    (HandOffBeforeTheEpochCheck, "L09"),
    (ALateSettleIsRefused, "L10"),
    (HandOffInASecondWrite, "L19"),
    (ReleaseCountsAnAttempt, "L13"),
    (RetryBeforeItIsDue, "L14"),
    (AckWithoutItsResult, "L18"),
    (SplitHalfWritten, "L20"),
    (GatherFiresTwice, "L21"),
    (ADeadPartNeverCounts, "L21"),
    (HandOutWithoutANewEpoch, "L07"),
    (LostDeliveriesAreNotCounted, "L07"),
    (ReceiveExceedsItsLimit, "L12"),
    (TheIdIsForgottenAtTheEnd, "L03"),
    (TheDedupKeyIsForgottenAtSettle, "L26"),
    (TheDedupWindowIsThatOfTheNewMessage, "L26"),
    (ABatchIsSentOneByOne, "L04"),
    (TheBoundIsIgnored, "L04"),
    (RedriveWithANewId, "L16"),
    (GroupsAreIgnored, "L24"),
    (GroupsAreIgnored, "L25"),
    (PriorityIsIgnored, "L23"),
    (PrioritiesStarve, "L23"),
    (LongDelaysAreCut, "L15"),
    (MessagesNeverExpire, "L39"),
    (PoisonIsFoundOneDeliveryLate, "L17"),
    (BackpressureIsIgnored, "L22"),
    (SweepTakesLiveLeases, "L41"),
    (PurgeTakesLiveLeases, "L31"),
    (PauseIsForgottenWhenDeclaredAnew, "L32"),
    (CancellingALeasedMessageIsForgotten, "L33"),
    (PagesRepeatTheirLastMessage, "L34"),
    (CountsForgetTheLeases, "L34"),
    (OnlyClosedLanesAreHeld, "L55"),
    (WhatIsBehindItsGroupIsNotHeld, "L55"),
    (RetentionDropsTheMemoryOfIds, "L03"),
    (TimeRunsBackwards, "L29"),
    (CloseLosesWhatIsStored, "L36"),
    (TheLimitIsReadOutsideOfTheReceive, "L46"),
    (TheLimitIsReadOutsideOfTheReceive, "L47"),
    (CostsAreIgnored, "L46"),
    (APlaceIsNotGivenBack, "L47"),
    (APlaceIsGivenBackTwice, "L47"),
    (AStaleSettleGivesAPlaceBack, "L47"),
    (ALateRenewTakesWhatOthersHave, "L47"),
    (TheUniqueKeyIsForgottenAtTheHandOut, "L48"),
    (TheQueueIsNotSnoozedWithTheRelease, "L49"),
    (TheKillSwitchNeverTrips, "L49"),
    (TheKillSwitchNeverCloses, "L49"),
    (WorkersKeepNoKeys, "L51"),
    (WeightsAreIgnored, "L53"),
    (TurnsAreSavedUp, "L53"),
    (AStepIsTakenFromAnywhere, "L28"),
    (AStepAndItsSendsAreTwoWrites, "L28"),
    (AnOccurrenceHasARandomId, "L28"),
    (AStepOfTheSpecBeforeIsTaken, "L45"),
    (ADeclarationRewindsASchedule, "L45"),
    (AResumedScheduleCatchesUp, "L45"),
    (WhatLeftTheCodeIsFired, "L45"),
    *mutants_of_schedules.MUTANTS,
]


def harness_of(mutant: type[MemoryEngine]) -> type[conformance.Harness]:
    class MutantHarness(conformance.Harness):
        def engine(self, *, clock: Clock | None = None, max_body: int = conformance.MAX_BODY_BYTES) -> MemoryEngine:
            return mutant(clock=clock, max_body=max_body)

    return MutantHarness


@pytest.mark.parametrize(("mutant", "law"), MUTANTS, ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_a_wrong_engine_breaks_its_law(mutant, law):
    failures = (error for _, error in conformance.check_each(harness_of(mutant), only=(law,)) if error is not None)
    assert next(failures, None) is not None, f"{law} holds for {mutant.__name__}"


PLAIN: frozenset[str] = frozenset()
FLOW = frozenset({"flow"})
SCHEDULES = frozenset({"schedules"})


@pytest.mark.parametrize(
    ("mutant", "parts"),
    [
        (SettleIgnoresTheEpoch, PLAIN),
        (HandOffBeforeTheEpochCheck, PLAIN),
        (LostDeliveriesAreNotCounted, PLAIN),
        (GroupsAreIgnored, PLAIN),
        (TheUniqueKeyIsForgottenAtTheHandOut, FLOW),
        (AStepAndItsSendsAreTwoWrites, SCHEDULES),
        (mutants_of_schedules.ADecisionEndsAnOrder, SCHEDULES),
    ],
)
def test_the_state_machine_finds_a_wrong_engine(mutant, parts):
    assert_found(machine.case(harness_of(mutant), oracle=MemoryHarness, parts=parts))


def test_the_invariants_alone_find_a_limit_that_is_not_kept():
    assert "I15" in str(assert_found(machine.case(harness_of(TheLimitIsReadOutsideOfTheReceive), parts=FLOW)))


def assert_found(case) -> Exception:
    case.settings = settings(case.settings, max_examples=200, phases=[Phase.generate], database=None, derandomize=True, print_blob=False)
    with pytest.raises(BaseException) as caught:
        case("runTest").runTest()
    assert isinstance(caught.value, Exception)  # neither the limit of the test nor somebody who stops it
    return caught.value
