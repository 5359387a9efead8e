"""Flow control as users say it, on the memory engine: what a declaration becomes in a message, what is refused, and what travels down a chain."""

import enum
import math
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from beltline import App, InvalidArguments, KillSwitch, Limited, Unique, UsageError
from beltline.core.chain import advance
from beltline.core.errors import ChainInvalid, NameInvalid, TaskInvalid, ValueInvalid
from beltline.core.flow import Claim, Flow, Limit
from beltline.core.flow import Unique as UniqueKey
from beltline.core.message import Message
from beltline.core.outcome import Ack
from beltline.core.rerun import rerun
from beltline.engines.protocol import Limits
from beltline.limiting import fit, key_text, make_limit, rate_of
from beltline.tasks import Task


@pytest.fixture
def app() -> Iterator[App]:
    app = App("memory://")
    yield app
    app.close()


def flow(task: "Task[..., Any]", *args: Any, **kwargs: Any) -> Flow | None:
    return task.call(*args, **kwargs).message.flow


# ------------------------------------------------------------------------------------------------------------- limits
@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"rate": 50}, Limit(name="api", rate=50)),
        ({"rate": 50, "per": "1m"}, Limit(name="api", rate=50, per_s=60.0)),
        ({"rate": 50, "per": timedelta(hours=1), "burst": 7}, Limit(name="api", rate=50, per_s=3600.0, burst=7)),
        ({"rate": "600/10m", "concurrency": 3}, Limit(name="api", rate=600.0, per_s=600.0, concurrency=3)),
        ({}, Limit(name="api")),
    ],
)
def test_a_limit_is_declared_by_rate_and_time_and_concurrency(app: App, said: dict[str, Any], expected: Limit) -> None:
    assert app.limit("api", **said) == expected
    assert app.limits == {"api": expected}


@pytest.mark.parametrize("text", ["50", "/s", "50/x", "fifty/s", "-1/s", "50/-1s"])
def test_a_rate_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueInvalid):
        rate_of(text)


@pytest.mark.parametrize(
    "said",
    [
        {"rate": -1},
        {"rate": math.nan},
        {"rate": 5, "burst": -1},
        {"concurrency": 1.5},
        {"concurrency": math.nan},
        {"concurrency": True},
        {"rate": 5, "per": 0},
        {"per": "soon"},
    ],
)
def test_numbers_out_of_their_range_are_refused_at_the_declaration(app: App, said: dict[str, Any]) -> None:
    with pytest.raises(ValueInvalid):
        app.limit("api", **said)


@pytest.mark.parametrize("said", [{"burst": 5}, {"rate": 5, "burst": 0}, {"per": "1m"}, {"rate": "5/s", "per": "1m"}, {"burst": 5, "concurrency": 2}])
def test_a_number_that_would_have_no_effect_is_refused(app: App, said: dict[str, Any]) -> None:
    with pytest.raises(ValueInvalid, match=r"per =|burst ="):
        app.limit("api", **said)
    assert app.limits == {}


@pytest.mark.parametrize("text", ["0/s", "5/0s", "5/.s", "5/1.2.3s", "5/367d", "5 parsecs", "5/parsec"])
def test_a_rate_that_cannot_be_meant_is_told_with_all_that_was_said(text: str) -> None:
    with pytest.raises(ValueInvalid) as told:
        rate_of(text)
    assert repr(text) in str(told.value)
    assert "600/10m" in str(told.value)


def test_what_is_no_list_of_names_or_no_kill_switch_is_refused(app: App) -> None:
    limits: Any = 5
    with pytest.raises(ValueInvalid, match="limits = 5"):
        app.task(name="tasks.any", limits=limits)(lambda: None)
    with pytest.raises(ValueInvalid, match="limits = 5"):
        app.queue("mail", limits=limits)
    for switch in ("yes", 0.5, {"share": 0.5}, KillSwitch(pause_s="1m")):  # type: ignore[arg-type]
        wrong: Any = switch
        with pytest.raises(ValueInvalid, match=r"kill_switch|pause_s"):
            app.queue("mail", kill_switch=wrong)


def test_one_state_may_be_said_as_a_word() -> None:
    assert Unique("account", states="ready").of("a").states == ("ready",)


