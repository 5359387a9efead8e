"""Sends the items of the line with flow control, and unique messages before each batch. As chaos_sender.py: killed and started again, it goes on where it stood, with the same ids."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

from beltline.core.errors import EngineUnavailable
from beltline.sending import Call
from tests.system import chaos_flow
from tests.system.chaos_flow import RULES, TENANTS
from tests.system.chaos_line import app
from tests.system.chaos_sender import BATCHES, FIXED, PAUSE_S, SENDS_S, item_id, send_until_known
from tests.system.history import Journal, lines

UNIQUE_EVERY = 6  # items per round of unique messages
UNIQUE_KEYS = 2


def unique_id(number: int, rule: str) -> str:
    return UUID(int=FIXED | (1 + RULES.index(rule)) << 40 | number).hex


def send_unique(journal: Journal, number: int) -> None:
    for rule in RULES:
        id, key = unique_id(number, rule), f"{rule}-{number // UNIQUE_EVERY % UNIQUE_KEYS}"
        task = getattr(chaos_flow, rule).with_options(id=id)
        while True:
            journal.write("ask", number=number, rule=rule, key=key, id=id)
            try:
                handle = task.send(key, number)
            except EngineUnavailable:
                time.sleep(PAUSE_S)
            else:
                journal.write("answer", id=id, answer=handle.id)
                break


def call(number: int, groups: int) -> Call[list[int]]:
    chosen = chaos_flow.flow.with_options(id=item_id(number), weight=1.0 + number % TENANTS)
    if groups and number % 3 == 0:
        chosen = chosen.with_options(group=f"lane-{number % groups}")
    return chosen.call(number)


def main(items: int, groups: int, folder: Path) -> None:
    acknowledged = [number for event in lines(folder, "sender") if event["op"] == "send" and event["phase"] == "ok" for number in event["numbers"]]
    number = max(acknowledged, default=-1) + 1
    journal = Journal(folder, "sender")
    while number < items:
        batch: Sequence[int] = range(number, min(items, number + BATCHES[number % len(BATCHES)]))
        for each in batch:
            if each % UNIQUE_EVERY == 0:
                send_unique(journal, each)
        send_until_known(journal, chaos_flow.flow, list(batch), [call(each, groups) for each in batch])
        time.sleep(SENDS_S * len(batch) / items)
        number = batch[-1] + 1
    app.close()
    journal.close()


if __name__ == "__main__":
    main(int(sys.argv[2]), int(sys.argv[3]), Path(os.environ["CHAOS_LOG"]))
