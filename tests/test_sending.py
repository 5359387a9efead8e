"""Sending and handles on the memory engine: both faces, one and many, options, and ids that were never sent."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from beltline import App, BeltlineError, InvalidArguments, NotFound, ResultTimeout, TaskFailed
from beltline.core.errors import BodyTooLarge, NameInvalid, TaskInvalid, TaskUnknown, UrlInvalid, ValueInvalid
from beltline.core.message import Delivery
from beltline.core.outcome import Ack, Cause, DeadLetter, Ended, Failure, Settlement
from beltline.core.views import MessageView
from beltline.engines.protocol import Browse
from beltline.tasks import Task


@pytest.fixture
def app() -> Any:
    app = App("memory://")
    yield app
    app.close()


@pytest.fixture
def double(app: App) -> Task[[int], int]:
    @app.task
    def double(number: int) -> int:
        return 2 * number

    return double


def receive(app: App, queue: str, limit: int = 100) -> list[Delivery]:
    async def go() -> list[Delivery]:
        engine = await app.ready()
        return await engine.receive([queue], limit=limit, lease_s=30, wait_s=0)  # type: ignore[list-item]

    return app.blocking(go())


def settle(app: App, delivery: Delivery, outcome: Any) -> None:
    async def go() -> None:
        await (await app.ready()).settle([Settlement(delivery.receipt, outcome)])

    app.blocking(go())


def view(app: App, id: str) -> MessageView:
    async def go() -> MessageView:
        engine = await app.ready()
        assert isinstance(engine, Browse)
        return await engine.get(id)  # type: ignore[arg-type]

    return app.blocking(go())


def test_a_task_stays_callable_as_the_function_it_was(double: Task[[int], int]) -> None:
    assert double(4) == 8  # type: ignore[operator]
    assert double.__name__ == "double"


def test_what_is_sent_can_be_received_and_its_result_awaited(app: App, double: Task[[int], int]) -> None:
    handle = double.send(4)
    [delivery] = receive(app, "double")
    assert double.read(delivery.message.body) == ((4,), {})
    assert handle.status() == "leased"
    settle(app, delivery, Ack(result=double.pack_result(8)))
    assert handle.result(timeout=1) == 8
    assert handle.status() == "done"


async def test_the_asynchronous_face_does_the_same(app: App, double: Task[[int], int]) -> None:
    handle = await double.asend(4)
    assert await handle.astatus() == "ready"
    with pytest.raises(ResultTimeout):
        await handle.aresult(timeout=0)
    many = await double.asend_many(double.call(n) for n in range(3))
    assert len({each.id for each in many}) == 3
    engine = await app.ready()
    deliveries = await engine.receive([double.queue], limit=9, lease_s=30, wait_s=0)
    assert [double.read(d.message.body)[0][0] for d in deliveries] == [4, 0, 1, 2]


async def test_a_result_that_comes_later_wakes_the_one_who_waits(app: App, double: Task[[int], int]) -> None:
    handle = await double.asend(4)
    waiting = asyncio.ensure_future(handle.aresult(timeout=10))  # noqa: TID251 - awaited below
    engine = await app.ready()
    [delivery] = await engine.receive([double.queue], limit=1, lease_s=30, wait_s=0)
    await engine.settle([Settlement(delivery.receipt, Ack(result=double.pack_result(8)))])
    assert await waiting == 8


def test_a_blocking_send_works_inside_a_running_loop(app: App, double: Task[[int], int]) -> None:
    async def notebook() -> str:
        return double.send(1).status()

    assert asyncio.run(notebook()) == "ready"


def test_a_dead_message_tells_the_remote_failure_as_text(app: App, double: Task[[int], int]) -> None:
    handle = double.send(4)
    [delivery] = receive(app, "double")
    settle(app, delivery, DeadLetter(reason="failed after 1 attempt", failure=Failure(Cause.ERROR, "builtins.OSError", "disk gone", "Traceback…")))
    with pytest.raises(TaskFailed) as caught:
        handle.result(timeout=1)
    assert (caught.value.outcome, caught.value.type, caught.value.text, caught.value.traceback) == (
        "dead",
        "builtins.OSError",
        "disk gone",
        "Traceback…",
    )


def test_a_cancelled_message_says_so(app: App, double: Task[[int], int]) -> None:
    handle = double.send(4)
    assert handle.cancel(reason="no longer wanted") == "cancelled"
    with pytest.raises(TaskFailed, match="cancelled"):
        handle.result(timeout=1)


def test_cancelling_a_running_one_asks_its_worker(app: App, double: Task[[int], int]) -> None:
    handle = double.send(4)
    [delivery] = receive(app, "double")
    assert handle.cancel() == "leased"
    settle(app, delivery, Ack(ended=Ended.CANCELLED))
    assert handle.status() == "cancelled"


def test_an_id_that_was_never_sent_is_not_found_and_never_pending(app: App) -> None:
    handle = app.handle("0199aaaaaaaa7bbb8ccccccccccccccc")
    for ask in (handle.status, handle.progress, handle.result, handle.cancel, handle.view):
        with pytest.raises(NotFound):
            ask()


def test_the_same_id_twice_is_one_message(app: App, double: Task[[int], int]) -> None:
    mine = "0199aaaa-aaaa-7bbb-8ccc-cccccccccccc"
    first, second = double.with_options(id=mine).send(1), double.with_options(id=mine).send(1)
    assert first.id == second.id == mine.replace("-", "")
    assert (first.new, second.new) == (True, False)
    assert len(receive(app, "double")) == 1


def test_unique_tasks_meet_the_message_that_is_there(app: App) -> None:
    @app.task(unique=60)
    def mail(to: str) -> None: ...

    first, same, other = mail.send("ann"), mail.send("ann"), mail.send("bob")
    assert same.id == first.id
    assert not same.new
    assert other.id != first.id


def test_options_reach_the_message(app: App, double: Task[[int], int]) -> None:
    sent = double.with_options(priority=5, group="g", headers={"trace": "1"}, expires=60, timeout=3, retry=2).with_options(delay=10).send(1)
    message = view(app, sent.id).message
    assert (message.priority, message.group, message.headers, message.timeout_s) == (5, "g", {"trace": "1"}, 3.0)
    assert message.retry is not None
    assert message.retry.attempts == 2
    assert sent.status() == "delayed"
    later = double.with_options(at=datetime(2100, 1, 1, tzinfo=UTC)).send(1)
    assert later.status() == "delayed"


BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"delay": -1}, "delay"),
    ({"delay": float("nan")}, "delay"),
    ({"delay": True}, "delay"),
    ({"delay": "5"}, "delay"),
    ({"at": datetime(2100, 1, 1)}, "at"),  # noqa: DTZ001 - naive on purpose
    ({"priority": 101}, "priority"),
    ({"priority": 1.5}, "priority"),
    ({"group": ""}, "group"),
    ({"group": "a\x00b"}, "group"),
    ({"group": "\ud800"}, "group"),
    ({"dedup_key": "x" * 257}, "dedup_key"),
    ({"dedup_window": 10**9}, "dedup_window"),
    ({"headers": {"a": 1}}, "headers"),
    ({"headers": {"a": "x" * 20_000}}, "headers"),
    ({"expires": -1}, "expires"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": float("inf")}, "timeout"),
    ({"retry": 0}, "attempts"),
]


@pytest.mark.parametrize(("given", "name"), BAD_OPTIONS, ids=[str(given)[:40] for given, _ in BAD_OPTIONS])
def test_an_option_out_of_its_range_is_told_by_name(double: Task[[int], int], given: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueInvalid) as caught:
        double.with_options(**given)
    assert caught.value.name == name


def test_an_id_that_is_none_is_told(double: Task[[int], int]) -> None:
    with pytest.raises(NameInvalid):
        double.with_options(id="my-order-17")


def test_a_body_over_the_limit_is_refused_before_anything_is_stored() -> None:
    app = App("memory://", max_body=100)

    @app.task
    def take(text: str) -> None: ...

    with pytest.raises(BodyTooLarge) as caught:
        take.send("x" * 200)
    assert caught.value.limit_bytes == 100
    take.send("x" * 50)
    assert len(receive(app, "take")) == 1
    app.close()


def test_sending_by_name_needs_no_code(app: App) -> None:
    async def declare() -> None:
        from beltline.core.queues import QueueSpec

        await (await app.ready()).declare([QueueSpec(name="resize")])  # type: ignore[arg-type]

    app.blocking(declare())
    handle = app.by_name("elsewhere.resize").send("a.jpg", width=3)
    [delivery] = receive(app, "resize")
    assert delivery.message.task == "elsewhere.resize"
    assert delivery.message.id == handle.id


def test_another_queue_by_name_keeps_the_check_of_the_arguments(app: App, double: Task[[int], int]) -> None:
    app.queue("fast")
    app.by_name("double", queue="fast").send(3)
    [delivery] = receive(app, "fast")
    assert double.read(delivery.message.body) == ((3,), {})
    with pytest.raises(InvalidArguments):
        app.by_name("double", queue="fast").send("three")


def test_a_short_name_finds_the_task_and_an_ambiguous_one_says_so(app: App, double: Task[[int], int]) -> None:
    assert app.find("double") is double
    app.task(lambda_named("a.same"), name="a.same")
    app.task(lambda_named("b.same"), name="b.same")
    with pytest.raises(TaskUnknown, match="whole name"):
        app.find("same")


def lambda_named(name: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(f"def {name.replace('.', '_')}() -> None: ...", namespace)
    return namespace[name.replace(".", "_")]


@pytest.mark.parametrize(
    ("declare", "match"),
    [
        (lambda app: app.task(name="has space")(lambda_named("x")), "not a valid task name"),
        (lambda app: app.task(name="x" * 81)(lambda_named("x")), "not a valid task name"),
        (lambda app: app.task(queue="a/b")(lambda_named("x")), "not a valid queue name"),
        (lambda app: app.task(queue="a\x00b")(lambda_named("x")), "not a valid queue name"),
        (lambda app: app.task(kind="fork")(lambda_named("x")), "kind 'fork' is unknown"),
        (lambda app: app.task(kind="async")(lambda_named("x")), "does not fit"),
        (lambda app: app.task(int), "is not a function"),
        (lambda app: app.task(generator), "is a generator"),
        (lambda app: app.task(timeout=0)(lambda_named("x")), "timeout"),
        (lambda app: app.queue("q", max_backlog=0), "max_backlog"),
        (lambda app: app.queue("q", on_dead="x"), "on_dead"),
    ],
    ids=[f"declaration {number}" for number in range(11)],
)
def test_a_declaration_that_cannot_work_is_refused(app: App, declare: Any, match: str) -> None:
    with pytest.raises(BeltlineError, match=match):
        declare(app)


def generator() -> Any:
    yield 1


def test_two_functions_cannot_share_a_task_name(app: App, double: Task[[int], int]) -> None:
    with pytest.raises(TaskInvalid, match="Two tasks"):
        app.task(name=double.name)(lambda_named("other"))


@pytest.mark.parametrize("url", ["nonsense", "mysql://x", "sqlite:/x.db", "", "sqlite:///x.db?durability=maybe"])
def test_an_engine_url_nobody_understands_says_so(url: str) -> None:
    with pytest.raises(BeltlineError) as caught:
        _ = App(url).engine
    assert isinstance(caught.value, (UrlInvalid, ValueInvalid))
