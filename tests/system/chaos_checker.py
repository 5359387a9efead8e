"""Is this history one that Beltline may have? A pure function: history in, findings out, O(n log n).

    C1  lost         acknowledged, and in no place any more            unexpected    in the store, and no sender ever tried it
        denied       stored by a send that answered "certainly not stored"
    C2  unexplained  a start beyond the first that no retry, release, expiry or death of the delivery before explains
        unreceived   a start of a delivery that no supervisor received
    C3  overlap      two deliveries of one message were current at once; two hand-outs under one epoch; a renewal after a later hand-out
        stale        a settle under an old epoch was accepted           doubled       two accepted settles of one delivery
        forgotten    the store answered that it was done and does not know it at the end
        unasked      the store ended a delivery in a way that nobody asked for
    C4  disorder     within a FIFO group a later message was received before the end of an earlier one, or started first
    C5  misplaced    a run with a stage message missing or too many; a message without its run
        torn         an instant at which an item stood in two stages, or in none, before its end (the history of the store, at every commit)
        miscounted   the store's counters are not the number of its messages
    C6  crowded, hurried, shut, twins, outdated, occurrence, left       flow control: chaos_flow_checker.py
    C7  result       a result without an ack, an ack without its result, a wrong one, or one of another delivery than the one acknowledged
        early        acknowledged before task code had ended
    C8  stuck        not ended well after the drain                    unstarted     acknowledged, but task code never ran under that epoch

Where two clocks would have to be compared across transactions, the order of acts decides instead: an act that was asked for after another one's answer was
read cannot have come before it. Instants of the store are compared only where the store itself must have compared them, or wrote both in one transaction.
"""

from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from math import inf
from typing import Any

from msgspec import Struct

from tests.system.chaos_flow_checker import FLOW_FINDINGS, Flow
from tests.system.history import UNKNOWN, Attempt, HandOut, History, RunEnd, Settling, Start, Stored

GRAIN_S = 0.002  # stores keep whole milliseconds, floats lose a few bits
FINDINGS = (
    *("lost", "unexpected", "denied", "unexplained", "unreceived", "overlap", "stale", "doubled", "forgotten", "unasked", "disorder"),
    *("misplaced", "torn", "miscounted", "result", "early", "stuck", "unstarted"),
    *FLOW_FINDINGS,
)
LIVE = ("delayed", "ready", "leased", "dead")
AGAIN = ("retry", "release", "lost")
REPLACED = "replaced"  # stands in the history between two deliveries, and ends none

Key = tuple[str, int]


class Verdict(Struct, frozen=True, kw_only=True):
    """`findings`: evidence in words; a sound history has none. `causes`: what explained the starts beyond the first. `shares`: acks per supervisor.
    `pressed`: how often a limit had nothing left."""

    findings: dict[str, list[str]]
    starts: int
    repeats: int
    causes: dict[str, int]
    recovered: int
    unknown_settles: int
    stale_refused: int
    repeats_refused: int
    shares: dict[str, int]
    back_s: tuple[float, ...]
    pressed: dict[str, int] = {}

    @property
    def sound(self) -> bool:
        return not any(self.findings.values())


def check(history: History) -> Verdict:
    """Every finding, and the facts beside them."""
    look = _Look(history)
    look.sends()
    for message in (*history.messages, *history.singles):
        look.starts_of(message)
        look.epochs_of(message)
        look.end_of(message)
    look.strangers()
    look.groups()
    look.runs()
    look.counters()
    flow = Flow(history, look.hand_outs, look.settlings, look.say)
    flow.look()
    refused = [settling for settling in history.settlings if settling.answer == "lease_lost"]
    repeated = sum(
        1 for settling in refused if any(_accepted_or_unknown(each) for each in look.settlings.get((settling.message, settling.epoch), ()))
    )
    acks = Counter(settling.by for settling in history.settlings if settling.outcome == "ack" and settling.answer == "done")
    return Verdict(
        findings=look.findings,
        starts=len(history.starts),
        repeats=len(history.starts) - len({start.message for start in history.starts}),
        causes=dict(look.causes.most_common()),
        recovered=look.recovered,
        unknown_settles=sum(1 for settling in history.settlings if settling.answer == UNKNOWN),
        stale_refused=len(refused) - repeated,
        repeats_refused=repeated,
        shares=dict(sorted(acks.items())),
        back_s=tuple(_back_in_service(history)),
        pressed=dict(flow.pressed),
    )