def test_a_long_value_is_clipped_where_it_is_refused() -> None:
    told = ValueInvalid(name="tenant", value="x" * 10_000, allowed="a text of 1 to 256 characters")
    assert len(told.what) < 250
    assert "10,002 characters" in told.what
    assert told.value == "x" * 10_000


def test_two_limits_of_one_name_are_refused_and_the_same_twice_is_not(app: App) -> None:
    app.limit("api", rate=5)
    app.limit("api", rate=5)
    with pytest.raises(UsageError, match="Two limits are called 'api'"):
        app.limit("api", rate=6)
    with pytest.raises(NameInvalid):
        app.limit("no name", rate=6)


async def test_ready_tells_the_store_and_a_later_declaration_changes_only_what_the_code_says(app: App) -> None:
    api = app.limit("api", rate="50/s")
    app.queue("mail", limits=api)
    engine = await app.ready()
    assert isinstance(engine, Limits)
    [view] = await engine.limits()
    assert (view.name, view.rate, view.burst, view.origin) == ("api", 50.0, 10, "code")
    await engine.set_limit(make_limit("api", rate=1))
    app.limits["api"] = make_limit("api", rate=60)
    app._opened = False
    await app.ready()
    [view] = await engine.limits()
    assert (view.rate, view.origin) == (1.0, "operator")
    await engine.reset_limit("api")
    assert (await engine.limits())[0].rate == 60.0
    await app.aclose()


def test_a_limit_that_nobody_declares_is_refused_before_anything_is_sent(app: App) -> None:
    @app.task(limits=["apii"])
    def ask() -> None: ...

    app.limit("api", rate=5)
    with pytest.raises(UsageError) as caught:
        ask.send()
    assert "Task" in str(caught.value)
    assert "'apii'" in str(caught.value)
    assert "Declared: api." in str(caught.value)
    del app.tasks[ask.name]
    app.queue("mail", limits=["mailer"])
    with pytest.raises(UsageError, match="Queue 'mail' names the limit 'mailer'"):
        app.check()


# ---------------------------------------------------------------------------------------------------------- declaration
def test_names_limits_and_keys_become_claims_in_the_order_written(app: App) -> None:
    api = app.limit("api", rate=5)

    @app.task(limits=[Limited("api", key="customer", cost="pages"), api, Limited("disk", key=lambda pages: pages // 10, cost=2)])
    def render(customer: str, pages: int = 30) -> None: ...

    assert flow(render, "acme", 7) == Flow(claims=(Claim("api", "acme", 7.0), Claim("api", "", 1.0), Claim("disk", "0", 2.0)))
    assert flow(render, customer="") == Flow(claims=(Claim("api", "", 31.0), Claim("disk", "3", 2.0)))  # one bucket, used twice


def test_a_default_value_is_a_key_too(app: App) -> None:
    @app.task(tenant="customer", sticky="model", limits=Limited("api", key="customer"))
    def ask(model: str = "small", *, customer: str = "free") -> None: ...

    assert flow(ask) == Flow(tenant="free", sticky="small", claims=(Claim("api", "free"),))
    assert flow(ask, "large", customer="acme") == Flow(tenant="acme", sticky="large", claims=(Claim("api", "acme"),))


def test_none_is_no_key(app: App) -> None:
    @app.task(tenant="customer", sticky="customer", limits=[Limited("api", key="customer")], unique_key="customer")
    def ask(customer: str | None) -> None: ...

    assert flow(ask, None) == Flow(claims=(Claim("api", ""),))


class Size(enum.Enum):
    SMALL = "s"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, ""), ("a", "a"), (7, "7"), (True, "true"), (UUID(int=1), str(UUID(int=1))), (Size.SMALL, "s"), (1.5, None), ([], None)],
)
def test_what_can_be_a_key(value: object, expected: str | None) -> None:
    assert key_text(value) == expected


def test_a_key_of_any_length_fits_and_stays_another_one(app: App) -> None:
    one, other = fit("x" * 300 + "1"), fit("x" * 300 + "2")
    assert len(one) == len(other) == 256
    assert one != other
    assert fit("short") == "short"


