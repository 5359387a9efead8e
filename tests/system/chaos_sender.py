"""Sends items with ids made from their numbers, and writes down each number only after the send has returned. Killed and started again, it goes on where it stood."""

import os
import sys
from pathlib import Path
from uuid import UUID

from tests.system.chaos_line import app


def item_id(number: int) -> str:
    return UUID(int=(0x0199 << 112) | (7 << 76) | (2 << 62) | number).hex


def main(chain_name: str, items: int, log: Path) -> None:
    chain = app.chains[chain_name]
    with (log / "acknowledged.log").open("ab", buffering=0) as file, app:
        done = len((log / "acknowledged.log").read_bytes().splitlines())
        for number in range(done, items):
            chain.with_options(id=item_id(number)).send(number)
            file.write(b"%d\n" % number)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(os.environ["CHAOS_LOG"]))
