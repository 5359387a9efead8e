"""The supervisor: holds the store and every lease, runs no task code, and puts the parts of a worker together.

    start    runners are executed · the first Hello says what the app is · the engine is opened, queues are declared · every runner gets its share
    run      receiver (one per queue) -> intake -> dealing -> runner -> settler; beside them leases, deadlines, crew, heartbeat, upkeep
    drain    no receive, nothing dealt; what has not started is released without an attempt at once; what runs may finish within drain_s, is then asked
             to stop, and killed after the grace; everything is settled; the store is closed. `stop_now` skips the waiting.

All of it is one asyncio TaskGroup: a part that fails takes the worker down with a line in the log, and the store's leases do the rest.
"""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Callable
from time import monotonic

from beltline.app import App
from beltline.core.chain import ChainPlan
from beltline.core.errors import BeltlineError, EngineError, EngineUnavailable, QueueNotDeclared, UsageError
from beltline.core.flow import Limit
from beltline.core.message import Delivery
from beltline.core.names import QueueName
from beltline.core.outcome import Release
from beltline.core.policy import TaskPolicy
from beltline.core.queues import QueueSpec
from beltline.engines.protocol import Engine
from beltline.events import Events
from beltline.upkeep.announcer import Announcer
from beltline.upkeep.retention import Retention
from beltline.upkeep.scheduler import Scheduler
from beltline.upkeep.sweeper import Sweeper
from beltline.upkeep.switches import SwitchWatch
from beltline.worker import blame
from beltline.worker.children import Child, Stage
from beltline.worker.config import WorkerConfig
from beltline.worker.crew import Crew
from beltline.worker.deadlines import NO_POLICY, Deadlines
from beltline.worker.dealing import Dealing
from beltline.worker.draining import Draining
from beltline.worker.frames import DRAINED, Back, Done, Hello, Notes, ToSupervisor, Written
from beltline.worker.heartbeat import Heartbeat
from beltline.worker.host import Memory, memory
from beltline.worker.intake import Intake
from beltline.worker.leases import Leases
from beltline.worker.progress import Progress
from beltline.worker.receiver import Receiver
from beltline.worker.resizing import Resizing, startable
from beltline.worker.settler import Settler
from beltline.worker.store import Backoff, Store, StoreStuck

log = logging.getLogger("beltline.worker")

TICK_S = 0.1
STALL_S = 1.0  # what is received ahead and finds no slot for so long goes back to the store
BURST_S = 0.2

OK, FAILED, USAGE, ENGINE = 0, 1, 2, 4  # exit codes; a forced stop says 128 + signal