def test_a_value_that_cannot_be_a_key_is_refused_at_the_send(app: App) -> None:
    app.limit("api")

    @app.task(limits=[Limited("api", key="ratio")])
    def ask(ratio: float) -> None: ...

    with pytest.raises(InvalidArguments, match="as key"):
        ask.send(0.5)

    @app.task(tenant="customer")
    def greet(customer: str) -> None: ...

    with pytest.raises(ValueInvalid, match="tenant"):
        greet.send("a\x00b")
    assert len((flow(greet, "ä" * 300) or Flow()).tenant) == 256

    @app.task(limits=[Limited("api", cost="words")])
    def tell(words: str) -> None: ...

    with pytest.raises(InvalidArguments, match="cost"):
        tell.send("many")

    @app.task(limits=[Limited("api", cost="pages")])
    def render(pages: int) -> None: ...

    with pytest.raises(ValueInvalid, match="cost"):
        render.send(-1)


@pytest.mark.parametrize(
    "options",
    [
        {"tenant": "customr"},
        {"limits": [Limited("api", key="customr")]},
        {"limits": [Limited("api", key=lambda customr: customr)]},
        {"sticky": "db"},
        {"unique_key": Unique("nobody")},
        {"debounce": ("nobody", 5)},
        {"throttle": ("nobody", 5)},
        {"unique_key": "customer", "debounce": ("customer", 5)},
        {"unique": True, "throttle": ("customer", 5)},
    ],
)
def test_a_key_that_names_no_parameter_is_refused_at_the_declaration(app: App, options: dict[str, Any]) -> None:
    @app.resource
    def pool() -> int:
        return 1

    from beltline import inject

    with pytest.raises(TaskInvalid):

        @app.task(**options)
        def ask(customer: str, db: int = inject(pool)) -> None: ...


@pytest.mark.parametrize(
    "options",
    [
        {"limits": ["no name"]},
        {"limits": ["api"] * 2},
        {"limits": [f"l{number}" for number in range(9)]},
        {"unique_key": Unique("customer", states=("running",))},
        {"unique_key": Unique("customer", states=("leased",), newest=True)},
        {"unique_key": Unique("customer", window=-1)},
        {"debounce": ("customer",)},
        {"debounce": ("customer", 10, 5)},
        {"throttle": ("customer", 25 * 3600)},
    ],
)
def test_what_can_never_work_is_refused_at_the_declaration(app: App, options: dict[str, Any]) -> None:
    with pytest.raises((ValueInvalid, NameInvalid)):

        @app.task(**options)
        def ask(customer: str) -> None: ...


def test_a_function_that_takes_everything_gets_everything(app: App) -> None:
    @app.task(tenant=lambda **arguments: f"{arguments['a']}-{arguments['b']}")
    def ask(a: int, b: int = 2) -> None: ...

    assert flow(ask, 1) == Flow(tenant="1-2")


# -------------------------------------------------------------------------------------------------------------- options
def test_options_of_a_send_win_over_the_declaration(app: App) -> None:
    app.limit("api")

    @app.task(tenant="customer", sticky="customer", limits=["api", Limited("disk", key="customer", cost=5)])
    def ask(customer: str) -> None: ...

    said = ask.with_options(tenant="other", weight=4, cost=3, sticky="gpu").call("acme").message.flow
    assert said == Flow(tenant="other", weight=4.0, sticky="gpu", claims=(Claim("api", "", 3.0), Claim("disk", "acme", 3.0)))
    assert ask.with_options(tenant="", sticky="").call("acme").message.flow == Flow(claims=(Claim("api"), Claim("disk", "acme", 5.0)))


def test_options_work_without_the_code_of_the_task(app: App) -> None:
    message = app.by_name("elsewhere.ask", queue="ask").with_options(tenant="acme", unique_key="report-7").call(1).message
    assert message.flow == Flow(tenant="acme", unique=UniqueKey(key="report-7"))
    assert app.by_name("elsewhere.ask").call(1).message.flow is None


