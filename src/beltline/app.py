"""The App: one place where tasks, chains, queues and resources are declared, and the door to one engine. No global app: make one, pass it on."""

import math
import threading
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import datetime
from typing import Any, ParamSpec, Self, TypeVar, cast, overload

from msgspec import structs

from beltline.chains import Chain, Line
from beltline.core import limits as checks  # `limits` is what users write
from beltline.core.chain import ChainPlan
from beltline.core.clock import Clock
from beltline.core.config import Config
from beltline.core.errors import ChainInvalid, HandleMisused, TaskInvalid, TaskUnknown, Unsupported, UsageError
from beltline.core.flow import KillSwitch, Limit, check_switch
from beltline.core.limits import Seconds
from beltline.core.names import QueueName, RunId, message_id, queue_name, task_name
from beltline.core.policy import TaskPolicy
from beltline.core.queues import AGEING_S, HIGH_WATER, Feed, QueueSpec
from beltline.core.rerun import rerun
from beltline.core.retry import Retry
from beltline.core.schedule import CATCH_UP_LIMIT
from beltline.core.views import MessageFilter
from beltline.engines.guests import keeps_others_out
from beltline.engines.protocol import Browse, Engine, Limits, Runs
from beltline.handles import Handle
from beltline.limiting import Debounce, Limited, Pick, Throttle, Unique, check_charges, limit_names, limits_of, make_limit
from beltline.origin import origin_of
from beltline.portal import Portal
from beltline.remote import Elsewhere, Remote
from beltline.resources import Resource, Resources
from beltline.schedules import S, ScheduleBook
from beltline.sending import Call, Sendable, asend_calls, new_id, send_calls
from beltline.tasks import AsyncTask, SyncTask, Task

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_QUEUE_NUMBERS = ("max_backlog", "high_water", "low_water", "ageing_s", "max_deliveries", "on_dead", "target_s", "limits", "kill_switch")


