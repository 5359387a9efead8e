"""Writes docs/errors.md: one section per error code, from the tree in beltline/core/errors.py and the words below.

    python tools/errors_page.py            write the page
    python tools/errors_page.py --check    exit 1 if the page is stale (tests/test_docs.py does the same)

The class, its place in the tree, its short meaning, the text it prints and the exit code of the command line come from the code. A code without words
here, and words without a code, are an error: whoever adds a class says at once what became of the data and what to do.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from beltline.cli.problems import exit_code
from beltline.core import errors
from beltline.core.errors import BeltlineError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "errors.md"


class Words(NamedTuple):
    """`means`, `lost` (is anything lost?), `do` (what to do), and one error as a user might meet it (None: a base class)."""

    means: str
    lost: str
    do: str
    sample: BeltlineError | None = None


RUN = "0199aa3e5c0a7b1c8e2f4d6a9b0c1d2e"

WORDS: dict[str, Words] = {
    "BLT-100": Words(
        "The calling program, or the command line, asked for something that cannot be. This class is also the base of all codes that begin with BLT-1, "
        "BLT-2 and BLT-6: `except UsageError` catches your own mistakes and nothing else.",
        "No. It is raised before anything is written.",
        "Mend the call. Repeating it as it is cannot help, so never retry on it.",
        errors.UsageError("tasks has no App called 'ap'.", help="Apps there: app."),
    ),
    "BLT-101": Words(
        "A setting is unknown or out of its range. The text names the key, the value, what is allowed, and where the value came from: a flag, an environment "
        "variable, or the file and line. A value in a file is checked even when a flag hides it.",
        "No. A process with a wrong setting does not start.",
        "Correct the value at the place that the text names. `beltline config show` prints every setting and its origin.",
        errors.ConfigInvalid(key="drain_s", value="-1", allowed="seconds 0..3600", origin="BELTLINE_DRAIN_S"),
    ),
    "BLT-102": Words(
        "A name of a queue, task, chain or stage holds a character that is not allowed, or is too long; or an id is no UUID. Names are checked once, so that "
        "no query, file or label is ever built from an unchecked text.",
        "No. Nothing was sent or changed.",
        "Use A-Z a-z 0-9 `_` `.` `-`, at most 80 characters, the first a letter or digit. Ids are UUIDs in any usual writing.",
        errors.NameInvalid(kind="queue", name="my queue"),
    ),
    "BLT-103": Words(
        "Beltline does not know what to do with this engine URL: an unknown scheme, an unknown option, or a store that the command cannot reach "
        "(`memory://` lives inside one process).",
        "No. No store was opened.",
        "Use `sqlite:///beltline.db` (relative), `sqlite:////var/lib/app/beltline.db` (absolute: four slashes), `postgresql://user@host/database` "
        "([all options](howto/postgresql.md#the-url)) or `memory://`.",
        errors.UrlInvalid("mysql://db/app", why="Nothing is known about mysql://.", help="Use one of: sqlite:///beltline.db, postgresql://localhost/app, memory://"),
    ),
    "BLT-104": Words(
        "A part of Beltline needs a package that is not installed. The base install is kept small on purpose.",
        "No.",
        "Install the extra that the text names.",
        errors.ExtraMissing(extra="demo", needed_for="The demo"),
    ),
    "BLT-201": Words(
        "A task declaration cannot work: not a function, a generator, an annotation that cannot be resolved, a type that no queue can carry, a second task "
        "of the same name, a resource that is missing or needs itself.",
        "No. It is raised where the task is declared, or when a worker starts, before it receives anything.",
        "Mend the declaration. `app.check()` looks at all tasks at once, which makes a good test.",
        errors.TaskInvalid("Task unzip is a generator.", help="Return a list, or split the work with a chain: a >> b.each()."),
    ),
    "BLT-202": Words(
        "The stages of a chain do not fit together: one returns what the next does not take, a `gather` has no split before it, two stages share a queue or a name.",
        "No. It is raised where the chain is declared.",
        "Mend the line. A task that stands in it twice needs a name for one of the stages: `task.stage(name=…)`.",
        errors.ChainInvalid("Chain 'album' does not fit together: tasks.watermark gives Photo, tasks.count takes int as 'number'."),
    ),
    "BLT-203": Words(
        "No task or chain of this name is registered in the app, or several tasks share the short name that was given.",
        "No. A *message* whose task no worker knows is another matter: it is parked in its queue and never lost. "
        "See [How to lose a message](explanation/how-to-lose-a-message.md).",
        "Correct the name, or import the module that declares the task before the app is used.",
        errors.TaskUnknown("resise", known=("tasks.resize", "tasks.watermark")),
    ),
    "BLT-204": Words(
        "The arguments do not fit the task's signature. The fields `parameter`, `expected` and `got` say which one and why. The same check runs again in the "
        "worker: a message that does not fit there is dead-lettered with the reason `invalid_arguments` and is not retried.",
        "No. At the send nothing was stored. In the worker the message is kept as a dead letter.",
        "Correct the call. For a dead letter: `beltline message edit ID JSON`, then `beltline dead redrive ID`; or deploy code that takes the old arguments, and redrive.",
        errors.InvalidArguments(task="tasks.resize", parameter="width", expected="int", got="str", detail="Expected `int`, got `str`."),
    ),
    "BLT-205": Words(
        "A send, a receive or a control action names a queue that nobody has declared in this store. Queues of tasks and stages are declared by the app itself; "
        "a sender that knows only a name has to wait until a worker, or an app, has declared the queue once.",
        "No. Nothing of the call was stored.",
        "Correct the name, start a worker of that queue once, or declare it: `app.queue('name')`.",
        errors.QueueNotDeclared("thumbs", known=("mail", "thumbnail")),
    ),
    "BLT-206": Words(
        "A queue or chain needs more than the engine carries. It is found where the queue is declared, never first at a send. "
        "The engines of this version carry everything that this version can ask for, except that memory has no transactions of yours; so you meet it there, or with an engine of "
        "somebody else's.",
        "No. Nothing was declared.",
        "Choose another engine, or ask for less.",
        errors.Unsupported(feature="results", need=1, have=0, engine="mine", engines=("memory", "sqlite", "postgresql")),
    ),
    "BLT-207": Words(
        "The packed arguments, or the number of parts of one split, are above the limit. For bodies the limit is 1 MiB unless you set another.",
        "No. At a send nothing was stored. When a result is too large for the next stage, the message before it is kept as a dead letter.",
        "Send the address of the content (a path, a key) instead of the content. Or raise `max_body`: `App(max_body=…)`, `BELTLINE_MAX_BODY=4M`.",
        errors.BodyTooLarge(size_bytes=2_097_310, limit_bytes=1_048_576),
    ),
    "BLT-208": Words(
        "A number or value is out of its range: a negative delay, a priority of 1000, a datetime without a zone, a value that MessagePack cannot carry "
        "(an int of more than 64 bits, text with a lone surrogate, a circle).",
        "No. Nothing was sent or changed.",
        "Correct the value. Durations are seconds or a `timedelta`, instants are `datetime`s with a zone, priorities are -100 to 100.",
        errors.ValueInvalid(name="priority", value=1000, allowed="a whole number from -100 to 100"),
    ),
    "BLT-209": Words(
        "`current()` was called where no delivery is running: at import, in a function called directly, or in a thread that the task started itself.",
        "No.",
        "Call `current()` in the task and hand its values on. In a test, call the part of the code that does not need it.",
        errors.NoDelivery(),
    ),
    "BLT-601": Words(
        "A schedule can never be due as it is written: a cron expression that is none, or that no date fits; a time zone nobody knows; both `cron` and `every`; "
        "an interval below a second. Also: two schedules of one app with one name.",
        "No. It is raised where the schedule is declared or added. A schedule that was stored by a host with newer time zones keeps this text as its error and is looked at again every minute.",
        "Correct it. `beltline schedule next --cron '30 2 * * *' --tz Europe/Berlin` prints when an expression is due, changes of the clock marked.",
        errors.ScheduleInvalid("nightly", "There is no time zone 'Europe/Berlim'.", help="Did you mean 'Europe/Berlin'?"),
    ),
    "BLT-301": Words(
        "The queue has a bound (`max_backlog`) and this send would lift it above. Nobody is at fault: the workers are slower than the senders. "
        "Hand-offs inside a chain are never refused; a full stage stalls the stage before it instead.",
        "No. Nothing of the batch was stored.",
        "Send again later, slow the sender down, or add workers. The ids of the batch are still free.",
        errors.QueueFull(queue="resize", bound=10_000),
    ),
    "BLT-302": Words(
        "There is no such message, run, queue, chain or worker. An id that was never sent is never reported as pending.",
        "Either it was never sent to this store, or it ended so long ago that its history was dropped (7 days unless the worker says otherwise).",
        "Check the id, and that you look at the right store: `beltline config show` prints the URL in use.",
        errors.NotFound(kind="message or run", name=RUN),
    ),
    "BLT-303": Words(
        "The task succeeded, and its result was kept for its `result_ttl`; that time is over. It is *expired*, not *unknown*: the run itself is on record.",
        "The result is gone; the fact that it succeeded is not.",
        "Ask sooner, or keep results longer: `@app.task(result_ttl=7 * 86400)`, `app.chain(…, result_ttl=…)`.",
        errors.ResultExpired(RUN),
    ),
    "BLT-304": Words(
        "`result(timeout=…)` waited as long as you said, and the message has not ended. The text says which state it is in. The class is a `TimeoutError` too.",
        "No. The message goes on as if you had never asked.",
        "Ask again later. If it stays *ready*, `beltline message why ID` says why nothing runs it.",
        errors.ResultTimeout(RUN, state="ready", timeout_s=5.0),
    ),
    "BLT-305": Words(
        "You asked for a result, and the message or run ended without one. `outcome` says how: `dead`, `cancelled` or `expired`. "
        "`type`, `text` and `traceback` are those of the error in the worker, as text: exceptions never travel as objects.",
        "No. A dead message waits among the dead letters with its reason and history.",
        "Read the text; mend the cause; `beltline dead redrive ID`. The handle's `result()` works again after the redrive.",
        errors.TaskFailed(RUN, outcome="dead", type="OSError", text="No space left on device"),
    ),
    "BLT-306": Words(
        "Stored bytes no longer fit the type that the code declares: the signature or a return type has changed while messages or results were waiting.",
        "No. A message that cannot be read is dead-lettered with the reason; a result that cannot be read is still stored.",
        "Add parameters with defaults, so that old bodies still fit. Or edit the dead letters and redrive them.",
        errors.MessageInvalid("The stored value does not fit int: Expected `int`, got `str`."),
    ),
    "BLT-307": Words(
        "The action does not apply to the state the message is in (redriving one that is not dead, editing one that runs), or nothing matched, or nobody was "
        "there to say yes to a command that changes messages for good.",
        "No. Nothing was changed.",
        "`beltline message show ID` says where it stands. Commands that delete or cancel take `--dry-run` to look and `--yes` to act without a question.",
        errors.Refused("No dead message matches.", why="Nothing was changed."),
    ),
    "BLT-400": Words(
        "The base of all errors that come from the store. It is not raised itself.",
        "See the class that was raised.",
        "Catch `EngineError` where you want to treat all troubles of the store alike.",
    ),
    "BLT-401": Words(
        "The store did not answer as it should: a full disk, an I/O error, a file that is gone, a lock that was not given; a server that is down, silent, a standby now, or stopped the "
        "statement. The field `effect` is the important one: "
        "`none` means that certainly nothing happened, `unknown` means that it may have happened.",
        "Nothing that was acknowledged before. With `effect` *unknown* the very call you made may or may not be stored.",
        "With *none*: repeat it when the store is well. With *unknown*: repeat it **with the same id**, which stores it once in either case; "
        "after a failed send the ids stand in `error.ids`, and `task.with_options(id=…)` takes one. `send` itself has repeated it three times already.",
        errors.EngineUnavailable("beltline.db could not be read or written (disk I/O error).", effect="unknown", help="Look at the disk and the system's log."),
    ),
    "BLT-402": Words(
        "The file or schema belongs to another program, or is damaged, or its functions do not fit this version. Beltline writes its own mark into a database and refuses every one "
        "without it.",
        "No. It was opened to look, and nothing was written.",
        "Check the path. If it should be Beltline's own file: restore a backup. Make backups with SQLite's backup command or `VACUUM INTO`, never by copying a file in use. On PostgreSQL: "
        "give Beltline a schema of its own, `?schema=…`, and compare versions with `beltline migrate --check`.",
        errors.EngineForeign(
            "notes.db is a SQLite database of another program.", why="Nothing in it was changed.", help="Give Beltline a path of its own."
        ),
    ),
    "BLT-403": Words(
        "A newer version of Beltline has written this store, in a form that this version cannot read.",
        "No. This version refused before it changed anything.",
        "Upgrade this process. Until then the newer workers go on undisturbed.",
        errors.EngineTooNew(
            "beltline.db was written by a newer Beltline (schema 9; this one reads up to 1).",
            why="Nothing in it was changed.",
            help="Upgrade this installation: pip install --upgrade beltline",
        ),
    ),
    "BLT-404": Words(
        "The place or a setting cannot hold what is promised: a network file system, a file that others may write, a library with a known fault; on PostgreSQL a read replica, "
        "`fsync = off`, `synchronous_commit = off`.",
        "No. The store was not opened.",
        "Put the file on a local disk, take the right to write it from others (`chmod go-w`), upgrade the library, give the URL of the primary, set the setting on or ask for `durability=os`: the text says which.",
        errors.EngineUnsafe(
            "/mnt/shared is on a network file system (nfs4).",
            why="Its locks do not hold between hosts: messages would be lost or handed out twice.",
            help="Put the file on a local disk. For workers on several hosts use an engine that is a server.",
        ),
    ),
    "BLT-405": Words(
        "An engine was used before it was opened, after it was closed, or in a process that was forked from the one that opened it. Or a connection was given that does not lead to "
        "the engine's own database, or a transaction that the task ended itself.",
        "No. Nothing was done.",
        "Open the app in the process that uses it. Start children with *spawn* or *forkserver*, or close the app before a fork: while the parent has a SQLite file open, a "
        "forked child cannot open it.",
        errors.HandleMisused(
            "A SQLite engine was carried over a fork.",
            why="Its locks belong to the parent: using it here would damage the file.",
            help="Make an engine in the child, and start processes with spawn or forkserver.",
        ),
    ),
    "BLT-406": Words(
        "The tables of the database are of an older version than this Beltline can work with: the new version was started before its migration.",
        "No. Nothing was stored or changed.",
        "Run `beltline migrate` once, then start the process again. Workers of the version before go on working meanwhile: "
        "[keeping the tables up to date](howto/migrate.md).",
        errors.EngineTooOld(
            "Schema beltline of postgresql://localhost/app is at version 1; this Beltline needs at least 2.",
            why="Nothing in it was changed.",
            help="Run `beltline migrate` once; workers of the version before go on working.",
        ),
    ),
    "BLT-407": Words(
        "The queues have moved to another store, or are moving at this moment (`beltline engine move`), and this process still uses the old one; or it uses the new one "
        "before the move is complete. `error.to` is the URL of the new store, without its password.",
        "No. Nothing was stored here. What is in the old store is copied, and what a worker had leased may still be settled until the copying begins.",
        "Give the process the new URL and start it again. After an interrupted move: run the same `beltline engine move` again, or take it back with `--abort`: "
        "[from SQLite to PostgreSQL](howto/move-to-postgresql.md).",
        errors.EngineMoved(
            "The queues of sqlite:////var/lib/app/beltline.db have moved to postgresql://db.example/app.",
            to="postgresql://db.example/app",
            why="Nothing was stored here.",
            help="Give this process the new URL and start it again: postgresql://db.example/app",
        ),
    ),
    "BLT-900": Words(
        "The root of the tree. Raised itself it means a mistake of Beltline's own: the command line reports whatever nothing else describes under this code.",
        "What was acknowledged before is stored.",
        "Run the command again with `--debug`, and report what it shows.",
        BeltlineError("KeyError: 'x'", why="This is a bug of Beltline, not of yours."),
    ),
}  # fmt: skip

HEAD = """\
<!-- Written by tools/errors_page.py. Change the words there, not here. -->

