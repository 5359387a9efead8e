"""kill -9 at random points of a running line, and then the question whether everything is where it must be.

    make chaos ARGS="--items 5000 --kills 100 [--chain plain|split|flow] [--groups 20] [--seed N]"
    make chaos ARGS="--engine postgres --items 5000 --kills 100 --server-restart-every 5 --seed N"

Runs senders and workers as processes of their own, kills runners, supervisors and senders (real SIGKILL, a seeded script decides), starts them again, lets
the line drain, and gives the history to chaos_checker.py. What is checked is written there; how the history comes about, in history.py.

--engine postgres   on a server of its own, which --server-restart-every SECONDS stops in the middle of everything (-m immediate: as if it had crashed)
--chain flow        limits, fair shares, sticky and unique keys, a kill switch, a schedule beside (chaos_flow.py); an operator changes the numbers meanwhile
--freezes N         supervisors stand still for longer than a lease and go on: their settles come too late. A run that sees none refused has proved nothing
--supervisors N     on one store at once; the report says how many messages each of them acknowledged
--keep FOLDER       the history stays there

The answer is one JSON line; exit code 1 if anything was found.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil

from beltline import App
from tests.system.chaos_checker import Verdict, check
from tests.system.chaos_desk import EVIDENCE, Desk, Held, queues_of
from tests.system.chaos_knobs import Knobs
from tests.system.chaos_line import QUEUES, SHAPES, value
from tests.system.history import Journal, read

ROOT = Path(__file__).parent.parent.parent
LEASE_S = 4.0
SLOTS = 5  # per queue and supervisor
QUIET_S = LEASE_S + 30.0  # nothing has ended for so long: what is open now is stuck
FROZEN_S = 30.0  # nobody stands still for longer
HALT_S = 1.0  # from SIGSTOP to standing still
START_S = 20.0  # for the first message to end
STOP_S = 40.0  # from SIGTERM to the end


class Server(Protocol):
    """A store's server that may be restarted (tests/services/postgres.py). Returns when it takes connections again."""

    def restart(self, mode: Literal["immediate"]) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A supervisor that stands still, and what it held when it was stopped."""

    worker: subprocess.Popen[bytes]
    held: Held
    since: float


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def holds_the_file(pid: int) -> bool:
    """Whether it stands in a transaction of SQLite, whose lock nobody can take from a process that stands still: the whole store would stand with it."""
    locks = Path("/proc/locks")
    rows = [line.split() for line in locks.read_text().splitlines()] if locks.exists() else []
    return any(row[1:2] == ["FLOCK"] and row[4:5] == [str(pid)] for row in rows)


class Theatre:
    """The processes of one run: one sender, some workers. Whatever is killed is started again."""

    def __init__(
        self, url: str, folder: Path, chain: str, items: int, *, work_s: float, sends_s: float, supervisors: int, groups: int, pace: float
    ) -> None:
        paces = {"CHAOS_WORK_S": str(work_s), "CHAOS_SENDS_S": str(sends_s), "CHAOS_PACE": str(pace)}
        self.environ = {**os.environ, **paces, "CHAOS_URL": url, "CHAOS_LOG": str(folder), "PYTHONPATH": str(ROOT)}
        queues = dict.fromkeys(queues_of(chain), SLOTS)
        self.module = "chaos_flow_sender" if chain == "flow" else "chaos_sender"
        app = {"app": f"tests.system.{'chaos_flow' if chain == 'flow' else 'chaos_line'}:app", "app_dir": str(ROOT), "url": url, "log_level": "ERROR"}
        self.options = json.dumps({**app, "queues": queues, "runners": 2, "lease_s": LEASE_S})
        self.sends = [chain, str(items), str(groups)]
        self.workers: list[subprocess.Popen[bytes] | None] = [None] * supervisors
        self.sender: subprocess.Popen[bytes] | None = None
        self.journal = Journal(folder, "nemesis")
        self.output = (folder / "output.log").open("ab")
        self.orphans: list[psutil.Process] = []
        self.fallen: list[str] = []  # who ended, or did not end, as nobody had asked
        self.frozen: list[Frozen] = []

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"tests.system.{module}", *arguments]
        return subprocess.Popen(command, env=self.environ, cwd=ROOT, stdout=self.output, stderr=self.output)

    def start_missing(self) -> None:
        for number, process in enumerate(self.workers):
            if process is None or process.poll() is not None:
                if process is not None and process.returncode != -signal.SIGKILL:
                    self.fallen.append(f"supervisor-{number} ended by itself with {process.returncode}")
                self.workers[number] = self._start("chaos_worker", f"supervisor-{number}", self.options)
        if self.sender is None or self.sender.poll() not in (None, 0):
            self.sender = self._start(self.module, *self.sends)

    def _fault(self, kind: str, *pids: int) -> None:
        self.journal.write("fault", kind=kind, pids=pids)

    def _awake(self) -> list[subprocess.Popen[bytes]]:
        """The workers that may be harmed: one that stands still shall live to settle too late."""
        frozen = [each.worker for each in self.frozen]
        return [worker for worker in self.workers if worker is not None and worker.poll() is None and worker not in frozen]

    def kill_one(self, rng: random.Random) -> str:
        """One random process of a random sort."""
        sort = rng.choice(("runner", "runner", "supervisor", "sender"))
        if sort == "sender" and self.sender is not None and self.sender.poll() is None:
            self._fault("sender", self.sender.pid)
            self.sender.kill()
            self.sender.wait()
            return sort
        awake = self._awake()
        if not awake:
            return "nobody"
        worker = rng.choice(awake)
        children = [child for child in psutil.Process(worker.pid).children(recursive=True) if lives(child)]
        if sort == "runner" and children:
            child = rng.choice(children)
            self._fault("runner", child.pid)
            with suppress(psutil.NoSuchProcess):
                child.kill()
            return sort
        self.orphans += children
        self._fault("supervisor", worker.pid, *(child.pid for child in children))
        worker.kill()
        worker.wait()
        return "supervisor"

    def freeze_one(self, rng: random.Random, held_by: Callable[[int], "Held"]) -> bool:
        """A supervisor that holds something stands still; its runners go on. One at a time, and somebody must be left to overtake it."""
        awake = self._awake()
        if self.frozen or len(awake) < 2:
            return False
        worker = rng.choice(awake)
        worker.send_signal(signal.SIGSTOP)
        until = time.monotonic() + HALT_S
        while psutil.Process(worker.pid).status() != psutil.STATUS_STOPPED and time.monotonic() < until:
            time.sleep(0.001)
        if holds_the_file(worker.pid) or not (held := held_by(worker.pid)):
            worker.send_signal(signal.SIGCONT)
            return False
        self._fault("freeze", worker.pid)
        self.frozen.append(Frozen(worker=worker, held=held, since=time.monotonic()))
        return True

    def thaw(self, overtaken: Callable[["Held"], bool] | None = None) -> None:
        """Those go on whose leases are over and who have lost something to somebody else; without `overtaken` all."""
        for frozen in list(self.frozen):
            stood_s = time.monotonic() - frozen.since
            if overtaken is None or stood_s > FROZEN_S or (stood_s > 1.5 * LEASE_S and overtaken(frozen.held)):
                self.frozen.remove(frozen)
                self._fault("thaw", frozen.worker.pid)
                if frozen.worker.poll() is None:
                    frozen.worker.send_signal(signal.SIGCONT)

    def restart_server(self, server: Server) -> None:
        self._fault("server_down")
        server.restart("immediate")
        self._fault("server_up")

    def stop(self) -> int:
        """End everything in good order. Returns how many runners had outlived their supervisor (none may)."""
        self.thaw()
        mine = {f"supervisor-{number}": process for number, process in enumerate(self.workers)} | {"sender": self.sender}
        running = {name: process for name, process in mine.items() if process is not None and process.poll() is None}
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for name, process in running.items():
            try:
                code = process.wait(timeout=STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            if name != "sender" and code not in (0, -signal.SIGTERM):  # -SIGTERM: the interpreter had not come as far as our handler
                self.fallen.append(f"{name} was told to drain and ended with {code}")
        self.output.close()
        left = [orphan for orphan in self.orphans if lives(orphan)]
        for orphan in left:
            orphan.kill()
        return len(left)


class Nemesis:
    """The seeded script of what breaks when."""

    def __init__(
        self,
        theatre: Theatre,
        desk: Desk,
        seed: int,
        *,
        kills: int,
        freezes: int,
        pause_s: tuple[float, float],
        server: Server | None,
        restart_every_s: float,
        knobs: Knobs | None,
    ) -> None:
        self.knobs = knobs
        self.theatre = theatre
        self.desk = desk
        self.rng = random.Random(seed)
        self.kills, self.freezes, self.pause_s = kills, freezes, pause_s
        self.server, self.restart_every_s = server, restart_every_s
        self.killed: Counter[str] = Counter()
        self.frozen = self.restarts = 0
        self._freeze_at = sorted(self.rng.randrange(kills // 2 + 1) for _ in range(freezes))  # early: there must be work to be late with
        self._restart_at = time.monotonic() + restart_every_s

    @property
    def done(self) -> bool:
        return self.killed.total() >= self.kills

    def freeze(self) -> None:
        """One supervisor, if one is still to stand still by now; what cannot be done now is tried again."""
        if self.frozen < len(self._freeze_at) and self.killed.total() >= self._freeze_at[self.frozen]:
            self.frozen += self.theatre.freeze_one(self.rng, self.desk.held_by)

    def act(self) -> None:
        """One pause and one fault, or more where their time has come."""
        theatre = self.theatre
        time.sleep(self.rng.uniform(*self.pause_s))
        theatre.thaw(self.desk.overtaken)
        if self.server is not None and self.restart_every_s and time.monotonic() >= self._restart_at:
            theatre.restart_server(self.server)
            self.restarts += 1
            self._restart_at = time.monotonic() + self.restart_every_s
        self.freeze()
        if self.knobs is not None:
            self.knobs.turn()
        if not self.done and (victim := theatre.kill_one(self.rng)) != "nobody":
            self.killed[victim] += 1
        theatre.start_missing()


def run(
    *,
    items: int,
    kills: int,
    chain: str = "plain",
    seed: int = 0,
    url: str = "",
    pause_s: tuple[float, float] = (0.2, 0.9),
    supervisors: int = 2,
    groups: int = 0,
    freezes: int = 0,
    server: Server | None = None,
    restart_every_s: float = 0.0,
    keep: Path | None = None,
) -> dict[str, Any]:
    """One whole performance. Returns `findings` (all must be 0), `evidence` for them, and facts (kills by sort, starts, what explained the repeated ones, …)."""
    began = time.monotonic()
    with ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="beltline-chaos-")))
        folder.mkdir(parents=True, exist_ok=True)
        url = url or f"sqlite:///{folder}/chaos.db"
        # The line shall run for about as long as the killing, and the senders for half of it: crashes take their share of the slots.
        killing_s, slots = kills * sum(pause_s) / 2, len(QUEUES) * SLOTS * supervisors
        work_s = killing_s * slots * 0.5 / (items * sum(SHAPES[chain].values()))
        pace = 0.4 * items / killing_s if killing_s else 100.0  # starts of `steady` in a second
        sends_s = killing_s * 0.5
        theatre = Theatre(url, folder, chain, items, work_s=work_s, sends_s=sends_s, supervisors=supervisors, groups=groups, pace=pace)
        stack.callback(theatre.journal.close)
        stack.callback(theatre.stop)
        desk = Desk(stack.enter_context(App(url)), chain)
        desk.declare()
        knobs = None
        if chain == "flow":
            knobs = Knobs(desk, folder, url, pace=pace, seed=seed)
            stack.callback(knobs.close)
            knobs.prepare()
        nemesis = Nemesis(
            theatre, desk, seed, kills=kills, freezes=freezes, pause_s=pause_s, server=server, restart_every_s=restart_every_s, knobs=knobs
        )
        theatre.start_missing()
        if knobs is not None:
            _until_something_ends(desk)
        while_running = 0
        while not nemesis.done:
            before = nemesis.killed.total()
            nemesis.act()
            while_running += (nemesis.killed.total() - before) if desk.ended()[0] < items else 0
        drained_s = _drain(theatre, nemesis, desk, items)
        left = desk.left_over()
        outlived = theatre.stop()
        history = read(folder, shape=SHAPES[chain], values={number: value(chain, number) for number in range(items)})
        desk.testify(history, knobs)
        verdict = check(history)
        findings = {**verdict.findings, "outlived": [f"{outlived} runners"] * outlived, "fallen": theatre.fallen}
        if freezes and not verdict.stale_refused:
            findings["no stale settle seen"] = ["supervisors were frozen and the epoch was never asked to decide: the run proved nothing"]
        if knobs is not None:
            findings["nothing pressed"] = [name for name in knobs.limits if not verdict.pressed.get(name)] + ["kill switch"] * (not knobs.trips)
        sound = not any(findings.values())
        output = "" if sound else (folder / "output.log").read_text(errors="replace")[-3000:]
    return {
        "findings": {name: len(texts) for name, texts in findings.items()},
        "items": items,
        "chain": chain,
        "groups": groups,
        "seed": seed,
        "kills": dict(nemesis.killed),
        "kills_while_running": while_running,
        "freezes": nemesis.frozen,
        "server_restarts": nemesis.restarts,
        **({} if knobs is None else {"turned": dict(knobs.turned), "trips": len(knobs.trips), "pressed": verdict.pressed}),
        **_facts(verdict),
        "drained_s": round(drained_s, 1),
        "seconds": round(time.monotonic() - began, 1),
        "evidence": {name: texts[:EVIDENCE] for name, texts in findings.items() if texts},
        "left": left,
        "output": output,
    }


def _until_something_ends(desk: Desk) -> None:
    """Who is killed before anything runs holds nothing. Kills of what is starting come later: of those that were started again."""
    until = time.monotonic() + START_S
    while desk.ended()[1] == 0 and time.monotonic() < until:
        time.sleep(0.05)


def _drain(theatre: Theatre, nemesis: Nemesis, desk: Desk, items: int) -> float:
    """Heal, then wait until every run has ended, or nothing has ended for QUIET_S. Without kills to make, the server's restarts go on meanwhile."""
    began = quiet_since = time.monotonic()
    before = (-1, -1)
    if nemesis.knobs is not None and nemesis.kills:
        nemesis.knobs.heal()
    while ((ended := desk.ended())[0] < items or desk.open()) and time.monotonic() - quiet_since < QUIET_S:
        if ended != before:
            before, quiet_since = ended, time.monotonic()
        if nemesis.kills == 0:
            nemesis.act()
        else:
            time.sleep(0.05 if nemesis.frozen < nemesis.freezes else 0.2)
            theatre.thaw(desk.overtaken)
            nemesis.freeze()
            theatre.start_missing()
            if nemesis.knobs is not None:
                nemesis.knobs.watch()
    return time.monotonic() - began