class Supervisor:
    """One worker. `run` may be called once; `drain`, `stop_now` and `resize` from anywhere in its event loop, also twice.

    `app`: for runners in this process. `engine`: somebody else's open engine, used instead of one of our own and not closed. `free`: how the host's memory is read.
    """

    def __init__(
        self,
        config: WorkerConfig,
        *,
        app: App | None = None,
        engine: Engine | None = None,
        on_ready: Callable[[], None] | None = None,
        free: Callable[[], Memory] = memory,
    ) -> None:
        self.config = config
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self.events = Events()
        self.problem = ""
        """Why it ended, if not by a drain."""
        self._app = app
        self._given = engine
        self._on_ready = on_ready
        self._free = free
        self._policies: dict[str, TaskPolicy] = {}
        self._code = OK
        self._hello: asyncio.Future[Hello] | None = None
        self._ready = asyncio.Event()
        self._drain = asyncio.Event()
        self._at_once = asyncio.Event()
        self._has_store = self._serving = False
        self._forced = 0
        self._specs: list[QueueSpec] = []
        self._limits: list[Limit] = []
        self._plans: list[ChainPlan] = []
        self._new: Hello | None = None
        self._adopting = asyncio.Event()
        self._announcer = Announcer(lambda: self.store.engine)
        self._progress: Progress
        self.store: Store
        self.settler: Settler
        self.dealing: Dealing
        self.resizing: Resizing
        self.crew = Crew(config, self.id, self, app=app, explicit_url=config.url)
        self.heartbeat: Heartbeat | None = None

    # ---- from outside

    async def wait_ready(self) -> None:
        """Until a runner is ready and messages are being received, or the worker has ended."""
        await self._ready.wait()

    def drain(self) -> None:
        """The soft stop."""
        self._drain.set()
        if self._hello is not None:
            self._hello.cancel()  # nothing happens if it has come

    def stop_now(self, code: int = 143) -> None:
        """The hard stop: what runs is killed and released. `code` is what `run` will answer."""
        self._forced = self._forced or code
        self.drain()
        self._at_once.set()

    @property
    def draining(self) -> bool:
        return self._drain.is_set()

    def resize(self, queue: QueueName, slots: int) -> int:
        """Have so many slots for a queue that is served here. How many it will be: the host may allow fewer (`resizing.refusal()` says why)."""
        return self.resizing.resize(queue, slots)

    def reload(self) -> None:
        """Replace all runners by ones that load the code anew."""
        self.crew.replace_all()

    # ---- the life

    async def run(self) -> int:
        """The exit code."""
        self._hello = asyncio.get_running_loop().create_future()
        try:
            await self._live()
        except BaseException as error:  # noqa: BLE001  # told in words where it is ours, raised again where it is not (_fail)
            self._fail(_first(error))
        finally:
            self._ready.set()
            self.crew.open = False
            for child in tuple(self.crew.children):
                child.doomed = child.doomed or DRAINED
                child.kill()
                child.forget()
            self.crew.children.clear()
            if self._has_store:
                await self.store.close()  # does nothing if that has happened
        return self._forced or self._code

    def _fail(self, error: BaseException) -> None:
        if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
            raise error
        if isinstance(error, _Fatal):
            self.problem, self._code = str(error), USAGE
        elif isinstance(error, UsageError):
            self.problem, self._code = f"{error} [{error.code}]", USAGE
        elif isinstance(error, EngineError | StoreStuck):
            self.problem, self._code = str(error), ENGINE
        else:
            self.problem, self._code = f"{type(error).__name__}: {error}", FAILED
            log.critical("the worker has failed", exc_info=error)
            return
        log.critical("%s", self.problem)

    async def _live(self) -> None:
        assert self._hello is not None
        total = sum(least for least, _ in self.config.queues.values()) if self.config.queues else 10**6
        further = max(1, self.config.runner_count(total)) - 1
        self.crew.start(1)
        if further:
            self.crew.start(max(0, startable(self._free(), further)))
        if not await self._introduce():
            return
        self.settler = Settler(self.store, self.events, self._policies, on_room=self._on_room)
        self.dealing = Dealing(self.settler, self._policies, isolate=not self.config.in_process, give_up=self._give_up)
        self.dealing.crew = self.crew
        self._progress = Progress(self.store)
        self._serving = True
        intakes = self._serve(self._hello.result())
        deadlines = Deadlines(self.crew, self._policies, grace_s=self.config.grace_s)
        leases = Leases(self.store, self.dealing, self.crew, self.settler, deadlines, lease_s=self.config.lease_s)
        self.resizing = Resizing(self.config, self.crew, self.dealing, self.settler, free=self._free)
        self.heartbeat = Heartbeat(self.id, self.store, self.dealing, self.crew, self.resizing, self.settler, self._policies)
        self.resizing.begin()
        draining = Draining(self.config, self.dealing, self.crew, self.settler, at_once=self._at_once, give_up=self._give_up)
        async with asyncio.TaskGroup() as group:
            beside = [
                group.create_task(self.settler.run()),
                group.create_task(leases.renew_for_ever()),
                group.create_task(leases.watch_cancellations()),
                group.create_task(self.heartbeat.beat_for_ever()),
                group.create_task(self._tick_for_ever(deadlines)),
                group.create_task(self._progress.pass_on_for_ever()),
                group.create_task(self._announcer.run()),
            ]
            beside.append(group.create_task(SwitchWatch(lambda: self.store.engine, self._switched).run()))
            if self.config.sweep:
                beside.append(group.create_task(Scheduler(lambda: self.store.engine).run()))
                beside.append(group.create_task(Sweeper(lambda: self.store.engine).run()))
                beside.append(group.create_task(Retention(lambda: self.store.engine, history_s=self.config.history_s).run()))
            if self.resizing.ranges():
                from beltline.worker.scaling import Scaling

                scaling = Scaling(self.store, self.resizing, worker=self.id, plans=lambda: self._plans, dry_run=self.config.dry_run)
                beside.append(group.create_task(scaling.run()))
            if self.config.burst:
                beside.append(group.create_task(self._watch_burst(intakes)))
            receivers: list[asyncio.Task[None]] = []

            def receive(intake: Intake) -> None:
                receivers.append(group.create_task(Receiver(self.store, self.dealing, intake, worker=self.id, lease_s=self.config.lease_s).run()))

            for intake in intakes:
                receive(intake)
            beside.append(group.create_task(self._adopt_for_ever(receive)))
            if not self.crew.posts:
                self._report_ready()
            await self._drain.wait()
            if not await draining.run_dry(receivers):
                self._forced = self._forced or 143
            for task in beside:
                task.cancel()
        await self._farewell(draining)

    # ---- start

    async def _introduce(self) -> bool:
        """Hear what the app is, open the engine, declare. False when told to stop meanwhile."""
        assert self._hello is not None
        try:
            hello = await self._hello
        except asyncio.CancelledError:
            if self._drain.is_set():
                return False
            raise
        self.store = self._make_store(hello)
        self._has_store = True
        self._policies.update({policy.task: policy for policy in hello.policies})
        backoff = Backoff()
        while not self._drain.is_set():
            try:
                await self.store.open()
                await self.store.declare(hello.specs, hello.limits)
            except EngineUnavailable:
                await backoff.pause()
            else:
                return True
        return False

    def _make_store(self, hello: Hello) -> Store:
        if self._given is not None:
            return Store(self._given, None)
        from beltline.engines.registry import make_engine

        url = self.config.url or hello.url
        if url.startswith("memory:") and not self.config.in_process:
            raise UsageError(
                f"{url} lives in one process, but runners are processes of their own.", help="Use in-process runners (--in-process), or sqlite:///…."
            )
        durability, max_body = self.config.durability or hello.durability or None, self.config.max_body or hello.max_body

        def make() -> Engine:
            return make_engine(url, durability=durability, max_body=max_body)

        return Store(make(), make)

    async def _adopt_for_ever(self, receive: Callable[[Intake], None]) -> None:
        """New code may bring new queues: declare them, and serve them if the worker serves all. The runners that brought them begin afterwards."""
        while True:
            await self._adopting.wait()
            self._adopting.clear()
            assert self._new is not None
            backoff = Backoff()
            while (hello := self._new) is not None:
                try:
                    await self.store.declare(hello.specs, hello.limits)
                except EngineUnavailable:
                    await backoff.pause()
                    continue
                before = set(self.dealing.intakes)
                self._serve(hello)
                for name in self.dealing.intakes.keys() - before:
                    receive(self.dealing.intakes[name])
                self.resizing.begin()
                if self._new is hello:
                    self._new = None

    def _switched(self) -> list[QueueName]:
        """The queues with a kill switch that are served here."""
        return [spec.name for spec in self._specs if spec.kill_switch is not None and spec.name in self.dealing.intakes]

    def _serve(self, hello: Hello) -> list[Intake]:
        """The intakes of the queues this worker serves; those it has already stay as they are."""
        known = {spec.name for spec in hello.specs}
        chosen = {name: least for name, (least, _) in self.config.queues.items()} or dict.fromkeys(sorted(known), self.config.slots)
        strange = [name for name in chosen if name not in known]
        if strange:
            raise QueueNotDeclared(strange[0], known=tuple(sorted(known)))
        if not chosen:
            raise UsageError(f"The app {self.config.app!r} has no tasks.", help="Declare some with @app.task.")
        processes = {policy.task for policy in hello.policies if policy.kind == "process"} if not self.config.in_process else set()
        alone = {policy.queue for policy in hello.policies if policy.task in processes}
        alone |= {stage.queue for plan in hello.plans for stage in plan.stages if stage.task in processes}
        for name, slots in chosen.items():
            queue = QueueName(name)
            intake = self.dealing.intakes.setdefault(queue, Intake(queue, slots, processes=name in alone))
            intake.processes |= name in alone
        return list(self.dealing.intakes.values())

    # ---- what the crew tells

    def on_hello(self, child: Child, hello: Hello) -> bool:
        assert self._hello is not None
        self._plans = hello.plans
        self._announcer.announce(hello.owner, hello.schedules)
        if not self._hello.done():
            self._hello.set_result(hello)
            self._specs, self._limits = hello.specs, hello.limits
            return True
        self._policies.update({policy.task: policy for policy in hello.policies})
        if (hello.specs, hello.limits) == (self._specs, self._limits) and self._new is None:
            return True
        self._specs, self._limits, self._new = hello.specs, hello.limits, hello
        self._adopting.set()
        return False

    def on_ready(self, child: Child) -> None:
        self.dealing.join(child)
        self._report_ready()

    def on_share(self, child: Child) -> None:
        self.dealing.join(child)

    def _report_ready(self) -> None:
        """Once: messages are being received."""
        if not self._ready.is_set():
            self._ready.set()
            log.info("worker %s is ready: %s", self.id, ", ".join(f"{name}:{intake.slots}" for name, intake in self.dealing.intakes.items()))
            if self._on_ready is not None:
                self._on_ready()

    def on_work(self, child: Child, frame: ToSupervisor) -> None:
        match frame:
            case Done() | Written():
                self.dealing.on_done(child, frame)
            case Back(lane, serials):
                self.dealing.on_back(child, child.lanes[lane], serials)
            case Notes():
                self._progress.add(frame)
            case _:
                pass

    def on_retire(self, child: Child) -> None:
        if self._serving:
            self.dealing.leave(child)

    def on_death(self, child: Child, how: str) -> None:
        """Settle for a runner that is gone."""
        if not child.lanes:
            log.warning("%r is gone before it was ready: %s", child, how)
            return
        verdict = blame.judge(child)
        log.warning("%r is gone: %s; %d had started", child, how, child.held - len(verdict.unstarted))
        for delivery in verdict.suspects:
            self.dealing.suspect(delivery)
        for delivery, outcome in blame.endings(verdict, how, drained=child.doomed == DRAINED, policy=self._policy):
            self.settler.end(delivery, outcome)
        self.dealing.write_off(child, verdict.unstarted)

    def on_fatal(self, text: str) -> None:
        assert self._hello is not None
        self.crew.open = False
        error = _Fatal(text)
        if not self._hello.done():
            self._hello.set_exception(error)
        else:
            self._fail(error)
            self.drain()

    def _on_room(self) -> None:
        self.dealing.deal_all()

    def _policy(self, delivery: Delivery) -> TaskPolicy:
        return self._policies.get(delivery.message.task, NO_POLICY)

    def _give_up(self, deliveries: list[Delivery]) -> None:
        """Not started, not to be started here: back without an attempt."""
        for delivery in deliveries:
            self.settler.end(delivery, Release(why=DRAINED))

    # ---- beside

    async def _tick_for_ever(self, deadlines: Deadlines) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            now = monotonic()
            deadlines.check(now)
            self.resizing.tick(now)
            self.crew.tick(now, needed_lone=sum(intake.slots for intake in self.dealing.intakes.values() if intake.processes))
            if self.config.max_rss_bytes is not None:
                self.crew.check_memory(self.config.max_rss_bytes)
            if self.dealing.open:
                self._loosen(now)
                self.dealing.deal_all()  # a runner may have gone, a pause be over: what waits needs no event of its own

    def _loosen(self, now: float) -> None:
        """What was received ahead for fast tasks, and now waits behind slow ones, goes where somebody has a slot: another runner, another worker."""
        for intake in self.dealing.intakes.values():
            if intake.stalled(now, STALL_S):
                intake.slow_down()
                for delivery in intake.take(len(intake.ahead)):
                    self.settler.end(delivery, Release(why="received ahead, but the slots are busy"))
        for child in self.crew.children:
            quiet = child.stage is Stage.READY and now - max(child.idle_at, child.asked_back_at) > STALL_S
            waiting = (
                [lane.intake for lane in child.lanes if lane.intake is not None and len(lane.held) > max(lane.slots, lane.busy)] if quiet else []
            )
            for intake in waiting:
                intake.slow_down()
            if waiting:
                child.take_back()

    async def _watch_burst(self, intakes: list[Intake]) -> None:
        """Drain when the queues hold nothing that could be run now."""
        await self._ready.wait()
        while True:
            await asyncio.sleep(BURST_S)
            if any(intake.held for intake in intakes) or self.settler.waiting:
                continue
            try:
                counts = [await self.store.ask("counts", lambda engine, name=intake.queue: engine.counts(name)) for intake in intakes]  # type: ignore[misc]
            except EngineUnavailable:
                continue
            if not any((each.ready and not each.paused) or each.leased for each in counts) and not any(intake.held for intake in intakes):
                self.drain()
                return

    # ---- the end

    async def _farewell(self, draining: Draining) -> None:
        """Runners close their resources; the store is told goodbye."""
        await draining.see_off()
        try:
            if self.heartbeat is not None:
                await self.heartbeat.forget()
        except BeltlineError as error:
            log.warning("the store was not told goodbye: %s", error)
        await self.store.close()
        log.info("worker %s has stopped: %d settled, %d lost", self.id, self.settler.settled, self.settler.lost)


class _Fatal(Exception):
    """The worker cannot work at all; the text says why."""


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