@pytest.mark.parametrize(
    "options",
    [
        {"tenant": "x" * 257},
        {"weight": 0},
        {"weight": True},
        {"cost": -1},
        {"sticky": 7},
        {"unique_key": ""},
        {"unique_key": "a", "debounce": ("a", 5)},
        {"debounce": "a"},
        {"throttle": ("a", 0)},
    ],
)
def test_options_out_of_their_range_are_refused(app: App, options: dict[str, Any]) -> None:
    @app.task
    def ask() -> None: ...

    with pytest.raises(ValueInvalid):
        ask.with_options(**options)


def test_a_cost_without_a_limit_is_refused(app: App) -> None:
    @app.task
    def ask() -> None: ...

    with pytest.raises(UsageError, match="this task has none"):
        ask.with_options(cost=2).call()


def test_a_task_without_flow_sends_none(app: App) -> None:
    @app.task
    def ask() -> None: ...

    assert ask.call().message.flow is None
    assert ask.with_options(priority=3).call().message.flow is None


# --------------------------------------------------------------------------------------------------------------- unique
def test_one_live_message_per_key(app: App) -> None:
    @app.task(unique_key="account")
    def report(account: str, day: int) -> None: ...

    @app.task(unique_key="account", queue="report")
    def other(account: str) -> None: ...

    first, second, third = report.send("a", 1), report.send("a", 2), report.send("b", 1)
    assert (first.id == second.id, first.new, second.new, third.new) == (True, True, False, True)
    assert other.send("a").new  # another task's key is another key


def test_newest_takes_over_the_arguments_and_waits_behind_the_one_that_runs(app: App) -> None:
    @app.task(unique_key=Unique("account", newest=True))
    def report(account: str, day: int) -> None: ...

    async def go() -> None:
        engine = await app.ready()
        first = await report.asend("a", 1)
        [running] = await engine.receive([report.queue], limit=10, lease_s=30)
        second, third = await report.asend("a", 2), await report.asend("a", 3)
        assert (second.id == first.id, second.new, third.id == second.id, third.new) == (False, True, True, False)
        assert await engine.receive([report.queue], limit=10, lease_s=30) == []
        from beltline.core.outcome import Settlement

        await engine.settle([Settlement(running.receipt, Ack())])
        [newest] = await engine.receive([report.queue], limit=10, lease_s=30)
        assert report.read(newest.message.body) == (("a", 3), {})

    app.blocking(go())


def test_a_debounce_is_put_off_and_throttle_drops(app: App) -> None:
    @app.task(debounce=("account", 5, timedelta(seconds=60)))
    def index(account: str, at: int) -> None: ...

    @app.task(throttle=("account", 60))
    def remind(account: str, at: int) -> None: ...

    message = index.call("a", 1).message
    assert (message.delay_s, message.group) == (5.0, None)
    assert message.flow is not None
    assert message.flow.unique == UniqueKey(key=f"{index.name}:a", states=("delayed", "ready"), replace=True, most_s=60.0)
    assert index.with_options(delay=9).call("a", 1).message.delay_s == 9.0
    assert index.send("a", 1).id == index.send("a", 2).id
    message = remind.call("a", 1).message
    assert (message.dedup_key, message.dedup_window_s, message.flow) == (f"throttle:{remind.name}:a", 60.0, None)
    assert not [remind.send("a", 1), remind.send("a", 2)][1].new
    assert remind.with_options(dedup_key="mine").call("a", 1).message.dedup_key == "mine"


def test_literal_keys_in_options(app: App) -> None:
    @app.task
    def ask() -> None: ...

    message = ask.with_options(unique_key=Unique("r", states=("delayed",), window=60)).call().message
    assert message.flow == Flow(unique=UniqueKey(key="r", states=("delayed",), window_s=60.0))
    message = ask.with_options(debounce=("r", 2)).call().message
    assert (message.delay_s, message.flow) == (2.0, Flow(unique=UniqueKey(key="r", states=("delayed", "ready"), replace=True)))
    message = ask.with_options(throttle=("r", 2)).call().message
    assert (message.dedup_key, message.dedup_window_s) == ("throttle:r", 2.0)
    assert ask.with_options(unique_key=Unique("r", newest=True)).call().message.group == "unique:r"
    assert ask.with_options(unique_key=Unique("r", newest=True), group="mine").call().message.group == "mine"