def _facts(verdict: Verdict) -> dict[str, Any]:
    total = sum(verdict.shares.values()) or 1
    return {
        "starts": verdict.starts,
        "explained_duplicates": verdict.causes,
        "recovered_sends": verdict.recovered,
        "unknown_settles": verdict.unknown_settles,
        "stale_settles_refused": verdict.stale_refused,
        "repeated_settles_refused": verdict.repeats_refused,
        "shares": {by: round(acks / total, 3) for by, acks in verdict.shares.items()},
        "back_in_service_s": {"most": max(verdict.back_s), "of": len(verdict.back_s)} if verdict.back_s else {},
    }


@contextmanager
def postgres(version: str = "") -> Iterator[tuple[str, Server]]:
    """A PostgreSQL server for one run, and the URL of an empty database in it. `version`: "15", "18", … as found here; "" = the first found."""
    from tests.services.discovery import servers
    from tests.services.postgres import PostgresServer, fresh_database

    found = [each for each in servers() if each.bin is not None and version in ("", each.name)]
    if not found:
        raise SystemExit("\n".join(each.reason or f"found: {each.name}" for each in servers()))
    with PostgresServer(found[0]) as server:
        yield fresh_database(server), server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--chain", choices=list(SHAPES), default="plain")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--engine", choices=["sqlite", "postgres"], default="sqlite")
    parser.add_argument("--server", default="", metavar="VERSION", help="which of the PostgreSQL servers found here: 15, 18, …")
    parser.add_argument("--url", default="", help="an empty store of yours instead")
    parser.add_argument("--supervisors", type=int, default=2)
    parser.add_argument("--groups", type=int, default=0, help="FIFO groups the items are dealt to, 0 = none")
    parser.add_argument("--freezes", type=int, default=0)
    parser.add_argument("--server-restart-every", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--keep", type=Path)
    given = parser.parse_args()
    if given.server_restart_every and (given.url or given.engine != "postgres"):
        parser.error("--server-restart-every needs a server that may be restarted: --engine postgres, without --url")
    print(f"seed {given.seed}", file=sys.stderr)
    with ExitStack() as stack:
        url, server = given.url, None
        if given.engine == "postgres" and not url:
            url, server = stack.enter_context(postgres(given.server))
        outcome = run(
            items=given.items,
            kills=given.kills,
            chain=given.chain,
            seed=given.seed,
            url=url,
            supervisors=given.supervisors,
            groups=given.groups,
            freezes=given.freezes,
            server=server,
            restart_every_s=given.server_restart_every,
            keep=given.keep,
        )
    print(json.dumps(outcome))
    raise SystemExit(1 if any(outcome["findings"].values()) else 0)


if __name__ == "__main__":
    main()
