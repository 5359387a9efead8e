"""The smallest task there is, for `beltline bench`: what is measured is Beltline, not the task."""

from beltline import App

app = App()


@app.task(queue="beltline-bench")
async def noop(number: int) -> int:
    return number
