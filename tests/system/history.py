"""What happened in a chaos run, as the participants wrote it down themselves, and what the store says at the end.

Writing   every process owns one file. One event is one line in one write() to a descriptor opened for appending, made before the next act that others can
          see: whole or absent, whoever is killed. Nothing is synced: a killed process loses nothing of the page cache, and syncing would hide races.
Clocks    `t` is CLOCK_MONOTONIC, the same for all processes of this host. `wall` and every instant ending in `_at` or `_until` are seconds since 1970;
          those of a HandOut and of the store are the engine's.
Reading   `read` joins the files to a History; `chaos.py` adds what the store says. A History is plain data, so that tests can write one by hand and break it.
Identity  an act belongs to a message and an epoch; a process to its pid. Pids are not reused within a run of minutes.
"""

import json
import os
import secrets
import time
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct, structs

NONE = 1e18  # in place of an infinity, which JSON has not
UNKNOWN = "unknown"  # no answer, or an answer that says so: it may have happened


class Sending(Struct, frozen=True, kw_only=True):
    """A sender's act. `phase`: invoke, ok, fail (certainly not stored), unknown. `numbers`: the items of one batch."""

    t: float
    wall: float
    phase: str
    numbers: tuple[int, ...]


class HandOut(Struct, frozen=True, kw_only=True):
    """A receive answered a supervisor. `by`: the supervisor's place ("supervisor-0"), the same after it was started again. `at`, `lease_until`: engine.

    `at_t`, `until_t`: the same two as `t` (engine and supervisor read the same host's clock; between the two readings lies no time that matters).
    """

    t: float
    pid: int
    by: str
    message: str
    epoch: int
    at: float
    lease_until: float
    at_t: float = 0.0
    until_t: float = 0.0


class Renewal(Struct, frozen=True, kw_only=True):
    """A renewal that was answered with done, at `t`. `asked_wall`: before the call, so the lease runs to `asked_wall + lease_s` at least."""

    t: float = 0.0
    asked_t: float
    asked_wall: float
    message: str
    epoch: int
    lease_s: float


class Settling(Struct, frozen=True, kw_only=True):
    """One settle of one receipt. `outcome`: ack, retry, lost, release, dead_letter. `answer`: done, lease_lost, fail, unknown."""

    asked_t: float
    pid: int
    by: str
    message: str
    epoch: int
    outcome: str
    answer: str


class Start(Struct, frozen=True, kw_only=True):
    """Task code ran: the ground truth of what users would see. `end_t`: its end, 0.0 = it was killed before. `said`: the number it was called with, -1 = nothing to tell."""

    t: float
    pid: int
    message: str
    epoch: int
    said: int = -1
    end_t: float = 0.0


class Death(Struct, frozen=True, kw_only=True):
    """A supervisor saw its runner end. `doomed`: why it had killed the runner itself, "" = it had not."""

    t: float
    pid: int
    doomed: str
    how: str


class Fault(Struct, frozen=True, kw_only=True):
    """The nemesis at work, written before the act. `kind`: runner, supervisor, sender, freeze, thaw, server_down, server_up. `pids`: who dies of it."""

    t: float
    kind: str
    pids: tuple[int, ...] = ()


class Attempt(Struct, frozen=True, kw_only=True):
    """The store's record of one ended delivery."""

    epoch: int
    outcome: str
    ended_at: float


class Stored(Struct, frozen=True, kw_only=True):
    """A message as the store shows it at the end. `number`: of its item, -1 = an id no sender makes. `ended_at` 0.0 = not yet."""

    id: str
    run: str
    stage: str
    number: int
    queue: str
    state: str
    outcome: str
    epoch: int
    sent_at: float
    ended_at: float = 0.0
    group: str = ""
    attempts: tuple[Attempt, ...] = ()
    claims: tuple[tuple[str, str, float], ...] = ()  # limit, key, cost


class RunEnd(Struct, frozen=True, kw_only=True):
    """A run as the store shows it at the end. `result`: [value, epoch of the delivery that returned it]; None = none stored."""

    id: str
    number: int
    state: str
    result: tuple[int, int] | None = None


class Bound(Struct, frozen=True, kw_only=True):
    """The numbers of a limit from some instant between `asked_t` and `t` on. `burst`: starts at once, `rate` more in a second; NONE = not limited in this way."""

    name: str
    asked_t: float = 0.0
    t: float = 0.0
    concurrency: float = NONE
    rate: float = NONE
    burst: float = NONE


class Shut(Struct, frozen=True, kw_only=True):
    """The store said at `t` that the queue is left alone until `until` (engine). `tries`: 0 = a snooze, else its kill switch has tripped and lets so many through then."""

    t: float
    queue: str
    until: float
    tries: int = 0


class Asking(Struct, frozen=True, kw_only=True):
    """One send of a unique message, by `rule` (chaos_flow.RULES). `t`: its answer, that message `answer` stands for it; "" and NONE = none came. `number` grows."""

    asked_t: float
    t: float = NONE
    number: int
    rule: str
    key: str
    id: str
    answer: str = ""


class Occurrence(Struct, frozen=True, kw_only=True):
    """What the store has of one: the message that a schedule sent."""

    schedule: str
    due_at: float
    sent_at: float
    id: str


class Span(Struct, frozen=True, kw_only=True):
    """A schedule stood at `after_at` first and at `until_at` last: all multiples of `every_s` in between were due, the last one included."""

    schedule: str
    after_at: float
    until_at: float
    every_s: float


