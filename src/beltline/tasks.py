"""A task: a registered function with its queue and policy. It stays callable as the function it was."""

import hashlib
import inspect
from collections.abc import Callable, Coroutine, Sequence
from functools import update_wrapper
from typing import Any, ParamSpec, Protocol, TypeVar, cast

from msgspec import structs

from beltline.chains import Joint, Stage
from beltline.core import limits as checks  # `limits` is what users write
from beltline.core.errors import BodyTooLarge, InvalidArguments, TaskInvalid
from beltline.core.flow import Limit
from beltline.core.limits import Seconds
from beltline.core.message import Message
from beltline.core.names import QueueName, TaskName, queue_name, task_name
from beltline.core.policy import TaskPolicy
from beltline.core.retry import Retry, as_retry
from beltline.handles import Host
from beltline.limiting import Debounce, FlowRules, Limited, Pick, Throttle, Unique
from beltline.resources import Injected
from beltline.sending import DEFAULTS, Options, Sendable, Target, new_id
from beltline.signature import Signature

P = ParamSpec("P")
R = TypeVar("R")

KINDS = ("async", "thread", "process")
DEFAULT_TIMEOUT_S = 600.0
DEFAULT_RESULT_TTL_S = 86400.0


class TaskHost(Host, Protocol):
    """What a task needs of its App."""

    @property
    def max_body(self) -> int: ...