class App:
    """Declares tasks and chains and reaches one engine.

    `url`: sqlite:///beltline.db unless given here, or by BELTLINE_URL, beltline.toml or [tool.beltline], in this order; a command line's --url wins over all. `durability`: "disk" (default), "os", "memory".
    `max_body`: largest body in bytes (1 MiB). Nothing is opened before the first send or worker.
    """

    def __init__(self, url: str | None = None, *, durability: str | None = None, max_body: int | None = None, clock: Clock | None = None) -> None:
        self._given_url = url
        self._durability = durability
        self._clock = clock
        self._config: Config | None = None
        self._max_body = None if max_body is None else checks.integer("max_body", max_body, least=1, most=checks.MAX_BODY_CEILING)
        self.tasks: dict[str, Task[..., Any]] = {}
        self.chains: dict[str, Chain[..., Any]] = {}
        self.limits: dict[str, Limit] = {}
        self.schedules = ScheduleBook(self)
        self._queues: dict[QueueName, QueueSpec] = {}
        self._lifespans: list[Resource] = []
        self._portal = Portal()
        self._engine: Engine | None = None
        self._opened = False
        self._lock = threading.Lock()
        self.origin = origin_of(self)
        self.spec: str = ""
        """Where workers find this app ("module:attribute"); set by loading.load_app."""

    # -- declaring ---------------------------------------------------------------------------------------------------

    @overload
    def task(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]  # the first match wins

    @overload
    def task(self, fn: Callable[P, R], /) -> SyncTask[P, R]: ...

    @overload
    def task(
        self,
        fn: None = None,
        /,
        *,
        name: str | None = None,
        queue: str | None = None,
        retry: Retry | int | bool | None = None,
        timeout: Seconds = 600.0,
        priority: int = 0,
        unique: bool | Seconds = False,
        result_ttl: Seconds = 86400.0,
        kind: str | None = None,
        limits: "Sequence[str | Limit | Limited] | str | Limit | Limited" = (),
        tenant: Pick | None = None,
        sticky: Pick | None = None,
        unique_key: Pick | Unique | None = None,
        debounce: Debounce | None = None,
        throttle: Throttle | None = None,
    ) -> "Registrar": ...

    def task(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function. Bare (`@app.task`) or with options:

        name      how messages call it (module.function); rename the function freely, but keep this
        queue     where its messages wait (the function's own name)
        retry     Retry(attempts=5, base_s=1, cap_s=900) with full jitter by default; a number = attempts; False = none
        timeout   seconds or timedelta per attempt (10 min); a stuck one is cancelled, then its runner is killed
        priority  -100..100, larger first; unique: the same arguments within the window (True = 5 min) are one message
        result_ttl how long results are kept (1 day); kind: "async", "thread", or "process" (a runner of its own: hard to disturb, easy to kill)
        limits    what each start uses up: names of `app.limit`, or Limited("api", key="customer", cost=…); decided inside receive, so that what must wait holds no slot
        tenant    the parameter that says whose message it is (fair shares); sticky: the one whose value one worker keeps. Here and below a function will do, too
        unique_key the parameter by which one message stands for another, or Unique(…); debounce: (parameter, wait, most); throttle: (parameter, time)
        """
        if fn is None:
            return Registrar(self, options)
        return self._register(fn, options)

    def _register(self, fn: Callable[..., Any], options: dict[str, Any]) -> Task[..., Any]:
        import inspect

        kind = AsyncTask if inspect.iscoroutinefunction(fn) else SyncTask
        task: Task[..., Any] = kind(self, fn, **options)
        known = self.tasks.get(task.name)
        if known is not None and (known.fn.__code__.co_filename, known.fn.__qualname__) != (fn.__code__.co_filename, fn.__qualname__):
            raise TaskInvalid(f"Two tasks are called {task.name!r}.", help="Give one of them another name: @app.task(name='…').")
        self.tasks[task.name] = task
        self._opened = False
        return task

    def chain(
        self,
        name: str,
        line: "Line[P, R] | Task[P, R]",
        *,
        result_ttl: Seconds = 86400.0,
        high_water: float | None = None,
        within: Seconds | None = None,
    ) -> Chain[P, R]:
        """Declare `a >> b.each(…) >> c.gather()` under a name. Raises ChainInvalid where a joint does not fit.

        `high_water`: how many messages may wait before a stage until the stages before it receive no more (10,000).
        `within`: how soon an item should be through ("60s", seconds, timedelta): what the fleets of its stages are sized for where slots are a range.
        """
        chain: Chain[P, R] = Chain(self, name, cast("Line[P, R]", line), result_ttl=result_ttl, high_water=high_water, within=within)
        known = self.chains.get(chain.name)
        if known is not None and known.plan != chain.plan:
            raise ChainInvalid(f"Two chains are called {name!r}.", help="Give one of them another name.")
        self.chains[chain.name] = chain
        self._opened = False
        return chain

    def queue(
        self,
        name: str,
        *,
        max_backlog: float = math.inf,
        high_water: float | None = None,
        low_water: float | None = None,
        ageing: Seconds = AGEING_S,
        max_deliveries: int = 3,
        on_dead: str = "hold",
        target: Seconds | None = None,
        limits: "Sequence[str | Limit] | str | Limit" = (),
        kill_switch: KillSwitch | bool = False,
    ) -> QueueSpec:
        """Set a queue's numbers (see QueueSpec). Queues of tasks and stages exist without it.

        `target`: a message should not wait longer than this; what the fleet is sized for where slots are a range (10 s when nothing is said).
        `limits`: names of `app.limit` that every start in this queue uses up. `kill_switch`: the queue stops by itself when too much fails (True: the default rule).
        """
        if on_dead not in ("hold", "skip"):
            raise UsageError(f"on_dead = {on_dead!r} is unknown.", help="'hold' or 'skip'.")
        spec = QueueSpec(
            name=queue_name(name),
            max_backlog=_bound("max_backlog", max_backlog),
            high_water=math.inf if high_water is None else _bound("high_water", high_water),
            low_water=math.inf if low_water is None else _bound("low_water", low_water),
            ageing_s=checks.seconds("ageing", ageing),
            max_deliveries=checks.integer("max_deliveries", max_deliveries, least=1, most=1000),
            on_dead=on_dead,
            target_s=math.inf if target is None else checks.seconds("target", target, least=0.001),
            limits=limit_names(limits),
            kill_switch=check_switch(KillSwitch() if kill_switch is True else kill_switch) if kill_switch else None,
        )
        self._queues[spec.name] = spec
        self._opened = False
        return spec

    def limit(
        self, name: str, *, rate: float | str | None = None, per: Seconds = 1.0, burst: float | None = None, concurrency: float | None = None
    ) -> Limit:
        """Declare how many may start in a time, and how many may run, for each key: `rate=50, per="1s"` or `rate="50/s"`, `concurrency=4`.

        `burst`: how many at once (what the rate yields in 0.2 s, at least 1). With no number it bounds nothing until `beltline limit set` says so.
        Used by the tasks and queues that name it. Raises NameInvalid, ValueInvalid, UsageError (two with one name).
        """
        limit = make_limit(name, rate=rate, per=per, burst=burst, concurrency=concurrency)
        if self.limits.get(limit.name, limit) != limit:
            raise UsageError(f"Two limits are called {name!r}.", help="Give one of them another name.")
        self.limits[limit.name] = limit
        self._opened = False
        return limit

    def schedule(
        self,
        cron: str | None = None,
        *,
        every: Seconds | None = None,
        start: datetime | None = None,
        tz: str = "UTC",
        name: str | None = None,
        catch_up: str = "once",
        limit: int = CATCH_UP_LIMIT,
    ) -> Callable[[S], S]:
        """Send again and again: above `@app.task`, or in front of a chain or a bound call: `app.schedule("0 6 * * MON", tz=…)(report.call("weekly"))`.

        cron      five fields or @daily and its like, read in the time zone `tz`; at a change of the clock a time of day comes once (docs/howto/schedules.md)
        every     seconds or a timedelta, from 1 s: at the multiples since `start` (1970-01-01 UTC)
        name      the task's or chain's own; a second schedule of it needs one
        catch_up  after an outage: "once" (the newest missed one), "all" (the newest `limit` of them), "skip" (none that is more than a minute late)
        Workers of this app declare it to the store and send it. Raises ScheduleInvalid, InvalidArguments.
        """
        when = {"cron": cron, "every": every, "start": start, "tz": tz, "catch_up": catch_up, "catch_up_limit": limit}
        return lambda what: self.schedules.declare(what, name=name, **when)

    def resource(self, fn: Callable[..., Any]) -> Resource:
        """Something opened once per runner and given to tasks by `inject(…)`."""
        return Resource(fn)

    def lifespan(self, fn: Callable[..., Any]) -> Resource:
        """A resource that every runner opens at its start, whether or not a task names it."""
        resource = Resource(fn, always=True)
        self._lifespans.append(resource)
        return resource

    # -- what workers and engines are told ---------------------------------------------------------------------------

    @property
    def plans(self) -> dict[str, ChainPlan]:
        return {name: chain.plan for name, chain in self.chains.items()}

    def policies(self) -> list[TaskPolicy]:
        """One per task, with its queue's `max_deliveries`."""
        return [structs.replace(task.policy, max_deliveries=self._queue(task.queue).max_deliveries) for task in self.tasks.values()]

    def specs(self) -> list[QueueSpec]:
        """Every queue with its numbers and what it feeds."""
        specs = {task.queue: self._queue(task.queue) for task in self.tasks.values()}
        specs |= {name: self._queue(name) for name in self._queues}
        for chain in self.chains.values():
            for stage in chain.plan.stages:
                specs.setdefault(stage.queue, self._queue(stage.queue))
        for chain in self.chains.values():
            for stage in chain.plan.stages:
                feeds = chain.plan.feeds(stage)
                specs[stage.queue] = structs.replace(specs[stage.queue], feeds=_merge(specs[stage.queue].feeds, feeds))
                for feed in feeds:
                    if specs[feed.queue].high_water == math.inf:
                        specs[feed.queue] = structs.replace(specs[feed.queue], high_water=chain.high_water or HIGH_WATER)
        return list(specs.values())

    def _queue(self, name: QueueName) -> QueueSpec:
        """What the code says, with what the configuration says laid over it."""
        spec = self._queues.get(name) or QueueSpec(name=name)
        settings = self.config.queues.get(name)
        if settings is None:
            return spec
        said = {field: getattr(settings, field) for field in _QUEUE_NUMBERS if getattr(settings, field) is not None}
        if said.get("kill_switch") is False:
            said["kill_switch"] = None
        return structs.replace(spec, **said)

    def resources(self) -> Resources:
        """Everything a runner opens for the tasks of this app; a new set at every call."""
        wanted = dict.fromkeys(self._lifespans)
        for task in self.tasks.values():
            wanted.update(dict.fromkeys(task.signature.needs.values()))
        return Resources(wanted)

    def check(self) -> None:
        """Resolve every annotation and compile every reader now. Raises TaskInvalid, UsageError. Workers do this at their start."""
        for task in self.tasks.values():
            _ = task.signature
        self._check_limits(self.specs())
        self.schedules.specs()

    def _check_limits(self, specs: list[QueueSpec]) -> None:
        """A limit that is named and nowhere declared would bound nothing, and nobody would notice. Raises UsageError, TaskInvalid (one that is charged twice)."""
        named = {f"Queue {spec.name!r}": spec.limits for spec in specs}
        named |= {f"Task {task.name}": tuple(each.name for each in task.rules.limited) for task in self.tasks.values() if task.rules is not None}
        for who, names in named.items():
            for name in names:
                if name not in self.limits:
                    why = f"Declared: {', '.join(sorted(self.limits)) or 'none'}."
                    raise UsageError(
                        f"{who} names the limit {name!r}, which this app does not declare.", why=why, help=f"app.limit({name!r}, rate=…)"
                    )
        of_queue = {spec.name: spec.limits for spec in specs}
        for task in self.tasks.values():
            check_charges(task.name, task.rules, f"its queue {task.queue!r}", of_queue[task.queue])
        for chain in self.chains.values():
            for stage in chain.plan.stages:
                where = f"the queue {stage.queue!r} of its stage in chain {chain.name!r}"
                of_stage = self.tasks.get(stage.task)  # of another app, perhaps
                check_charges(stage.task, None if of_stage is None else of_stage.rules, where, of_queue[stage.queue])

    # -- the engine --------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Given in code or by a flag, else configured, else sqlite:///beltline.db."""
        return self._given_url if self._given_url is not None else self.config.url

    @property
    def config(self) -> Config:
        """The configuration, read once, at the first use. Raises ConfigInvalid."""
        if self._config is None:
            from beltline.config import load

            self._config = load()
        return self._config

    @property
    def max_body(self) -> int:
        """Largest body in bytes."""
        if self._max_body is None:
            self._max_body = self.config.max_body
        return self._max_body

    @property
    def engine(self) -> Engine:
        """The engine, made but perhaps not yet open: `await app.ready()` opens it."""
        if self._engine is None:
            from beltline.engines.registry import make_engine

            with self._lock:
                if self._engine is None:
                    configured = self.config.durability.name.lower() if "durability" in self.config.origins else None
                    durability = self._durability or configured
                    self._engine = make_engine(self.url, durability=durability, max_body=self.max_body, clock=self._clock)
        return self._engine

    def use_url(self, url: str, *, durability: str | None = None) -> None:
        """Another engine than the code says (a command-line flag does this). Only before the first use. Raises UsageError after it."""
        if self._engine is not None and url != self._given_url:
            raise UsageError("The engine is in use already.", help="Choose the URL before the first send.")
        self._given_url = url
        self._durability = durability or self._durability

    async def ready(self, connection: object | None = None) -> Engine:
        """The open engine with all queues declared. Cheap after the first call.

        `connection`: one of the caller's, in whose open transaction something is to be written. Raises HandleMisused where declaring would wait for its end.
        """
        engine = self.engine
        if not self._opened:
            specs = self.specs()
            self._check_limits(specs)
            await engine.open()
            if not (keeps_others_out(connection) and await self._declared(engine)):
                if self.limits:  # before the queues that name them: a limit nobody has declared bounds nothing
                    await limits_of(engine).declare_limits(list(self.limits.values()))
                await engine.declare(specs)
            self._opened = True
        return engine

    async def _declared(self, engine: Engine) -> bool:
        """For a caller who keeps everybody else from writing. Raises HandleMisused."""
        known = {spec.name: spec for spec in await engine.queues()} if isinstance(engine, Browse) else {}
        bounded = {view.name for view in await engine.limits()} if self.limits and isinstance(engine, Limits) else set()
        if all(known.get(spec.name) == spec for spec in self.specs()) and bounded >= self.limits.keys():
            return True
        raise HandleMisused(
            "The queues or limits of this app are not declared yet, and your open transaction keeps everybody else from writing.",
            help="Open the app before the transaction begins: `with app:` or `await app.ready()`.",
        )

    def blocking(self, work: Coroutine[Any, Any, T]) -> T:
        """Run an asynchronous operation of this app from synchronous code."""
        return self._portal.run(work)

    async def aclose(self) -> None:
        """Close the engine. The app can be used again afterwards; safe to call twice."""
        engine, self._engine, self._opened = self._engine, None, False
        if engine is not None:
            await engine.close()

    def close(self) -> None:
        if self._engine is not None:
            self._portal.run(self.aclose())
        self._portal.stop()

    async def __aenter__(self) -> Self:
        await self.ready()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __enter__(self) -> Self:
        self._portal.run(self.ready())
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- by name and id ----------------------------------------------------------------------------------------------

    def by_name(self, name: str, *, queue: str | None = None) -> "Sendable[..., Any]":
        """Something to send to without its code: a task or chain of this app by (short) name, or any task of that name a worker elsewhere knows.

        `queue`: another than the task's own (a chain's first stage keeps its own). For a task that is not registered here it is the last dotted part of the
        name unless given, some app must have declared it, and arguments are checked by the worker only.
        """
        found = self.find(name)
        if found is None:
            task = task_name(name)
            return Remote(self, task, queue_name(queue or task.rpartition(".")[2]))
        return found if queue is None or isinstance(found, Chain) else Elsewhere(found, queue_name(queue))

    def find(self, name: str) -> "Task[..., Any] | Chain[..., Any] | None":
        """A chain or task by its name, or by the short name of a task where only one has it."""
        if name in self.chains:
            return self.chains[name]
        if name in self.tasks:
            return self.tasks[name]
        short = [task for task in self.tasks.values() if task.short_name == name]
        if len(short) > 1:
            raise TaskUnknown(name, known=tuple(task.name for task in short), help="Several tasks end so: give the whole name.")
        return short[0] if short else None

    async def arerun(self, run: str, *, stage: str = "") -> Handle[Any]:
        """Run an item again, in a new run, from what entered `stage` in the old one ("" = from the start). Raises NotFound, TaskUnknown (the chain), Unsupported."""
        engine = await self.ready()
        if not isinstance(engine, Runs) or not isinstance(engine, Browse):
            raise Unsupported(feature="rerun", need=1, have=0, engine=engine.name)
        old = await engine.run(RunId(message_id(run)))
        chain = self.chains.get(old.chain)
        if chain is None:
            raise TaskUnknown(old.chain, known=tuple(self.chains), help="Rerunning needs the chain's code: name the app that declares it.")
        entered, cursor = [], ""
        while True:
            page = await engine.browse(MessageFilter(run=old.id), limit=1000, cursor=cursor)
            entered += [view.message for view in page.messages]
            cursor = page.cursor
            if not cursor:
                break
        again = RunId(new_id())
        messages, gathers = rerun(chain.plan, stage or chain.plan.stages[0].name, entered, again)
        await engine.send(messages, gathers=gathers)
        return Handle(self, again, chain.read_result)

    def rerun(self, run: str, *, stage: str = "") -> Handle[Any]:
        """`arerun` for synchronous code."""
        return self.blocking(self.arerun(run, stage=stage))

    def send_many(self, calls: Iterable[Call[Any]], *, connection: object | None = None) -> list[Handle[Any]]:
        """Calls of any tasks and chains of this app, all or none, in one write, in the order given. `connection`: in that one's transaction."""
        return send_calls(self, list(calls), connection)

    async def asend_many(self, calls: Iterable[Call[Any]], *, connection: object | None = None) -> list[Handle[Any]]:
        """`send_many` for asynchronous code."""
        return await asend_calls(self, list(calls), connection)

    def handle(self, id: str) -> Handle[Any]:
        """A handle for any message or run id. Whether it exists shows when it is asked."""
        return Handle(self, message_id(id))


class Registrar:
    """`@app.task(…)` with its options, waiting for the function."""

    def __init__(self, app: App, options: dict[str, Any]) -> None:
        self._app = app
        self._options = options

    @overload
    def __call__(self, fn: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...  # type: ignore[overload-overlap]  # the first match wins

    @overload
    def __call__(self, fn: Callable[P, R], /) -> SyncTask[P, R]: ...

    def __call__(self, fn: Callable[..., Any], /) -> Any:
        return self._app._register(fn, self._options)


def _bound(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
        raise UsageError(f"{name} = {value!r} is not allowed.", why="Allowed: a number from 1, or math.inf for no bound.")
    return float(value)


def _merge(one: tuple[Feed, ...], other: tuple[Feed, ...]) -> tuple[Feed, ...]:
    widest: dict[QueueName, int] = {}
    for feed in (*one, *other):
        widest[feed.queue] = max(widest.get(feed.queue, 1), feed.fan_out)
    return tuple(Feed(queue, fan_out) for queue, fan_out in widest.items())