class History(Struct, kw_only=True):
    """Everything the checker looks at. `shape`: stage -> messages per run, in order. `values`: number -> the right result. `counted`: per state, the store's counters.

    With flow control: `singles` are the messages of no run, `queue_limits` the limits of whole queues, `left` what limits still hold when nothing runs, in words.
    """

    shape: dict[str, int]
    values: dict[int, int]
    sendings: list[Sending] = []
    hand_outs: list[HandOut] = []
    renewals: list[Renewal] = []
    settlings: list[Settling] = []
    starts: list[Start] = []
    deaths: list[Death] = []
    faults: list[Fault] = []
    messages: list[Stored] = []
    runs: list[RunEnd] = []
    counted: dict[str, int] = {}
    singles: list[Stored] = []
    queue_limits: dict[str, tuple[str, ...]] = {}
    bounds: list[Bound] = []
    shuts: list[Shut] = []
    askings: list[Asking] = []
    occurrences: list[Occurrence] = []
    spans: list[Span] = []
    left: list[str] = []


class Journal:
    """One process's own file."""

    def __init__(self, folder: Path, role: str) -> None:
        self.pid = os.getpid()
        self._role = role
        path = folder / f"{role}.{self.pid}.{secrets.token_hex(4)}.jsonl"
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, op: str, **facts: Any) -> None:
        line = json.dumps({"op": op, "t": time.monotonic(), "pid": self.pid, "by": self._role, **facts}, separators=(",", ":"))
        os.write(self._descriptor, line.encode() + b"\n")

    def close(self) -> None:
        os.close(self._descriptor)


def lines(folder: Path, role: str = "") -> list[dict[str, Any]]:
    """All events of the participants whose role begins so, in the order of their time."""
    found = []
    for path in sorted(folder.glob(f"{role}*.jsonl")):
        # A line without its end was being written when its process died: its act did not follow.
        found += [json.loads(line) for line in path.read_bytes().split(b"\n")[:-1]]
    return sorted(found, key=lambda event: event["t"])


def read(folder: Path, *, shape: dict[str, int], values: dict[int, int]) -> History:
    """The files of one run. Settles are joined with their answers; one without is unknown."""
    history = History(shape=shape, values=values)
    asked: dict[tuple[int, int], tuple[dict[str, Any], list[str]]] = {}
    running: dict[tuple[int, str, int], int] = {}
    unanswered: dict[tuple[int, str], int] = {}
    for event in lines(folder):
        match event["op"]:
            case "send":
                history.sendings.append(msgspec.convert(event, Sending))
            case "received":
                who = {"t": event["t"], "pid": event["pid"], "by": event["by"]}
                off = event["t"] - event["wall"]
                history.hand_outs += [
                    HandOut(
                        **who,
                        message=id,
                        epoch=epoch,
                        at=until - event["lease_s"],
                        lease_until=until,
                        at_t=until - event["lease_s"] + off,
                        until_t=until + off,
                    )
                    for id, epoch, until in event["got"]
                ]
            case "renewed":
                when = {"t": event["t"], "asked_t": event["asked_t"], "asked_wall": event["asked_wall"], "lease_s": event["lease_s"]}
                history.renewals += [Renewal(**when, message=id, epoch=epoch) for id, epoch in event["done"]]
            case "settle":
                asked[event["pid"], event["n"]] = (event, [UNKNOWN] * len(event["what"]))
            case "settled":
                asked[event["pid"], event["n"]][1][:] = event["answers"]
            case "start":
                running[event["pid"], event["message"], event["epoch"]] = len(history.starts)
                history.starts.append(msgspec.convert(event, Start))
            case "end":
                place = running[event["pid"], event["message"], event["epoch"]]
                history.starts[place] = structs.replace(history.starts[place], end_t=event["t"])
            case "ask" | "answer" | "bound" | "shut":
                _read_flow(history, event, unanswered)
            case "died":
                history.deaths.append(Death(t=event["t"], pid=event["runner"], doomed=event["doomed"], how=event["how"]))
            case "fault":
                history.faults.append(Fault(t=event["t"], kind=event["kind"], pids=tuple(event["pids"])))
            case other:
                raise ValueError(f"no participant writes {other!r}")
    for event, answers in asked.values():
        who = {"asked_t": event["t"], "pid": event["pid"], "by": event["by"]}
        history.settlings += [
            Settling(**who, message=id, epoch=epoch, outcome=outcome, answer=answer)
            for (id, epoch, outcome), answer in zip(event["what"], answers, strict=True)
        ]
    return history


def _read_flow(history: History, event: dict[str, Any], unanswered: dict[tuple[int, str], int]) -> None:
    """`unanswered`: places in `askings` by process and id."""
    match event["op"]:
        case "ask":
            unanswered[event["pid"], event["id"]] = len(history.askings)
            history.askings.append(Asking(asked_t=event["t"], number=event["number"], rule=event["rule"], key=event["key"], id=event["id"]))
        case "answer":
            place = unanswered[event["pid"], event["id"]]
            history.askings[place] = structs.replace(history.askings[place], t=event["t"], answer=event["answer"])
        case "bound":
            history.bounds.append(msgspec.convert(event, Bound))
        case _:
            history.shuts.append(msgspec.convert(event, Shut))
