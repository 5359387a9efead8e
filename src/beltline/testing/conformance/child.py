"""A worker or sender in a process of its own, to be killed: `python -m beltline.testing.conformance.child URL WHAT`.

It writes one line per finished step, after the engine's answer; the test kills it when it has read enough of them.

send    sends message after message into "work" and writes each id once the engine has said ok
hold    receives all of "work" under a short lease, writes the ids, and never settles
work    receives from "work" under a short lease, hands each item on to "next", writes the number of items handed on
share   the same under a long lease
"""

import asyncio
import sys

from beltline.core.message import Message
from beltline.core.names import MessageId, derive_id
from beltline.core.outcome import Ack, Settled, Settlement
from beltline.engines.protocol import Engine
from beltline.engines.registry import make_engine
from beltline.testing.conformance.kit import NEXT, WORK, message

LEASE_S = 0.5


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def send(engine: Engine) -> None:
    while True:
        made = message()
        await engine.send([made])
        say(made.id)


async def hold(engine: Engine) -> None:
    for delivery in await engine.receive([WORK], limit=1000, lease_s=LEASE_S):
        say(delivery.message.id)
    say("held")
    await asyncio.Event().wait()


async def work(engine: Engine, lease_s: float = LEASE_S) -> None:
    while True:
        deliveries = await engine.receive([WORK], limit=5, lease_s=lease_s, wait_s=5.0)
        answers = await engine.settle([Settlement(each.receipt, Ack(then=(_next(each.message),))) for each in deliveries])
        say(str(answers.count(Settled.DONE)))


async def share(engine: Engine) -> None:
    await work(engine, lease_s=600.0)


def _next(before: Message) -> Message:
    return message(NEXT, id=MessageId(derive_id(before.id, "next")), body=before.body)


async def main(url: str, what: str) -> None:
    engine = make_engine(url)
    await engine.open()
    await {"send": send, "hold": hold, "work": work, "share": share}[what](engine)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
