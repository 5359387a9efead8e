"""beltline init: a tasks.py and a beltline.toml to start from, never over something that is there."""

from pathlib import Path

import click
from msgspec import Struct

from beltline.cli.command import Command, Session, pass_session
from beltline.cli.output import SCHEMA_VERSION
from beltline.core.errors import Refused

TASKS = '''\
"""Tasks of this project. `beltline dev` runs them and starts again when this file changes."""

from beltline import App, Retry

app = App()


@app.task(retry=Retry(attempts=3), timeout=30)
def greet(name: str) -> str:
    return f"Hello, {name}!"


@app.task
def count(text: str) -> int:
    return len(text.split())


@app.task
def report(numbers: list[int]) -> str:
    return f"{sum(numbers)} words in {len(numbers)} lines"


@app.task
def lines(text: str) -> list[str]:
    return text.splitlines()


# A line of stages with a queue between every two: split a text into lines, count each, gather the numbers.
words = app.chain("words", lines >> count.each() >> report.gather())
'''

SETTINGS = """\
# Every key can also be given as an environment variable (BELTLINE_URL) or a flag (--url). `beltline config show` says what holds and why.
app = "tasks:app"
url = "sqlite:///beltline.db"

# Slots of a queue that names none of its own.
slots = 4
"""

FILES = {"tasks.py": TASKS, "beltline.toml": SETTINGS}
NEXT = ("beltline dev", "beltline send greet World --wait", "beltline send words 'one two three' --wait", "beltline chain show words")


class Made(Struct, frozen=True, kw_only=True):
    version: int = SCHEMA_VERSION
    folder: str
    files: list[str]
    next: list[str]


@click.command(cls=Command, shape=Made)
@pass_session
def init(session: Session) -> None:
    """Write tasks.py and beltline.toml into this folder. Refuses if one of them is there."""
    folder = Path.cwd()
    there = [name for name in FILES if (folder / name).exists()]
    if there:
        raise Refused(
            f"{' and '.join(there)} {'is' if len(there) == 1 else 'are'} already here.",
            why="Nothing was written.",
            help="Go to an empty folder, or start with what is there: beltline dev",
        )
    for name, text in FILES.items():
        try:
            with (folder / name).open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise Refused(f"{folder / name} cannot be written.", why=f"{error}.", help="Choose a folder this user may write to.") from None
    item = Made(folder=str(folder), files=list(FILES), next=list(NEXT))
    lines = [f"Written: {', '.join(FILES)}", "", "Next, in two terminals:", *(f"  {command}" for command in NEXT)]
    session.out.thing(item, lambda: lines, id="\n".join(FILES))
