"""The accounts of runs and gathers: who is still open, who is dead, what a gather still waits for.

A settlement touches a run in several places (its message ends, others are stored, a gather fires), so a run is judged once, at the end of each write: `close`.
"""

from bisect import insort
from collections import Counter
from collections.abc import Callable

from beltline.core.chain import gathered
from beltline.core.codec import join_list
from beltline.core.lifecycle import State
from beltline.core.message import Gather, Message, Part
from beltline.core.names import ChainName, GatherId, RunId
from beltline.core.outcome import Ack, Ended
from beltline.core.views import RunCounts
from beltline.engines.memory.rows import GatherRow, Row, RunRow


def hands_on(ack: Ack, part: Part) -> bool:
    """Whether what follows `ack` still carries the duty to answer `part`."""
    followers = [*ack.then, *(gather.then for gather in ack.gathers if gather.then is not None)]
    if any(message.place is not None and part in message.place.parts for message in followers):
        return True
    return any(gather.outer == part for gather in ack.gathers)


class RunBook:
    """`store` writes the message of a gather that fires; `drop` cancels a live message of a run that is given up, or asks for it."""

    def __init__(self, store: Callable[[Message, float], None], drop: Callable[[Row, str, float], None]) -> None:
        self.runs: dict[RunId, RunRow] = {}
        self.gathers: dict[GatherId, GatherRow] = {}
        self.chains: dict[ChainName, list[RunId]] = {}  # in id order
        self.ended: set[str] = set()  # ids that ended since the set was last emptied
        self._states: dict[ChainName, Counter[str]] = {}
        self._store = store
        self._drop = drop
        self._touched: dict[RunId, RunRow] = {}

    # ---- messages come and go

    def of(self, row: Row) -> RunRow | None:
        return self.runs.get(row.message.place.run) if row.message.place is not None else None

    def stored(self, row: Row, now: float) -> None:
        """A message came into being. Sent into a run that had ended, it opens the run again."""
        place = row.message.place
        if place is None:
            return
        run = self._run(place.run, place.chain, now)
        run.rows[row.id] = row
        run.open, row.counted = run.open + 1, "open"
        if run.given_up:
            self._turn(run, "running", now)
        self._touched[run.id] = run

    def succeeded(self, row: Row, ack: Ack, now: float) -> None:
        """A delivery was acknowledged: result, hand-off, gathers and part of `ack` take effect, unless the run is given up."""
        self._left(row, ack.ended)
        run = self.of(row)
        if run is None or run.given_up:
            return
        if ack.result is not None:
            self._result(run, ack.result, now + ack.result_ttl_s, ack.ended)
        self.hand_on(ack.then, ack.gathers, now)
        part = row.part
        if part is None:
            return
        if ack.part is not None:
            self._answer(part, ack.part, now)
        elif not hands_on(ack, part):
            self._absent(part, now, failing=ack.ended is not Ended.SUCCEEDED)

    def gone(self, row: Row, ended: Ended, now: float) -> None:
        """A message ended without a settlement: cancelled, expired, purged, deleted."""
        self._left(row, ended)
        run = self.of(row)
        if run is not None and not run.given_up and row.part is not None:
            self._absent(row.part, now, failing=True)

    def died(self, row: Row, now: float) -> None:
        run = self.of(row)
        if run is None:
            return
        gather = self.gathers.get(row.part.gather) if row.part is not None else None
        on_dead = gather.gather.on_dead if gather is not None else "hold"
        run.open, row.counted = run.open - 1, ""
        if on_dead != "skip":  # else the run goes on without it
            run.dead, row.counted = run.dead + 1, "dead"
        run.why, run.failure = row.why, row.failure
        self._touched[run.id] = run
        if run.given_up or gather is None or row.part is None:
            return
        if on_dead == "fail":
            self.give_up(run, "failed", f"A part died: {row.why}", now)
        elif on_dead == "skip":
            self._answer(row.part, None, now)
        elif row.part.index not in gather.answers:
            gather.dead.add(row.part.index)

    def redriven(self, row: Row, now: float) -> None:
        place = row.message.place
        if place is None:
            return
        run = self._run(place.run, place.chain, now)
        run.rows[row.id] = row
        run.dead -= row.counted == "dead"
        run.open, row.counted = run.open + 1, "open"
        if row.part is not None and (gather := self.gathers.get(row.part.gather)) is not None:
            gather.dead.discard(row.part.index)
        self._touched[run.id] = run

    def _left(self, row: Row, ended: Ended) -> None:
        run = self.of(row)
        if run is None or not row.counted:
            return
        run.open -= row.counted == "open"
        run.dead -= row.counted == "dead"
        row.counted = ""
        run.last = ended
        self._touched[run.id] = run

    # ---- gathers

    def hand_on(self, messages: tuple[Message, ...], gathers: tuple[Gather, ...], now: float) -> None:
        """Write the next messages and the gathers that wait for them."""
        opened = [self.open(gather, now) for gather in gathers if gather.id not in self.gathers]
        for message in messages:
            self._store(message, now)
        for row in opened:
            self._fire_if_complete(row, now)

    def open(self, gather: Gather, now: float) -> GatherRow:
        """Only the row: whoever opens gathers stores the parts next and then looks whether one waits for nothing."""
        run = self._run(gather.run, gather.then.place.chain if gather.then is not None and gather.then.place is not None else ChainName(""), now)
        row = self.gathers[gather.id] = GatherRow(gather)
        run.gathers.append(row)
        return row

    def _answer(self, part: Part, value: bytes | None, now: float) -> None:
        row = self.gathers.get(part.gather)
        if row is None or row.fired or part.index in row.answers or not 0 <= part.index < row.gather.expected:
            return
        row.answers[part.index] = value
        row.dead.discard(part.index)
        self._fire_if_complete(row, now)

    def _absent(self, part: Part, now: float, *, failing: bool) -> None:
        row = self.gathers.get(part.gather)
        if failing and row is not None and not row.fired and row.gather.on_dead == "fail" and part.index not in row.answers:
            self.give_up(self.runs[row.gather.run], "failed", "A part was cancelled or expired.", now)
        else:
            self._answer(part, None, now)

    def _fire_if_complete(self, row: GatherRow, now: float) -> None:
        gather = row.gather
        run = self.runs[gather.run]
        if row.fired or run.given_up or len(row.answers) < gather.expected:
            return
        row.fired = True
        run.last = None
        self._touched[run.id] = run
        values = [value for _, value in sorted(row.answers.items()) if value is not None]
        if gather.then is not None:
            self._store(gathered(gather, values), now)
        elif gather.outer is not None:
            self._answer(gather.outer, join_list(values), now)
        else:
            self._result(run, join_list(values), now + gather.result_ttl_s, None)
        row.answers = dict.fromkeys(row.answers)  # the values live on in what was sent

    # ---- runs

    def _run(self, id: RunId, chain: ChainName, now: float) -> RunRow:
        run = self.runs.get(id)
        if run is None:
            run = self.runs[id] = RunRow(id, chain, now)
            insort(self.chains.setdefault(chain, []), id)
            self._states.setdefault(chain, Counter())[run.state] += 1
        return run

    def _result(self, run: RunRow, result: bytes, until: float, last: Ended | None) -> None:
        run.result, run.result_until, run.last = result, until, last

    def give_up(self, run: RunRow, state: str, why: str, now: float) -> None:
        """Failed or cancelled: its gathers never fire, what is live ends or is asked to."""
        self._turn(run, state, now)
        if state == "cancelled":
            run.why = why
        for row in list(run.rows.values()):
            if row.state in (State.DELAYED, State.READY, State.LEASED):
                self._drop(row, why, now)

    def close(self, now: float) -> None:
        """At the end of a write: where do the touched runs stand?"""
        for run in self._touched.values():
            if run.given_up:
                continue
            if run.open:
                self._turn(run, "running", now)
            elif run.dead:
                self._turn(run, "dead", now)
            elif run.last in (Ended.CANCELLED, Ended.EXPIRED):
                self._turn(run, "cancelled", now)
            else:
                self._turn(run, "done", now)
        self._touched.clear()

    def _turn(self, run: RunRow, state: str, now: float) -> None:
        if state == run.state:
            return
        states = self._states[run.chain]
        states[run.state] -= 1
        states[state] += 1
        run.state = state
        run.ended_at = now if state in ("done", "failed", "cancelled") else 0.0
        if state != "running":
            self.ended.add(run.id)

    def counts(self, chain: str) -> RunCounts:
        states = self._states.get(ChainName(chain), Counter[str]())
        return RunCounts(**{state: states[state] for state in RunCounts.__struct_fields__})

    def forget(self, run: RunRow) -> None:
        """Its history is over."""
        del self.runs[run.id]
        self.chains[run.chain].remove(run.id)
        self._states[run.chain][run.state] -= 1
        for row in run.gathers:
            del self.gathers[row.gather.id]