class Task(Sendable[P, R], Joint[P, R]):
    """Made by `@app.task`; see there for the options."""

    fn: Callable[..., Any]

    def __init__(
        self,
        app: TaskHost,
        fn: Callable[..., Any],
        *,
        name: str | None = None,
        queue: str | None = None,
        retry: Retry | int | bool | None = None,
        timeout: Seconds = DEFAULT_TIMEOUT_S,
        priority: int = 0,
        unique: bool | Seconds = False,
        result_ttl: Seconds = DEFAULT_RESULT_TTL_S,
        kind: str | None = None,
        limits: "Sequence[str | Limit | Limited] | str | Limit | Limited" = (),
        tenant: Pick | None = None,
        sticky: Pick | None = None,
        unique_key: Pick | Unique | None = None,
        debounce: Debounce | None = None,
        throttle: Throttle | None = None,
    ) -> None:
        if not callable(fn) or inspect.isclass(fn):
            raise TaskInvalid(f"{fn!r} is not a function.", help="Put @app.task on a def or an async def.")
        if inspect.isgeneratorfunction(fn) or inspect.isasyncgenfunction(fn):
            raise TaskInvalid(f"Task {fn.__qualname__} is a generator.", help="Return a list, or split the work with a chain: a >> b.each().")
        self._app = app
        self.fn = fn
        self.name: TaskName = task_name(name or default_name(fn))
        self.short_name = self.name.rpartition(".")[2]
        self.queue: QueueName = queue_name(queue or self.short_name)
        self.is_async = inspect.iscoroutinefunction(fn)
        self.kind = _kind(self.name, kind, self.is_async)
        self.priority = checks.priority(priority)
        self.unique_s = 0.0 if unique is False else 300.0 if unique is True else checks.seconds("unique", unique, most=checks.MAX_DEDUP_WINDOW_S)
        self._signature: Signature | None = None
        self._retry = as_retry(retry)
        self._timeout_s = checks.seconds("timeout", timeout, least=0.001, most=checks.MAX_LEASE_S)
        self._result_ttl_s = checks.seconds("result_ttl", result_ttl, most=checks.MAX_DELAY_S)
        if unique is not False and throttle is not None:
            raise TaskInvalid(f"Task {self.name} is unique and throttled.", why="Both drop a message within a time after another.", help="Use one.")
        flowing = (limits, tenant, sticky, unique_key, debounce, throttle) != ((), None, None, None, None, None)
        self.rules: FlowRules | None = None
        if flowing:
            self.rules = FlowRules(
                self.name, fn, limited=limits, tenant=tenant, sticky=sticky, unique_key=unique_key, debounce=debounce, throttle=throttle
            )
        update_wrapper(cast(Any, self), fn)

    def __repr__(self) -> str:
        return f"<task {self.name} on queue {self.queue}>"

    @property
    def app(self) -> TaskHost:
        return self._app

    def _target(self) -> Target:
        return self

    @property
    def signature(self) -> Signature:
        """Made at the first use, when all annotations can be resolved. Raises TaskInvalid."""
        if self._signature is None:
            self._signature = Signature(self.name, self.fn)
        return self._signature

    @property
    def policy(self) -> TaskPolicy:
        """What workers must know, as data."""
        return TaskPolicy(
            task=self.name, queue=self.queue, retry=self._retry, timeout_s=self._timeout_s, result_ttl_s=self._result_ttl_s, kind=self.kind
        )

    def _direct(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        missing = [name for name in self.signature.needs if name not in kwargs]
        result = self.fn(*args, **kwargs)
        if missing and isinstance(result, Injected):
            raise TaskInvalid(f"{self.name} was called directly without {missing[0]}.", help=f"Pass it: {missing[0]}=…; only a worker fills it in.")
        return result

    def takes(self, name: str) -> bool:
        return self.signature.takes(name)

    def message(self, args: tuple[Any, ...], kwargs: dict[str, Any], chosen: Options) -> Message:
        """Hop 1: this call as a message. Raises InvalidArguments, BodyTooLarge."""
        try:
            body = self.signature.pack(args, kwargs)
        except InvalidArguments as error:  # the worker finds misfits too, and there this would not be true
            error.help = "Nothing was sent."
            raise
        if len(body) > self._app.max_body:
            raise BodyTooLarge(size_bytes=len(body), limit_bytes=self._app.max_body)
        if self.rules is not None:
            chosen = structs.replace(chosen, flow=self.rules.options(chosen.flow, args, kwargs))
        elif chosen is DEFAULTS and not self.unique_s:
            return Message(id=new_id(), queue=self.queue, task=self.name, body=body, priority=self.priority)
        return build_message(self.name, self.queue, body, chosen, priority=self.priority, unique_s=self.unique_s)

    def read(self, body: bytes) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Hop 6: positional and named arguments. Raises InvalidArguments."""
        return self.signature.read(body)

    def pack_result(self, value: Any) -> bytes:
        return self.signature.pack_result(value)

    def read_result(self, data: bytes) -> Any:
        return self.signature.read_result(data)

    # The joints of a chain: `a >> b`, `a >> b.each(width=[…])`, `… >> c.gather()`.

    def stage(
        self, *, name: str | None = None, queue: str | None = None, retry: Retry | int | bool | None = None, timeout: Seconds | None = None
    ) -> Stage[P, R]:
        """This task as a stage with its own name, queue or policy: needed when a chain uses a task twice."""
        return Stage(self, name=name, queue=queue, retry=retry, timeout=timeout)

    def as_stage(self) -> Stage[P, R]:
        return self.stage()


class SyncTask(Task[P, R]):
    """A task from a plain `def`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self._direct(args, kwargs)
        return result


class AsyncTask(Task[P, R]):
    """A task from an `async def`."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        result: Coroutine[Any, Any, R] = self._direct(args, kwargs)
        return result


def build_message(task: TaskName, queue: QueueName, body: bytes, chosen: Options, *, priority: int = 0, unique_s: float = 0.0) -> Message:
    """A message from a body and options."""
    dedup_key, window_s = chosen.dedup_key, chosen.dedup_window_s
    flow = chosen.flow
    if dedup_key is None and flow.throttle is not None:
        dedup_key, window_s = flow.throttle
    if dedup_key is None and unique_s:
        dedup_key = f"unique:{task}:{hashlib.blake2b(body, digest_size=16).hexdigest()}"
        window_s = unique_s if window_s is None else window_s
    return Message(
        id=chosen.id or new_id(),
        queue=queue,
        task=task,
        body=body,
        headers=chosen.headers,
        priority=priority if chosen.priority is None else chosen.priority,
        delay_s=chosen.delay_s or flow.delay_s,
        ready_at=chosen.ready_at,
        group=flow.group if chosen.group is None else chosen.group,
        dedup_key=dedup_key,
        dedup_window_s=300.0 if window_s is None else window_s,
        expires_s=chosen.expires_s,
        timeout_s=chosen.timeout_s,
        retry=chosen.retry,
        flow=flow.flow(),
    )


def default_name(fn: Callable[..., Any]) -> str:
    """`module.function`; of a script run as __main__, the file's own name stands for the module, so that workers find the same one."""
    module = fn.__module__
    if module == "__main__":
        import sys

        path = getattr(sys.modules["__main__"], "__file__", None) or ""
        file = path.replace("\\", "/").rpartition("/")[2]
        module = file.removesuffix(".py") if file.endswith(".py") else "main"  # <stdin>, a notebook
    return f"{module}.{fn.__qualname__.replace('.<locals>', '')}"[-80:].lstrip("._-")


def _kind(name: str, kind: str | None, is_async: bool) -> str:
    if kind is None:
        return "async" if is_async else "thread"
    if kind not in KINDS:
        raise TaskInvalid(f"Task {name}: kind {kind!r} is unknown.", help=f"One of {', '.join(KINDS)}.")
    if is_async != (kind == "async") and kind != "process":
        raise TaskInvalid(
            f"Task {name}: kind {kind!r} does not fit {'an async def' if is_async else 'a plain def'}.", help="Leave kind out, or use 'process'."
        )
    return kind
