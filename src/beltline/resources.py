"""Lifespan and dependencies: things opened once per runner (a pool, a model, a client) and handed to the tasks that name them.

    @app.resource
    async def pool():
        async with connect() as connection:
            yield connection                      # everything after the yield runs when the runner stops

    @app.task
    async def resize(photo: Photo, pool=inject(pool)): ...

A resource is a function: plain, async, or a generator of either kind that yields once. It may name others with `inject`. Opened in order of need
before the first delivery, closed in the opposite order. A parameter with `inject` is no part of the message.
"""

import asyncio
import inspect
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

from beltline.core.errors import TaskInvalid


class Resource:
    """A declared resource. `always`: opened even if no task names it (a lifespan)."""

    def __init__(self, fn: Callable[..., Any], *, always: bool = False) -> None:
        self.fn = fn
        self.name = fn.__qualname__
        self.always = always
        self.needs = injected(fn)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"Resource({self.name})"


class Injected:
    """The default value of a parameter that a worker fills in."""

    __slots__ = ("resource",)

    def __init__(self, resource: Resource) -> None:
        self.resource = resource

    def __repr__(self) -> str:
        return f"inject({self.resource.name})"


def inject(resource: Any) -> Any:
    """As a parameter's default: the worker passes the opened resource. Called directly, the function needs the argument from you."""
    if not isinstance(resource, Resource):
        raise TaskInvalid(f"inject({resource!r}) needs a resource.", help="Declare it with @app.resource.")
    return Injected(resource)


def injected(fn: Callable[..., Any]) -> dict[str, Resource]:
    """Parameter name -> resource, of a function's injected parameters."""
    found = {}
    for name, parameter in inspect.signature(fn).parameters.items():
        if isinstance(parameter.default, Injected):
            found[name] = parameter.default.resource
    return found


class Resources:
    """What one runner has opened. open() and close() may be called twice."""

    def __init__(self, wanted: Iterable[Resource]) -> None:
        self._wanted = tuple(wanted)
        self._values: dict[Resource, Any] = {}
        self._stack: AsyncExitStack | None = None

    async def open(self) -> None:
        if self._stack is not None:
            return
        self._stack = AsyncExitStack()
        try:
            for resource in self._wanted:
                await self._open(resource, ())
        except BaseException:
            await self.close()
            raise

    async def _open(self, resource: Resource, path: tuple[Resource, ...]) -> Any:
        if resource in self._values:
            return self._values[resource]
        if resource in path:
            circle = " -> ".join(each.name for each in (*path, resource))
            raise TaskInvalid(f"Resources need each other in a circle: {circle}.", help="Take one of them out of the circle.")
        needs = {name: await self._open(need, (*path, resource)) for name, need in resource.needs.items()}
        assert self._stack is not None
        fn = resource.fn
        if inspect.isasyncgenfunction(fn):
            value = await self._stack.enter_async_context(asynccontextmanager(fn)(**needs))
        elif inspect.isgeneratorfunction(fn):
            value = self._stack.enter_context(contextmanager(fn)(**needs))
        else:
            value = fn(**needs)
            if asyncio.iscoroutine(value):
                value = await value
        self._values[resource] = value
        return value

    def values(self, needs: dict[str, Resource]) -> dict[str, Any]:
        """Parameter -> opened value, for one task."""
        return {name: self._values[resource] for name, resource in needs.items()}

    async def close(self) -> None:
        stack, self._stack = self._stack, None
        self._values.clear()
        if stack is not None:
            await stack.aclose()
