"""The app of tests/worker/test_transactions.py for runner processes: every task writes one effect row in the transaction that settles it."""

from beltline import App, current

app = App("memory://")  # a worker's URL takes its place
INSERT = "INSERT INTO effect VALUES(?, ?)"


@app.task(queue="atomic")
def book(number: int) -> int:
    current().transaction().execute(INSERT, (current().message_id, str(number)))
    return number


@app.task(queue="atomic")
async def abook(number: int) -> int:
    (await current().atransaction()).execute(INSERT, (current().message_id, str(number)))
    return number
