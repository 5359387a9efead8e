"""A worker inside a program: both faces, the app it was given, results by the ordinary handles."""

from beltline import App, Worker


def test_synchronous_code_can_hold_a_worker_with_with() -> None:
    app = App("memory://")

    @app.task
    def double(number: int) -> int:
        return 2 * number

    with app, Worker(app, in_process=True, queues={"double": (1, 2)}):
        assert double.send(4).result(timeout=20) == 8


async def test_asynchronous_code_can_hold_a_worker_with_async_with() -> None:
    app = App("memory://")

    @app.task
    async def double(number: int) -> int:
        return 2 * number

    async with app, Worker(app, in_process=True):
        handles = await double.asend_many(double.call(number) for number in range(50))
        assert [await handle.aresult(timeout=20) for handle in handles] == [2 * number for number in range(50)]