# Errors

Every error of Beltline is a `BeltlineError` and has one code. It says what went wrong (`error.what`), what became of the data (`error.why`) and what to do
(`error.help`). Match on the class, never on the text: texts get better, classes and codes stay.

```python
from beltline import App, InvalidArguments

app = App("memory://")


@app.task
def resize(name: str, width: int) -> str: ...


try:
    resize.send("cat.jpg", "wide")  # type: ignore[arg-type]
except InvalidArguments as error:
    assert error.code == "BLT-204"
    assert (error.parameter, error.expected, error.got) == ("width", "int", "str")
```

The classes you will want to name in code stand in `beltline`; all of them in `beltline.core.errors`. On the command line an error looks like this, and every
code has an [exit code](howto/command-line.md#exit-codes):

```console
error[BLT-302]: There is no message or run '0199aa3e5c0a7b1c8e2f4d6a9b0c1d2e'.
  It was never sent here, or its history is over.
```

"""


def classes(root: type[BeltlineError] = BeltlineError) -> Iterator[type[BeltlineError]]:
    """Every class of the tree in beltline.core, bases first."""
    yield root
    for kind in root.__subclasses__():
        if kind.__module__ == errors.__name__:
            yield from classes(kind)


def short_meanings() -> dict[str, str]:
    """Class name -> its line in the drawing of the tree."""
    assert errors.__doc__ is not None
    rows = re.findall(r"[├└│ ]*[├└] (\w+) +(?:BLT-\d{3}  )?(.+)", errors.__doc__)
    return {"BeltlineError": "the root of all", "EngineError": "whatever comes from the store", **{name: meaning.strip() for name, meaning in rows}}


def page() -> str:
    """The whole page. Raises SystemExit when codes and words do not fit together."""
    found: dict[str, type[BeltlineError]] = {}
    for kind in classes():
        if kind.code in found:
            raise SystemExit(f"{found[kind.code].__name__} and {kind.__name__} share the code {kind.code}")
        found[kind.code] = kind
    if found.keys() != WORDS.keys():
        without, stale = sorted(found.keys() - WORDS.keys()), sorted(WORDS.keys() - found.keys())
        raise SystemExit(f"tools/errors_page.py: codes without words: {without}; words without a code: {stale}")
    meanings = short_meanings()
    index = [f"| [{code}](#{code.lower()}) | `{kind.__name__}` | {_cell(meanings[kind.__name__])} |" for code, kind in sorted(found.items())]
    sections = [_section(code, kind, WORDS[code]) for code, kind in sorted(found.items())]
    return HEAD + "\n".join(["| code | class | in short |", "|---|---|---|", *index]) + "\n\n" + "\n".join(sections)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _section(code: str, kind: type[BeltlineError], words: Words) -> str:
    bases = [base.__name__ for base in kind.__mro__[1:] if issubclass(base, Exception) and base is not Exception and base is not OSError]
    lines = [
        f"## {code}",
        "",
        f"**`{kind.__name__}`**" + (f", a kind of {', '.join(f'`{name}`' for name in bases)}." if bases else ", the root of the tree."),
        "",
    ]
    if words.sample is not None:
        assert type(words.sample) is kind, f"the sample of {code} is a {type(words.sample).__name__}"
        lines += ["```text", str(words.sample), "```", ""]
    lines += [words.means, "", f"- **Is anything lost?** {words.lost}", f"- **What to do:** {words.do}"]
    fields = sorted(name for name in (vars(words.sample) if words.sample is not None else ()) if name not in ("what", "why", "help"))
    if fields:
        lines.append(f"- **Fields:** {', '.join(f'`{name}`' for name in fields)}")
    if words.sample is not None:
        lines.append(f"- **Exit code of the command line:** {_exits(words.sample)}")
    return "\n".join([*lines, ""])


def _exits(sample: BeltlineError) -> str:
    if isinstance(sample, errors.EngineUnavailable):
        codes = {effect: exit_code(errors.EngineUnavailable("", effect=effect)) for effect in ("none", "unknown")}  # type: ignore[arg-type]  # both words are literals
        return ", ".join(f"{number} (`{effect}`)" for effect, number in codes.items())
    return str(exit_code(sample))


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        fresh = PAGE.exists() and PAGE.read_text(encoding="utf-8") == text
        print(f"docs/errors.md is {'fresh' if fresh else 'stale: run tools/errors_page.py'}")
        return 0 if fresh else 1
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote docs/errors.md: {len(WORDS)} codes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
