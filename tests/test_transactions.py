"""Sending in the caller's own transaction, as a user spells it. On SQLite here; every kind of connection to PostgreSQL is in tests/engines/test_guests.py."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from beltline import App, InvalidArguments, QueueFull
from beltline.core.errors import HandleMisused, Unsupported
from beltline.tasks import Task


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    app = App(f"sqlite:///{tmp_path / 'queue.db'}?durability=os")
    yield app
    app.close()


@pytest.fixture
def mail(app: App) -> Task[[str], str]:
    @app.task
    def mail(to: str) -> str:
        return to

    return mail


@pytest.fixture
def mine(app: App, mail: Task[[str], str], tmp_path: Path) -> Iterator[apsw.Connection]:
    with app:
        db = apsw.Connection(str(tmp_path / "queue.db"))
        db.execute("CREATE TABLE customer(name)")
        yield db
        db.close()


def ready(app: App, task: "Task[..., object]") -> int:
    async def go() -> int:
        return (await (await app.ready()).counts(task.queue)).ready

    return app.blocking(go())


def test_a_message_exists_when_the_transaction_commits(app: App, mail: Task[[str], str], mine: apsw.Connection) -> None:
    mine.execute("BEGIN IMMEDIATE; INSERT INTO customer VALUES('ada')")
    handle = mail.with_options(connection=mine).send("ada")
    assert handle.new
    assert ready(app, mail) == 0
    mine.execute("COMMIT")
    assert handle.status() == "ready"
    mine.execute("BEGIN IMMEDIATE")
    mail.with_options(connection=mine, delay=60).send("bob")
    mine.execute("ROLLBACK")
    assert ready(app, mail) == 1


def test_limits_and_tenants_go_into_the_transaction_and_limits_are_declared_before_it(
    app: App, mail: Task[[str], str], mine: apsw.Connection
) -> None:
    app.limit("api", concurrency=1)

    @app.task(limits=["api"], tenant="to", unique_key="to", queue="mail")
    def push(to: str) -> None: ...

    mine.execute("BEGIN IMMEDIATE")
    with pytest.raises(HandleMisused, match="not declared yet"):
        push.with_options(connection=mine).send("ada")
    mine.execute("ROLLBACK")
    app.blocking(app.ready())
    mine.execute("BEGIN IMMEDIATE")
    first, second = (push.with_options(connection=mine).send("ada") for _ in range(2))
    mine.execute("COMMIT")
    assert (first.id, first.new, second.new) == (second.id, True, False)
    assert ready(app, mail) == 1


def test_the_short_spelling_means_the_same(app: App, mail: Task[[str], str], mine: apsw.Connection) -> None:
    mine.execute("BEGIN IMMEDIATE")
    mail.send("ada", connection=mine)  # type: ignore[call-arg]  # type checkers know the other spelling only
    assert ready(app, mail) == 0
    mine.execute("COMMIT")
    mail.send(to="bob", connection=None)  # type: ignore[call-arg]  # no connection, no transaction
    assert ready(app, mail) == 2


def test_a_task_with_a_parameter_called_connection_gets_the_argument(app: App, mine: apsw.Connection) -> None:
    @app.task
    def dial(connection: str) -> str:
        return connection

    @app.task
    def call(**named: str) -> dict[str, str]:
        return named

    assert dial.send(connection="modem").status() == "ready"
    assert call.send(connection="modem").status() == "ready"
    with pytest.raises(InvalidArguments):
        dial.send(connection=mine)  # type: ignore[arg-type]
    mine.execute("BEGIN IMMEDIATE")
    dial.with_options(connection=mine).send(connection="modem")
    mine.execute("ROLLBACK")
    assert ready(app, dial) == 1


def test_a_task_known_by_name_only_gets_it_as_an_argument(app: App, mail: Task[[str], str], mine: apsw.Connection) -> None:
    far = app.by_name("elsewhere.mail", queue="mail")
    far.send(connection="modem")
    assert ready(app, mail) == 1


def test_many_calls_of_many_tasks_are_one_write(app: App, mail: Task[[str], str], mine: apsw.Connection) -> None:
    @app.task
    def bill(name: str) -> str:
        return name

    line = app.chain("welcome", mail >> bill.stage(queue="bills"))
    app.blocking(app.ready())
    mine.execute("BEGIN IMMEDIATE")
    handles = app.send_many([mail.call("ada"), bill.call("ada"), line.call("bob")], connection=mine)
    handles += mail.send_many([mail.call("eve")], connection=mine)
    handles += mail.with_options(connection=mine).send_many([mail.call("joe")])
    assert app.send_many([], connection=mine) == []
    mine.execute("COMMIT")
    assert [handle.status() for handle in handles] == ["ready", "ready", "running", "ready", "ready"]
    assert (ready(app, mail), ready(app, bill)) == (4, 1)
    assert len(app.send_many([mail.call("zoe"), bill.call("zoe")])) == 2


def test_a_refusal_leaves_the_transaction_usable(app: App, mail: Task[[str], str], mine: apsw.Connection) -> None:
    app.queue("mail", max_backlog=1)
    mine.execute("BEGIN IMMEDIATE; INSERT INTO customer VALUES('ada')")
    with pytest.raises(HandleMisused, match="not declared yet"):  # the bound is new, and declaring it would wait for us
        mail.with_options(connection=mine).send("ada")
    mine.execute("ROLLBACK")
    mail.send("first")  # declares it, and fills the queue
    mine.execute("BEGIN IMMEDIATE; INSERT INTO customer VALUES('ada')")
    with pytest.raises(QueueFull):
        mail.with_options(connection=mine).send("ada")
    mine.execute("COMMIT")
    assert mine.execute("SELECT count(*) FROM customer").get == 1
    assert ready(app, mail) == 1


def test_an_app_that_was_not_open_opens_under_the_transaction(app: App, mail: Task[[str], str], mine: apsw.Connection) -> None:
    """All queues are declared, so nothing needs to be written beside it."""
    other = App(app.url)

    @other.task(name=mail.name)
    def mail_again(to: str) -> str:
        return to

    mine.execute("BEGIN IMMEDIATE")
    handle = other.by_name(mail.name, queue="mail").with_options(connection=mine).send("ada")
    mine.execute("COMMIT")
    assert handle.status() == "ready"
    other.close()


def test_an_engine_without_transactions_says_who_has_them(mine: apsw.Connection) -> None:
    app = App("memory://")

    @app.task
    def mail(to: str) -> str:
        return to

    with app, pytest.raises(Unsupported, match="Engines that can: postgresql, sqlite"):
        mail.with_options(connection=mine).send("ada")
    app.close()


async def test_asynchronous_code_sends_in_its_transaction_too(tmp_path: Path) -> None:
    app = App(f"sqlite:///{tmp_path / 'queue.db'}?durability=os")

    @app.task
    def mail(to: str) -> str:
        return to

    async with app:
        db = apsw.Connection(str(tmp_path / "queue.db"))
        db.execute("BEGIN IMMEDIATE")
        handle = await mail.with_options(connection=db).asend("ada")
        await mail.asend("bob", connection=db)  # type: ignore[call-arg]
        await mail.asend_many([mail.call("eve")], connection=db)
        await app.asend_many([mail.call("joe")], connection=db)
        db.execute("COMMIT")
        db.close()
        assert await handle.astatus() == "ready"
        assert (await (await app.ready()).counts(mail.queue)).ready == 4
    await asyncio.to_thread(app.close)
