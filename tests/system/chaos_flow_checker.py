"""C6: what flow control promises (guarantees.md I12 to I15, and the laws `flow limits unique switch schedules` of engines/protocol.py), from what was written down.

    crowded      more ran for a (limit, key), or of a FIFO group, than its bound         hurried   more started in some window T than burst + rate * T
    shut         handed out while the queue was snoozed or tripped, or more than `tries` after that
    twins        two messages of one unique key where the rule allows one                outdated  a message did not have what was sent last
    occurrence   one missing, doubled, early, or never due                               left      a limit still holds something when nothing runs

What a journal can show of a place. A place is taken in the commit of a hand-out and given back in that of a settle, or when the lease is over. Nobody outside sees these
commits, and their instants in the store are read before locks are waited for: two of them may carry instants in the other order than they took effect. But the commit
of a hand-out lies between `at`, which it was made with, and `t`, when its supervisor had the answer; that of a settle comes after its asking was written down. So between `t` and
the asking, or the end of the lease, the place was held for certain, and a killed supervisor's until its lease is over. Of all that are so held at one instant, the last
one handed out found the others there: their number may not be above the bound, nor above the highest that was in force between that one's `at` and `t`. What lies between a
commit and its answer is not seen, so a bound that is broken for less than a round trip may be missed; nothing is found that was not so. What an answer
was lost of is not counted. A lease that was renewed when it was over is not counted from then on: it takes its place without asking.

Starts and rates need no order: whatever order a bucket was charged in, the starts with instants in [x, x + T] took no more than burst + rate * T of it. The numbers of
a limit are known but for the moment in which they change; where several may have counted, the one that allows more does.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import pairwise
from math import inf

from msgspec import Struct

from beltline.core.schedule import occurrence_id
from tests.system.history import NONE, Asking, Bound, HandOut, History, Settling, Shut, Start, Stored

GRAIN_S = 0.002
FLOW_FINDINGS = ("crowded", "hurried", "shut", "twins", "outdated", "occurrence", "left")
SPACED_S = 1.0  # the window of the rules `recent` and `spaced`
GROUP = "group "

Key = tuple[str, int]
Bucket = tuple[str, str]
Say = Callable[[str, str], None]


class Held(Struct, frozen=True, kw_only=True, order=False):
    """A place that was held for certain from `t` to `end`. Handed out between `at_t` and `t`; `at`: the same as `at_t`, by the engine."""

    t: float
    end: float
    at_t: float
    at: float
    queue: str
    message: str
    epoch: int


class Flow:
    """Looks at the flow of a history, and says what it finds. `pressed`: how often a limit had nothing left, by name: of one that never had, the run has proved nothing."""

    def __init__(self, history: History, hand_outs: dict[Key, list[HandOut]], settlings: dict[Key, list[Settling]], say: Say) -> None:
        self.history = history
        self.say = say
        self.pressed: Counter[str] = Counter()
        self.settlings = settlings
        self.starts: dict[Key, list[Start]] = defaultdict(list)
        for start in history.starts:
            self.starts[start.message, start.epoch].append(start)
        self.messages = {message.id: message for message in (*history.messages, *history.singles)}
        self.hand_outs = {key: min(found, key=lambda each: each.t) for key, found in hand_outs.items() if key[0] in self.messages}
        self.held = sorted(self._held(), key=lambda held: held.t)
        self.bounds: dict[str, list[Bound]] = defaultdict(list)
        for bound in sorted(history.bounds, key=lambda bound: bound.asked_t):
            self.bounds[bound.name].append(bound)

    def look(self) -> None:
        self.places()
        self.rates()
        for shut in self.history.shuts:
            self.shut(shut)
        self.unique()
        self.schedules()
        for text in self.history.left:
            self.say("left", text)

    # ---- who held what

    def _held(self) -> Iterable[Held]:
        renewals: dict[Key, list[tuple[float, float, float]]] = defaultdict(list)
        for renewal in self.history.renewals:
            renewals[renewal.message, renewal.epoch].append((renewal.asked_t, renewal.t, renewal.lease_s))
        for (id, epoch), received in self.hand_outs.items():
            until = received.until_t
            for asked_t, t, lease_s in sorted(renewals[id, epoch]):
                if max(asked_t, t) > until - GRAIN_S:
                    break  # it may have been over by then
                until = max(until, asked_t + lease_s)
            ends = [until - GRAIN_S, *(each.asked_t for each in self.settlings.get((id, epoch), ()) if each.answer != "fail")]
            if again := self.hand_outs.get((id, epoch + 1)):
                ends.append(again.at_t)
            if received.t < min(ends):
                queue = self.messages[id].queue
                yield Held(t=received.t, end=min(ends), at_t=received.at_t, at=received.at, queue=queue, message=id, epoch=epoch)

    def _buckets(self, message: Stored) -> dict[Bucket, float]:
        """What a start of it uses up. A limit that its queue has too is used up twice by rate, and held once."""
        found: Counter[Bucket] = Counter()
        for limit, key, cost in message.claims:
            found[limit, key] += cost  # type: ignore[assignment]
        for limit in self.history.queue_limits.get(message.queue, ()):
            found[limit, ""] += 1
        return dict(found)

    def _in_force(self, name: str, since_t: float, until_t: float) -> list[Bound]:
        """The numbers that may have counted at some instant between."""
        bounds = self.bounds[name]
        ends = [bound.t for bound in bounds[1:]] + [inf]
        return [bound for bound, end in zip(bounds, ends, strict=True) if bound.asked_t <= until_t and end >= since_t]

    # ---- places

    def places(self) -> None:
        by_bucket: dict[Bucket, list[Held]] = defaultdict(list)
        for held in self.held:
            message = self.messages[held.message]
            for bucket in self._buckets(message):
                if bucket[0] in self.bounds:
                    by_bucket[bucket].append(held)
            if message.group:
                by_bucket[f"{GROUP}{message.queue}", message.group].append(held)
        for (limit, key), all_held in by_bucket.items():
            self._most_at_once(limit, key, all_held)

    def _most_at_once(self, limit: str, key: str, all_held: list[Held]) -> None:
        ends: list[tuple[float, int]] = []
        for place, held in enumerate(all_held):
            while ends and ends[0][0] <= held.t:
                heappop(ends)
            heappush(ends, (held.end, place))
            since_t = max(all_held[each].at_t for _, each in ends)
            bound = 1.0 if limit.startswith(GROUP) else max(each.concurrency for each in self._in_force(limit, since_t, held.t))
            if not limit.startswith(GROUP) and len(ends) >= bound:
                self.pressed[limit] += 1
            if len(ends) > bound:
                ids = ", ".join(f"{all_held[each].message} epoch {all_held[each].epoch}" for _, each in ends)
                self.say("crowded", f"{limit} {key!r}: {len(ends)} at {held.t:.3f}, bound {bound:g}: {ids}")

    # ---- rates

    def rates(self) -> None:
        by_bucket: dict[Bucket, list[tuple[HandOut, float]]] = defaultdict(list)
        for (id, _), received in self.hand_outs.items():
            for bucket, cost in self._buckets(self.messages[id]).items():
                if any(bound.rate < NONE for bound in self.bounds[bucket[0]]):
                    by_bucket[bucket].append((received, cost))
        for (limit, key), starts in by_bucket.items():
            starts.sort(key=lambda start: start[0].at)
            may = [self._in_force(limit, received.at_t, received.t) for received, _ in starts]
            burst_s = max((bound.burst / bound.rate for bound in self.bounds[limit] if bound.rate < NONE), default=0.0)
            takes = [(received.at, min(_takes_s(bound, cost) for bound in among)) for (received, cost), among in zip(starts, may, strict=True)]
            self._windows(limit, key, takes, burst_s, "over all changes")
            for bound in self.bounds[limit]:  # between two changes the numbers are known
                alone = [(received.at, _takes_s(bound, cost)) for (received, cost), among in zip(starts, may, strict=True) if among == [bound]]
                if bound.rate < NONE:
                    self._windows(limit, key, alone, bound.burst / bound.rate, f"at {bound.rate:g}/s")
                    spent = _most(alone)
                    self.pressed[limit] += sum(1 for _, seconds in spent if seconds > (bound.burst - 1) / bound.rate)

    def _windows(self, limit: str, key: str, takes: list[tuple[float, float]], burst_s: float, when: str) -> None:
        most_s = max([burst_s, *(each for _, each in takes)])  # a start that costs more than the burst may come when the bucket is full
        for at, seconds in _most(takes):
            if seconds > most_s + GRAIN_S:
                self.say("hurried", f"{limit} {key!r}: starts up to {at:.3f} are {seconds - burst_s:.3f} s ahead of burst and rate {when}")
                return

    # ---- snoozes and switches

    def shut(self, shut: Shut) -> None:
        after: list[Held] = []
        ended = sorted(
            each.asked_t
            for key, settlings in self.settlings.items()
            for each in settlings
            if key[0] in self.messages and self.messages[key[0]].queue == shut.queue and each.outcome == "ack" and each.asked_t >= shut.t
        )
        for held in self.held:
            if held.queue != shut.queue or held.at_t <= shut.t:
                continue
            if held.at < shut.until - GRAIN_S:
                self.say("shut", f"{held.message} epoch {held.epoch} was handed out {shut.until - held.at:.3f} s before {shut.queue} was open again")
                continue
            if bisect_left(ended, held.t) >= shut.tries:
                return  # it may be open for all; also after a snooze
            after = [each for each in (*after, held) if each.end > held.t]
            since_t = min(each.at_t for each in after)
            others = [each for each in self.held if each.queue == shut.queue and each.at_t <= shut.t and each.t <= since_t and each.end > held.t]
            if len(after) + len(others) > shut.tries:
                self.say("shut", f"{len(after) + len(others)} at {held.t:.3f} while the kill switch of {shut.queue} let {shut.tries} try")

    # ---- unique messages

    def unique(self) -> None:
        sent: dict[str, Asking] = {}
        known_t: dict[str, float] = defaultdict(lambda: inf)
        for asking in self.history.askings:
            sent.setdefault(asking.id, asking)
            if asking.answer:
                known_t[asking.answer] = min(known_t[asking.answer], asking.t)
                self._newest(asking)
        keys: dict[tuple[str, str], list[tuple[Stored, float, float]]] = defaultdict(list)
        for message in self.history.singles:
            if message.id not in sent:
                continue
            first = self.hand_outs.get((message.id, 1))
            begin = min(known_t[message.id], first.t if first else inf)
            rule, key = sent[message.id].rule, sent[message.id].key
            keys[rule, key].append((message, begin, self._ends_t(message, rule)))
        for (rule, key), found in keys.items():
            found.sort(key=lambda each: each[0].sent_at)
            for one, other in pairwise(found):
                self._pair(rule, key, one, other)

    def _ends_t(self, message: Stored, rule: str) -> float:
        """Until when it stood for others, for certain."""
        if rule == "newest":  # while it waits for the first time
            first = self.hand_outs.get((message.id, 1))
            return first.at_t if first else inf if message.epoch == 0 else -inf
        acks = [
            each.asked_t for epoch in range(1, message.epoch + 1) for each in self.settlings.get((message.id, epoch), ()) if each.outcome == "ack"
        ]
        return min(acks, default=inf if message.state != "done" else -inf)

    def _pair(self, rule: str, key: str, one: tuple[Stored, float, float], other: tuple[Stored, float, float]) -> None:
        near = other[0].sent_at < one[0].sent_at + SPACED_S - GRAIN_S
        together = max(one[1], other[1]) < min(one[2], other[2])
        if near if rule == "spaced" else together and (near or rule != "recent"):
            self.say("twins", f"{rule} {key}: {one[0].id} and {other[0].id}, sent {other[0].sent_at - one[0].sent_at:.3f} s apart")

    def _newest(self, asking: Asking) -> None:
        """What stands for a message has what it says: of the newest, with what came last."""
        message = self.messages.get(asking.answer)
        said = [start.said for start in self.starts.get((asking.answer, message.epoch), ())] if message else []
        if asking.rule == "newest" and said and max(said) < asking.number:
            self.say("outdated", f"{asking.key}: {asking.answer} ran with {max(said)}, and stood for {asking.number}")

    # ---- schedules

    def schedules(self) -> None:
        for span in self.history.spans:
            first, last = int(span.after_at // span.every_s) + 1, int(span.until_at // span.every_s)
            wanted = {round(number * span.every_s, 3) for number in range(first, last + 1)}
            found = Counter(round(each.due_at, 3) for each in self.history.occurrences if each.schedule == span.schedule)
            for text, dues in (("is missing", wanted - found.keys()), ("was never due", found.keys() - wanted)):
                for due in sorted(dues):
                    self.say("occurrence", f"{span.schedule} at {due} {text}")
            for due, count in found.items():
                if count > 1:
                    self.say("occurrence", f"{span.schedule} at {due} was sent {count} times")
        for each in self.history.occurrences:
            if each.sent_at < each.due_at:
                self.say("occurrence", f"{each.schedule} at {each.due_at} was sent at {each.sent_at}")
            if each.id != occurrence_id(each.schedule, each.due_at):
                self.say("occurrence", f"{each.schedule} at {each.due_at} has the id {each.id}")


def _takes_s(bound: Bound, cost: float) -> float:
    """How many seconds of the rate a start uses up."""
    return cost / bound.rate if bound.rate < NONE else 0.0


def _most(takes: list[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """For each start the most, over all windows that end with it, by which what was used up is above the length of the window. Seconds; starts by their time."""
    used, least = 0.0, inf
    for at, seconds in takes:
        least = min(least, used - at)
        used += seconds
        yield at, used - at - least
