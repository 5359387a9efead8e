"""Sends items with ids made from their numbers, and writes down each batch before it tries and after it knows. Killed and started again, it goes on where it stood.

Whatever the answer, an item is sent with the same id until a send returns: the library repeats what is unknown a few times, this program for ever.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from beltline import Chain
from beltline.core.errors import EngineUnavailable
from beltline.sending import Call
from tests.system.chaos_line import app
from tests.system.history import Journal, lines

FIXED = (0x0199 << 112) | (7 << 76) | (2 << 62)
BATCHES = (1, 2, 3)
SENDS_S = float(os.environ.get("CHAOS_SENDS_S", "0"))  # seconds over which all items are spread, so that there is somebody to kill
PAUSE_S = 0.1  # before the next try, when the store is away


def item_id(number: int) -> str:
    return UUID(int=FIXED | number).hex


def item_number(id: str) -> int:
    """The other way round; -1 for an id that no sender makes."""
    number = UUID(id).int ^ FIXED
    return number if number < 1 << 32 else -1


def send(journal: Journal, chain_name: str, numbers: Sequence[int], groups: int) -> None:
    chain = app.chains[chain_name]
    calls = [chain.with_options(id=item_id(number), group=f"lane-{number % groups}" if groups else None).call(number) for number in numbers]
    send_until_known(journal, chain, numbers, calls)


def send_until_known(journal: Journal, chain: Chain[..., Any], numbers: Sequence[int], calls: list[Call[Any]]) -> None:
    while True:
        journal.write("send", wall=time.time(), phase="invoke", numbers=numbers)
        try:
            chain.send_many(calls)
        except EngineUnavailable as error:
            journal.write("send", wall=time.time(), phase="unknown" if error.effect == "unknown" else "fail", numbers=numbers)
            time.sleep(PAUSE_S)
        else:
            journal.write("send", wall=time.time(), phase="ok", numbers=numbers)
            return


def main(chain_name: str, items: int, groups: int, folder: Path) -> None:
    acknowledged = [number for event in lines(folder, "sender") if event["phase"] == "ok" for number in event["numbers"]]
    number = max(acknowledged, default=-1) + 1
    journal = Journal(folder, "sender")
    while number < items:
        batch = range(number, min(items, number + BATCHES[number % len(BATCHES)]))
        send(journal, chain_name, list(batch), groups)
        time.sleep(SENDS_S * len(batch) / items)
        number = batch.stop
    app.close()
    journal.close()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(os.environ["CHAOS_LOG"]))
