"""Read by mypy in `make check`, never run: a scheduled task is, for an editor, the task it was."""

from datetime import timedelta
from typing import assert_type

from beltline import App, Chain
from beltline.sending import Call
from beltline.tasks import AsyncTask, SyncTask

app = App("memory://")


@app.schedule("30 2 * * *", tz="Europe/Berlin")
@app.task
def nightly(kind: str, /) -> int:
    return len(kind)


@app.schedule(every=timedelta(minutes=5), catch_up="skip")
@app.task
async def poll() -> str:
    return ""


line = app.chain("line", nightly)

assert_type(nightly("short"), int)
assert_type(app.schedule("@daily")(line), Chain[[str], int])
assert_type(app.schedule("@daily")(nightly.call("weekly")), Call[int])


assert_type(nightly, SyncTask[[str], int])
assert_type(poll, AsyncTask[[], str])


app.schedule("@daily")(lambda: 1)  # type: ignore[type-var]  # no task
app.schedule(5)  # type: ignore[arg-type]  # no expression
app.schedules.add("x", nightly.call(5), every=60)  # type: ignore[arg-type]  # no text
