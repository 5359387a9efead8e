"""Concurrent sends share commits: what comes while one is on its way goes with the next, without a deliberate wait."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from beltline.core.errors import EngineUnavailable
from beltline.core.message import Message
from beltline.core.outcome import Sent
from beltline.engines.postgres.desk import Desk

LANES = 2  # sends on their way at once; more of them are smaller
MOST = 1000  # messages that go together

Waiting = tuple[Sequence[Message], "asyncio.Future[list[Sent]]"]


class Sends:
    """Of one event loop. `send_now` sends one batch, all or none."""

    def __init__(self, send_now: Callable[[Sequence[Message]], Awaitable[list[Sent]]]) -> None:
        self._send_now = send_now
        self._waiting: list[Waiting] = []
        self._lanes = 0

    async def send(self, desk: Desk, messages: Sequence[Message]) -> list[Sent]:
        future: asyncio.Future[list[Sent]] = asyncio.get_running_loop().create_future()
        self._waiting.append((messages, future))
        if self._lanes < LANES:
            self._lanes += 1
            desk.own(self._run(desk))
        return await future

    async def _run(self, desk: Desk) -> None:
        try:
            while self._waiting:
                together = self._next()
                try:
                    answers = await self._send_now([message for messages, _ in together for message in messages])
                except EngineUnavailable as error:
                    for _, future in together:
                        _fail(future, EngineUnavailable(error.what, effect=error.effect, help=error.help))
                except Exception as error:  # noqa: BLE001 - each answer goes to whoever asked; a batch that cannot be written is its sender's alone
                    if len(together) == 1:
                        _fail(together[0][1], error)
                    else:
                        await self._one_by_one(together)
                except BaseException:  # the engine is closed and the server silent, or the loop ends
                    for _, future in [*together, *self._waiting]:
                        _fail(future, desk.cut_short())
                    self._waiting.clear()
                    raise
                else:
                    start = 0
                    for messages, future in together:
                        if not future.done():
                            future.set_result(answers[start : start + len(messages)])
                        start += len(messages)
        finally:
            self._lanes -= 1

    def _next(self) -> list[Waiting]:
        """The first, and as many as fit beside it. An id that comes twice waits: each send has an answer of its own."""
        together = [self._waiting.pop(0)]
        seen = {message.id for message in together[0][0]}
        count = len(together[0][0])
        while self._waiting and count + len(self._waiting[0][0]) <= MOST:
            ids = {message.id for message in self._waiting[0][0]}
            if not seen.isdisjoint(ids):
                break
            seen |= ids
            count += len(ids)
            together.append(self._waiting.pop(0))
        return together

    async def _one_by_one(self, together: list[Waiting]) -> None:
        """One of them is refused: nothing was stored, and the others must not suffer for it."""
        for messages, future in together:
            try:
                answer = await self._send_now(messages)
            except Exception as error:  # noqa: BLE001 - as above
                _fail(future, error)
            else:
                if not future.done():
                    future.set_result(answer)


def _fail(future: "asyncio.Future[list[Sent]]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
        future.exception()  # its caller may be gone
