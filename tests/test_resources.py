"""Resources: opened once per runner in order of need, closed in the opposite order, whatever kind of function they are."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from beltline import App, inject
from beltline.core.errors import TaskInvalid


async def test_resources_open_in_order_of_need_and_close_in_the_opposite_order() -> None:
    app, seen = App("memory://x"), []

    @app.resource
    async def settings() -> str:
        return "dsn"

    @app.resource
    async def pool(settings: str = inject(settings)) -> AsyncIterator[str]:
        seen.append(f"open pool({settings})")
        yield "pool"
        seen.append("close pool")

    @app.resource
    def session(pool: str = inject(pool)) -> Iterator[str]:
        seen.append(f"open session({pool})")
        yield "session"
        seen.append("close session")

    @app.resource
    def unused() -> str:
        seen.append("never")
        return ""

    @app.lifespan
    def warm() -> None:
        seen.append("warm")

    @app.task
    def work(number: int, session: str = inject(session)) -> None: ...

    resources = app.resources()
    await resources.open()
    await resources.open()
    assert resources.values(work.signature.needs) == {"session": "session"}
    await resources.close()
    await resources.close()
    assert seen == ["warm", "open pool(dsn)", "open session(pool)", "close session", "close pool"]


async def test_a_resource_that_fails_to_open_closes_the_ones_before_it() -> None:
    app, seen = App("memory://x"), []

    @app.resource
    def first() -> Iterator[int]:
        yield 1
        seen.append("closed")

    @app.resource
    def second(first: int = inject(first)) -> int:
        raise OSError("no such host")

    @app.task
    def work(second: int = inject(second)) -> None: ...

    with pytest.raises(OSError, match="no such host"):
        await app.resources().open()
    assert seen == ["closed"]


async def test_a_circle_of_resources_is_told() -> None:
    app = App("memory://x")

    @app.resource
    def one() -> int:
        return 1

    one.needs = {"one": one}

    @app.task
    def work(one: int = inject(one)) -> None: ...

    with pytest.raises(TaskInvalid, match=r"one -> .*one"):
        await app.resources().open()


def test_inject_takes_resources_only() -> None:
    with pytest.raises(TaskInvalid, match="needs a resource"):
        inject(print)


def test_a_task_with_an_injected_parameter_stays_callable_when_it_is_given() -> None:
    app = App("memory://x")

    @app.resource
    def pool() -> str:
        return "pool"

    @app.task
    def work(number: int, pool: Any = inject(pool)) -> str:
        return f"{number} {pool}"

    assert work(1, pool="mine") == "1 mine"
