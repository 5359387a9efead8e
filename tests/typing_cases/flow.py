"""Read by mypy in `make check`, never run: options of flow control that the editor must accept and refuse. An ignore that is not needed is an error."""

from datetime import timedelta
from typing import assert_type

from beltline import App, Handle, KillSwitch, Limited, Snooze, Unique
from beltline.core.flow import Limit
from beltline.core.queues import QueueSpec

app = App()
api = app.limit("api", rate=50, per="1s", burst=10, concurrency=4)


@app.task(limits=[api, "disk", Limited("api", key="customer", cost=lambda pages: 2 * pages)], tenant="customer", sticky=lambda customer: customer)
def render(customer: str, pages: int) -> int:
    return pages


@app.task(limits="api", unique_key=Unique("customer", states=("delayed", "ready"), window=timedelta(hours=1)))
async def ask(customer: str) -> str:
    raise Snooze(30, queue=True)


@app.task(debounce=("customer", 5, timedelta(minutes=1)))
def index(customer: str) -> None: ...


@app.task(throttle=("customer", 60))
def remind(customer: str) -> None: ...


def ok() -> None:
    assert_type(api, Limit)
    assert_type(app.limit("more", rate="600/10m"), Limit)
    assert_type(render("acme", 3), int)
    assert_type(render.with_options(tenant="acme", weight=2, cost=3.5, sticky="gpu").send("acme", 3), Handle[int])
    assert_type(ask.with_options(unique_key="report").send("acme"), Handle[str])
    ask.with_options(unique_key=Unique("report", newest=True), throttle=("report", timedelta(seconds=60)))
    index.with_options(debounce=("report", 5, 60))
    assert_type(app.queue("mail", limits=[api, "disk"], kill_switch=KillSwitch(share=0.3), target=10), QueueSpec)
    app.queue("mail", limits="api", kill_switch=True)


def refused() -> None:
    app.limit("api", rate=[50])  # type: ignore[arg-type]
    app.limit("api", 50)  # type: ignore[call-arg]
    app.task(limits=5)  # type: ignore[call-overload]
    app.task(debounce=("customer",))  # type: ignore[arg-type]
    app.queue("mail", kill_switch=0.5)  # type: ignore[arg-type]
    render.with_options(tenant=5)  # type: ignore[arg-type]
    render.with_options(throttle=("report", 1, 2))  # type: ignore[arg-type]
    Limited(5)  # type: ignore[arg-type]
    Snooze(30, queue="api")  # type: ignore[arg-type]