def _accepted_or_unknown(settling: Settling) -> bool:
    return settling.answer in ("done", UNKNOWN)


def _back_in_service(history: History) -> Iterator[float]:
    """From each server that answered again to the next hand-out."""
    instants = sorted(hand_out.t for hand_out in history.hand_outs)
    for fault in history.faults:
        if fault.kind == "server_up" and (place := bisect_left(instants, fault.t)) < len(instants):
            yield round(instants[place] - fault.t, 3)


class _Look:
    """The history by message and epoch, and what was found."""

    def __init__(self, history: History) -> None:
        self.history = history
        self.findings: dict[str, list[str]] = {name: [] for name in FINDINGS}
        self.causes: Counter[str] = Counter()
        self.recovered = 0
        self.hand_outs: dict[Key, list[HandOut]] = _by_key(history.hand_outs)
        self.starts: dict[Key, list[Start]] = _by_key(history.starts)
        self.settlings: dict[Key, list[Settling]] = _by_key(history.settlings)
        self.epochs: dict[str, set[int]] = defaultdict(set)
        for id, epoch in (*self.hand_outs, *self.starts, *self.settlings):
            self.epochs[id].add(epoch)
        self.lease_until: dict[Key, float] = {key: max(each.lease_until for each in hand_outs) for key, hand_outs in self.hand_outs.items()}
        for renewal in history.renewals:
            key = (renewal.message, renewal.epoch)
            self.lease_until[key] = max(self.lease_until.get(key, 0.0), renewal.asked_wall + renewal.lease_s)
        self.killed = {(fault.kind, pid): fault.t for fault in history.faults for pid in fault.pids}
        self.deaths = {death.pid: death for death in history.deaths}
        self.by_run: dict[str, list[Stored]] = defaultdict(list)
        for message in history.messages:
            self.by_run[message.run].append(message)

    def say(self, finding: str, text: str) -> None:
        self.findings[finding].append(text)

    # ---- C1

    def sends(self) -> None:
        runs = {run.number: run for run in self.history.runs}
        entered: dict[int, float] = {}
        for message in self.history.messages:
            entered[message.number] = min(entered.get(message.number, inf), message.sent_at)
        tried: set[int] = set()
        acknowledged: set[int] = set()
        failed: set[int] = set()
        may: dict[int, float] = {}  # the first invoke that may have stored it
        asked: dict[int, float] = {}
        for sending in sorted(self.history.sendings, key=lambda sending: sending.t):
            for number in sending.numbers:
                if sending.phase == "invoke":
                    if number in asked:
                        may.setdefault(number, asked.pop(number))  # its sender died: unknown
                    tried.add(number)
                    asked[number] = sending.wall
                    continue
                at = asked.pop(number, sending.wall)
                if sending.phase == "fail":
                    failed.add(number)
                else:
                    may.setdefault(number, at)
                if sending.phase == "ok":
                    acknowledged.add(number)
        for number, at in asked.items():
            may.setdefault(number, at)
        for number in acknowledged:
            run = runs.get(number)
            if run is None or not self.by_run[run.id] or (run.state != "done" and not any(each.state in LIVE for each in self.by_run[run.id])):
                self.say("lost", f"item {number}: {'no run' if run is None else f'run {run.state}, nothing of it is live'}")
        for number in entered.keys() | runs.keys():
            if number not in tried:
                self.say("unexpected", f"item {number}")
        for number in failed & entered.keys():
            if entered[number] < may.get(number, inf) - GRAIN_S:
                self.say("denied", f"item {number} was stored before any send that may have stored it")
        self.recovered = sum(1 for number in runs if number in tried and number not in acknowledged)
        self._singles()

    def _singles(self) -> None:
        """Messages of no run: those sent one by one, and those of schedules."""
        stored = {message.id for message in self.history.singles}
        for id in stored - {asking.id for asking in self.history.askings} - {each.id for each in self.history.occurrences}:
            self.say("unexpected", f"message {id}")
        for asking in self.history.askings:
            if asking.answer and asking.answer not in stored:
                self.say("lost", f"{asking.rule} {asking.key}: {asking.answer}, which stands for number {asking.number}")

    # ---- C2

    def starts_of(self, message: Stored) -> None:
        epochs = sorted(epoch for epoch in self.epochs[message.id] if (message.id, epoch) in self.starts)
        for epoch in epochs:
            starts = self.starts[message.id, epoch]
            if len(starts) > 1:
                self.say("unexplained", f"{message.id} epoch {epoch} started {len(starts)} times")
            received = self.hand_outs.get((message.id, epoch))
            if received is None or min(each.t for each in received) > min(start.t for start in starts):
                self.say("unreceived", f"{message.id} epoch {epoch} started, and no supervisor had received it")
        attempts = {attempt.epoch: attempt for attempt in message.attempts if attempt.outcome in AGAIN}
        for before, epoch in pairwise(epochs):
            causes = [self._cause(message, attempts.get(each), each) for each in range(before, epoch)]
            if None in causes:
                number = before + causes.index(None)
                self.say("unexplained", f"{message.id} started under {before} and again under {epoch}: nothing explains the end of {number}")
            else:
                self.causes[str(causes[0])] += 1

    def _cause(self, message: Stored, attempt: Attempt | None, epoch: int) -> str | None:
        """Why this delivery ended without an end of its message; None: there is no reason."""
        key = (message.id, epoch)
        received = self.hand_outs.get(key)
        if attempt is None:
            return None
        asked = [each for each in self.settlings.get(key, ()) if each.outcome == attempt.outcome and _accepted_or_unknown(each)]
        if attempt.outcome != "lost":
            return attempt.outcome if asked else "given back" if received is None else None
        if asked:
            return self._death(key, asked)
        if received is None:
            return "answer lost"
        if attempt.ended_at < self.lease_until[key] - GRAIN_S:
            return None
        holder = received[0].pid
        if ("supervisor", holder) in self.killed:  # whenever: the fault is written before the signal arrives, and it may receive once more in between
            return "supervisor killed"
        if self.killed.get(("freeze", holder), -inf) > received[0].t:
            return "supervisor frozen"
        return "lease ran out"

    def _death(self, key: Key, asked: list[Settling]) -> str | None:
        """Who killed the runner that a supervisor reported as dead."""
        pids = [start.pid for start in self.starts.get(key, ())]
        if not pids:  # killed between the mark of its start and its first line: any runner this supervisor had seen die by then
            pids = [death.pid for death in self.history.deaths if death.t <= max(each.asked_t for each in asked)]
        for pid in pids:
            if ("runner", pid) in self.killed:
                return "runner killed"
        for pid in pids:
            if pid in self.deaths and self.deaths[pid].doomed:
                return "runner killed by its supervisor"
        return None

    # ---- C3

    def epochs_of(self, message: Stored) -> None:
        received = sorted((epoch, self.hand_outs[message.id, epoch]) for epoch in self.epochs[message.id] if (message.id, epoch) in self.hand_outs)
        attempts = {attempt.epoch: attempt for attempt in message.attempts if attempt.outcome != REPLACED}
        later = inf  # when somebody is first known to hold a later epoch
        for place in range(len(received) - 1, -1, -1):
            epoch, hand_outs = received[place]
            if len(hand_outs) > 1:
                self.say("overlap", f"{message.id} epoch {epoch} was handed out {len(hand_outs)} times")
            if epoch > message.epoch:
                self.say("forgotten", f"{message.id} epoch {epoch} was handed out, the store stands at {message.epoch}")
            if place + 1 < len(received):
                self._end_before(message, epoch, attempts.get(epoch), received[place + 1])
            for settling in self.settlings.get((message.id, epoch), ()):
                if settling.answer == "done" and settling.asked_t > later:
                    self.say("stale", f"{message.id} epoch {epoch}: {settling.outcome} was accepted after a later hand-out")
            later = min(later, *(each.t for each in hand_outs))
        for epoch in self.epochs[message.id]:
            self._settles_of(message, epoch, attempts.get(epoch))

    def _end_before(self, message: Stored, epoch: int, attempt: Attempt | None, following: tuple[int, list[HandOut]]) -> None:
        """The delivery had ended before the next hand-out."""
        key, next_epoch, at = (message.id, epoch), following[0], min(each.at for each in following[1])
        if attempt is None or attempt.outcome not in AGAIN:
            self.say("overlap", f"{message.id} epoch {next_epoch} was handed out, and {epoch} had not ended")
        elif attempt.outcome == "lost" and not any(each.outcome == "lost" and _accepted_or_unknown(each) for each in self.settlings.get(key, ())):
            over = max(each.lease_until for each in self.hand_outs[key])
            if min(at, attempt.ended_at) < max(over, self.lease_until[key]) - GRAIN_S:
                self.say(
                    "overlap",
                    f"{message.id} epoch {next_epoch} was handed out {self.lease_until[key] - at:.3f} s before the lease of {epoch} was over",
                )

    def _settles_of(self, message: Stored, epoch: int, attempt: Attempt | None) -> None:
        accepted = [each for each in self.settlings.get((message.id, epoch), ()) if each.answer == "done"]
        if len(accepted) > 1:
            self.say("doubled", f"{message.id} epoch {epoch}: accepted {', '.join(each.outcome for each in accepted)}")
        for settling in accepted:
            if settling.outcome in ("ack", "dead_letter") and epoch < message.epoch:
                self.say("stale", f"{message.id}: {settling.outcome} under epoch {epoch} was accepted, the last one is {message.epoch}")
            elif epoch > message.epoch or not _stands(settling, message, attempt):
                self.say("forgotten", f"{message.id} epoch {epoch}: {settling.outcome} was answered with done")

    def end_of(self, message: Stored) -> None:
        """What the store says of its deliveries was asked for by somebody, and what was acknowledged had run. C8."""
        key = (message.id, message.epoch)
        for attempt in message.attempts:
            received = (message.id, attempt.epoch) in self.hand_outs
            asked = (each.outcome == attempt.outcome for each in self.settlings.get((message.id, attempt.epoch), ()) if _accepted_or_unknown(each))
            if received and attempt.outcome in ("retry", "release") and not any(asked):
                self.say("unasked", f"{message.id} epoch {attempt.epoch}: {attempt.outcome}")
        if (message.state, message.outcome) != ("done", "succeeded"):
            self.say("stuck", f"{message.id} in {message.queue} is {message.state} {message.outcome}".rstrip())
            return
        if not any(each.outcome == "ack" and _accepted_or_unknown(each) for each in self.settlings.get(key, ())):
            self.say("unasked", f"{message.id} epoch {message.epoch}: ack")
        if key not in self.starts:
            self.say("unstarted", f"{message.id} epoch {message.epoch}")
        asked_t = min((each.asked_t for each in self.settlings.get(key, ()) if each.outcome == "ack"), default=inf)
        if any(start.end_t > asked_t for start in self.starts.get(key, ())):
            self.say("early", f"{message.id} epoch {message.epoch}")

    def strangers(self) -> None:
        """Acts on messages the store does not know, renewals out of their time."""
        known = {message.id for message in (*self.history.messages, *self.history.singles)}
        for message in self.epochs.keys() - known:
            self.say("forgotten", f"{message} was handed out, and the store does not know it")
        seen: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for (message, epoch), hand_outs in self.hand_outs.items():
            seen[message].append((epoch, min(each.t for each in hand_outs)))
        for renewal in self.history.renewals:
            if any(epoch > renewal.epoch and t < renewal.asked_t for epoch, t in seen[renewal.message]):
                self.say("overlap", f"{renewal.message} epoch {renewal.epoch} was renewed after a later hand-out")

    # ---- C4

    def groups(self) -> None:
        lanes: dict[tuple[str, str], list[Stored]] = defaultdict(list)
        for message in self.history.messages:
            if message.group:
                lanes[message.queue, message.group].append(message)
        for (queue, group), messages in lanes.items():
            ended, before, started = -inf, -1, -inf  # of all smaller numbers
            for _, batch in groupby(sorted(messages, key=lambda message: message.number), key=lambda message: message.number):
                ended, before, started = self._after(list(batch), f"{queue} {group}", ended, before, started)

    def _after(self, batch: list[Stored], lane: str, ended: float, before: int, started: float) -> tuple[float, int, float]:
        """The messages of one item (several behind a split) against all items before it."""
        number = batch[0].number
        first = min(
            (each.t for message in batch for epoch in self.epochs[message.id] for each in self.hand_outs.get((message.id, epoch), ())), default=inf
        )
        if first < ended:
            self.say("disorder", f"{lane}: item {number} was received before the end of item {before}")
        first_start = min(
            (each.t for message in batch for epoch in self.epochs[message.id] for each in self.starts.get((message.id, epoch), ())), default=inf
        )
        if first_start < started:
            self.say("disorder", f"{lane}: item {number} started before item {before}")
        for message in batch:
            acks = [
                each.asked_t for each in self.settlings.get((message.id, message.epoch), ()) if each.outcome == "ack" and _accepted_or_unknown(each)
            ]
            end = min(acks, default=inf)
            if end > ended:
                ended, before = end, number
        return ended, before, max(started, first_start if first_start < inf else started)

    # ---- C5, C7

    def runs(self) -> None:
        for id in self.by_run.keys() - {run.id for run in self.history.runs}:
            self.say("misplaced", f"messages of run {id}, which is not there")
        last = list(self.history.shape)[-1]
        for run in self.history.runs:
            messages = self.by_run[run.id]
            stages = Counter(message.stage for message in messages)
            if stages != self.history.shape:
                self.say("misplaced", f"run {run.id} has {dict(stages)}")
            self._conserved(run, messages)
            if run.state != "done":
                self.say("stuck", f"run {run.id} is {run.state}")
            self._result(run, [message for message in messages if message.stage == last])

    def _conserved(self, run: RunEnd, messages: list[Stored]) -> None:
        """The item stands in one stage at every commit between its entry and its end. Commits within a grain of each other are looked at together."""
        moves = [(message.sent_at, 1, message.stage) for message in messages]
        moves += [(message.ended_at, -1, message.stage) for message in messages if message.state == "done"]
        moves.sort(key=lambda move: move[0])
        live: Counter[str] = Counter()
        for place, (at, change, stage) in enumerate(moves):
            live[stage] += change
            if place + 1 < len(moves) and moves[place + 1][0] <= at + GRAIN_S:
                continue
            stages = sorted(stage for stage, count in live.items() if count > 0)
            if len(stages) > 1:
                self.say("torn", f"run {run.id} stands in {' and '.join(stages)} at {at:.3f}")
            elif not stages and place + 1 < len(moves):
                self.say("torn", f"run {run.id} stands nowhere at {at:.3f}")

    def _result(self, run: RunEnd, last: list[Stored]) -> None:
        if (run.state == "done") != (run.result is not None):
            self.say("result", f"run {run.id} is {run.state}, its result is {run.result}")
        elif run.result is not None:
            value, epoch = run.result
            if value != self.history.values.get(run.number):
                self.say("result", f"run {run.id}: {value}, should be {self.history.values.get(run.number)}")
            if [epoch] != [message.epoch for message in last]:
                self.say("result", f"run {run.id}: the result is of epoch {epoch}, acknowledged was {[message.epoch for message in last]}")

    def counters(self) -> None:
        there = Counter(message.state for message in (*self.history.messages, *self.history.singles))
        for state in sorted(there.keys() | self.history.counted.keys()):
            if there[state] != self.history.counted.get(state, 0):
                self.say("miscounted", f"{state}: {self.history.counted.get(state, 0)} by the counters, {there[state]} messages")


def _by_key(acts: "Iterable[HandOut] | Iterable[Start] | Iterable[Settling]") -> dict[Key, list[Any]]:
    found: dict[Key, list[Any]] = defaultdict(list)
    for act in acts:
        found[act.message, act.epoch].append(act)
    return dict(found)


def _stands(settling: Settling, message: Stored, attempt: Attempt | None) -> bool:
    """Whether the store knows what it has accepted."""
    if settling.outcome == "ack":
        return message.state == "done"
    if attempt is None:
        return False
    return attempt.outcome == settling.outcome or (settling.outcome, attempt.outcome) == ("lost", "dead_letter")