# --------------------------------------------------------------------------------------------------------------- queues
def test_a_queue_has_limits_a_kill_switch_and_a_target(app: App) -> None:
    api = app.limit("api", rate=5)
    spec = app.queue("mail", limits=[api, "api2"], kill_switch=True, target=timedelta(seconds=5))
    assert (spec.limits, spec.kill_switch, spec.target_s) == (("api", "api2"), KillSwitch(), 5.0)
    assert app.queue("mail", limits="api", kill_switch=KillSwitch(least=5)).kill_switch == KillSwitch(least=5)
    assert app.queue("mail").limits == ()
    with pytest.raises(ValueInvalid):
        app.queue("mail", kill_switch=KillSwitch(share=2.0))
    with pytest.raises(NameInvalid):
        app.queue("mail", limits=["no name"])


def gpu_queue(app: App) -> None:
    app.queue("gpu", limits=["gpu"])


def gpu_task(app: App) -> None:
    @app.task(name="render", queue="gpu", limits=["gpu"])
    def render(name: str) -> None: ...


@pytest.mark.parametrize("steps", [(gpu_queue, gpu_task), (gpu_task, gpu_queue)], ids=["queue first", "task first"])
def test_a_limit_of_a_task_and_of_its_queue_would_be_charged_twice(app: App, steps: tuple[Any, Any]) -> None:
    for step in (*steps, lambda app: app.limit("gpu", concurrency=1)):
        step(app)
    with pytest.raises(TaskInvalid) as caught:
        app.check()
    assert caught.value.what == "Task render and its queue 'gpu' both name the limit 'gpu'."
    assert "twice" in caught.value.why
    assert "limits=['gpu']" in caught.value.help
    with pytest.raises(TaskInvalid), app:
        pass  # nobody opens it either


def test_the_queue_of_a_stage_counts_as_the_tasks_own(app: App) -> None:
    app.limit("gpu", concurrency=1)

    @app.task(name="start")
    def start(name: str) -> str: ...

    @app.task(name="render", limits=[Limited("gpu", cost=2)])
    def render(name: str) -> None: ...

    app.chain("film", start >> render.stage(queue="film.render"))
    app.queue("film.render", limits=["gpu"])
    with pytest.raises(TaskInvalid, match=r"Task render and the queue 'film\.render' of its stage in chain 'film' both name the limit 'gpu'"):
        app.check()


def test_what_the_configuration_says_of_the_queue_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "beltline.toml").write_text("queues.gpu = { limits = ['gpu'] }\n")
    app = App("memory://")
    app.limit("gpu", concurrency=1)
    gpu_task(app)
    with pytest.raises(TaskInvalid, match="both name the limit 'gpu'"):
        app.check()


def test_a_key_of_its_own_is_another_bucket(app: App) -> None:
    app.limit("gpu", concurrency=4)
    gpu_queue(app)

    @app.task(queue="gpu", limits=[Limited("gpu", key="name")])
    def render(name: str) -> None: ...

    app.check()


# --------------------------------------------------------------------------------------------------------------- chains
def line(app: App) -> tuple["Task[..., Any]", "Task[..., Any]", "Task[..., Any]"]:
    app.limit("api")
    app.limit("gpu")

    @app.task(tenant="customer")
    def fetch_it(customer: str) -> list[int]: ...

    @app.task(limits=["gpu", Limited("api", key="number", cost=2)], sticky="number", tenant="number")
    def each(number: int) -> int: ...

    @app.task(limits=["gpu"], tenant=lambda numbers: str(numbers), sticky=lambda numbers: "x")
    def total(numbers: list[int]) -> int: ...

    return fetch_it, each, total


def follow(chain: Any, message: Message, value: bytes) -> Ack:
    return chain.shaped(advance(Ack(), chain.plan, message, value))


def test_tenant_and_weight_travel_down_and_claims_are_the_next_stages_own(app: App) -> None:
    start, each, total = line(app)
    chain = app.chain("sum", start >> each.each() >> total.gather())
    entered = chain.with_options(weight=3).call("acme").message
    assert entered.flow == Flow(tenant="acme", weight=3.0)
    ack = follow(chain, entered, b"\x92\x07\x08")
    inherited = {"tenant": "acme", "weight": 3.0}
    assert [part.flow for part in ack.then] == [
        Flow(claims=(Claim("gpu"), Claim("api", str(number), 2.0)), sticky=str(number), **inherited) for number in (7, 8)
    ]
    [gather] = ack.gathers
    assert gather.then is not None
    assert gather.then.flow == Flow(claims=(Claim("gpu"),), **inherited)  # its arguments come together in the store
    part = ack.then[0]
    assert follow(chain, part, b"\x07").part == b"\x07"


def test_each_stage_of_a_chain_works_its_keys_out_anew(app: App) -> None:
    _, each, _ = line(app)

    @app.task(tenant="customer")
    def one(customer: str) -> int: ...

    app.chain("two", one >> each.stage(name="first") >> each.stage(name="again"))
    first = follow(app.chains["two"], entered_of(app, "two"), b"\x07").then[0]
    last = follow(app.chains["two"], first, b"\x07").then[0]
    assert last.place is not None
    assert last.place.stage == "again"
    assert last.flow == Flow(tenant="acme", claims=(Claim("gpu"), Claim("api", "7", 2.0)), sticky="7")


def entered_of(app: App, chain: str) -> Message:
    return app.chains[chain].call("acme").message


def test_an_own_tenant_counts_where_none_was_inherited(app: App) -> None:
    _, each, _ = line(app)

    @app.task
    def count(word: str) -> int: ...

    chain = app.chain("words", count >> each)
    ack = follow(chain, chain.call("a").message, b"\x05")
    assert ack.then[0].flow == Flow(tenant="5", sticky="5", claims=(Claim("gpu"), Claim("api", "5", 2.0)))


def test_arguments_that_do_not_fit_the_next_stage_are_handed_on_and_said_there(app: App) -> None:
    _, each, _ = line(app)

    @app.task
    def count(word: str) -> Any: ...

    chain = app.chain("words", count >> each)
    ack = follow(chain, chain.call("a").message, b"\xa1x")
    assert ack.then[0].flow == Flow(claims=(Claim("gpu"),))


def test_a_limit_by_key_is_refused_where_arguments_come_together_in_the_store(app: App) -> None:
    start, each, _ = line(app)

    @app.task(limits=[Limited("api", key=lambda numbers: len(numbers))])
    def keyed(numbers: list[int]) -> int: ...

    with pytest.raises(ChainInvalid, match="depends on its arguments"):
        app.chain("sum", start >> each.each() >> keyed.gather())


def test_a_rerun_keeps_tenant_and_claims_but_no_unique_key(app: App) -> None:
    start, each, total = line(app)
    chain = app.chain("sum", start >> each.each() >> total.gather())
    entered = chain.with_options(unique_key="once").call("acme").message
    parts = follow(chain, entered, b"\x92\x07\x08").then
    [again], _ = rerun(chain.plan, "fetch_it", [entered], "0" * 32)  # type: ignore[arg-type]
    assert again.flow == Flow(tenant="acme")
    copies, [gather] = rerun(chain.plan, "each", parts, "0" * 32)  # type: ignore[arg-type]
    assert [copy.flow for copy in copies] == [part.flow for part in parts]
    assert gather.then is not None
    assert gather.then.flow == Flow(tenant="acme", claims=(Claim("gpu"),))


def test_keys_are_found_by_name_however_the_arguments_are_given(app: App) -> None:
    @app.task(tenant="customer", sticky="model", limits=[Limited("api", key="extra")])
    def ask(question: str, customer: str = "free", *rest: str, model: str = "small", extra: int = 3, **more: int) -> None: ...

    app.limit("api")
    assert flow(ask, "why") == Flow(tenant="free", sticky="small", claims=(Claim("api", "3"),))
    assert flow(ask, "why", "acme", "a", "b", model="large", extra=4, other=5) == Flow(tenant="acme", sticky="large", claims=(Claim("api", "4"),))
    assert flow(ask, question="why", customer="acme") == Flow(tenant="acme", sticky="small", claims=(Claim("api", "3"),))
    args, kwargs = ask.read(ask.call("why", "acme", "a", extra=4, other=5).message.body)
    assert ask.rules is not None
    assert ask.rules.next(None, args, kwargs) == flow(ask, "why", "acme", "a", extra=4, other=5)
