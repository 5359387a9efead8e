"""One tree of errors. Each says whose fault it is, what happened to the data, and what to do next.

BeltlineError
├ UsageError            the calling program is wrong; repeating it cannot help
│ ├ ConfigInvalid       BLT-101  a setting: key, value, range, origin
│ ├ NameInvalid         BLT-102  a queue, task, chain or stage name, or an id
│ ├ UrlInvalid          BLT-103  an engine URL nobody understands
│ ├ ExtraMissing        BLT-104  an optional package that is not installed
│ ├ TaskInvalid         BLT-201  a task declaration
│ ├ ChainInvalid        BLT-202  a chain whose stages do not fit together
│ ├ TaskUnknown         BLT-203  no task of this name
│ ├ InvalidArguments    BLT-204  arguments that do not fit the signature: parameter, expected, got
│ ├ QueueNotDeclared    BLT-205  a queue nobody declared
│ ├ Unsupported         BLT-206  the engine's number is below the need: feature, need, have, engines that have it
│ ├ BodyTooLarge        BLT-207  size and limit
│ ├ ValueInvalid        BLT-208  a number out of its range (negative delay, lease of NaN seconds)
│ ├ NoDelivery          BLT-209  current() outside of a task
│ └ ScheduleInvalid     BLT-601  a schedule that can never be due as it is written: cron expression, zone, interval
├ QueueFull             BLT-301  nobody's fault: slow down (queue, bound)
├ NotFound              BLT-302  an id that was never sent is never "pending"
├ ResultExpired         BLT-303  it was there, its time is over
├ ResultTimeout         BLT-304  not ended within the time given; it goes on
├ TaskFailed            BLT-305  the task ended without a result: dead-lettered, cancelled or expired (carries the remote failure as text)
├ MessageInvalid        BLT-306  stored bytes no longer fit the declared types: dead-letter with the reason, never a crash
├ Refused               BLT-307  a control action that does not apply to the message's state
└ EngineError
  ├ EngineUnavailable   BLT-401  the store; `effect` is "none" (certainly did not happen) or "unknown" (may have: repeat with the same id)
  ├ EngineForeign       BLT-402  the file or database belongs to something else, or is damaged
  ├ EngineTooNew        BLT-403  written by a newer Beltline: this one refuses, nothing was changed
  ├ EngineTooOld        BLT-406  its tables are of a version that this one cannot work with yet: beltline migrate
  ├ EngineUnsafe        BLT-404  a place or setting that cannot hold the promised durability
  ├ EngineMoved         BLT-407  the queues have moved to another store (`to`): nothing was stored here
  └ HandleMisused       BLT-405  used after close, or carried over a fork
"""

from typing import ClassVar, Literal

DOCS = "docs/errors.md"
SHOWN = 120  # characters of a refused value


class BeltlineError(Exception):
    """What went wrong (`what`), why that is safe or not (`why`), how to repair it (`help`), and one code for it all."""

    code: ClassVar[str] = "BLT-900"

    def __init__(self, what: str, *, why: str = "", help: str = "") -> None:
        self.what = what
        self.why = why
        self.help = help
        super().__init__(what, why, help)

    def __str__(self) -> str:
        return " ".join(part for part in (self.what, self.why, self.help) if part)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.why, self.help, dict(self.__dict__)))


def _rebuild(kind: type[BeltlineError], what: str, why: str, help: str, fields: dict[str, object]) -> BeltlineError:
    error = kind.__new__(kind)
    BeltlineError.__init__(error, what, why=why, help=help)
    error.__dict__.update(fields)
    return error


class UsageError(BeltlineError):
    """The calling program is wrong; never retried."""

    code = "BLT-100"


class ConfigInvalid(UsageError):
    """A setting out of its range. Carries key, value, origin (flag, environment variable, file) and what is allowed."""

    code = "BLT-101"

    def __init__(self, *, key: str, value: object, allowed: str, origin: str, help: str = "") -> None:
        self.key, self.value, self.allowed, self.origin = key, value, allowed, origin
        super().__init__(f"{key} = {value!r} is not allowed (from {origin}).", why=f"Allowed: {allowed}.", help=help)


class NameInvalid(UsageError):
    code = "BLT-102"

    def __init__(self, *, kind: str, name: object) -> None:
        self.kind, self.name = kind, name
        shown = repr(name) if len(repr(name)) <= 100 else repr(name)[:97] + "..."
        if kind == "id":
            super().__init__(f"{shown} is not an id.", why="Ids are UUIDs: 32 hex digits, with or without dashes.")
        else:
            why = "Names have 1 to 80 characters of A-Z a-z 0-9 _ . - and start with a letter or digit."
            super().__init__(f"{shown} is not a valid {kind} name.", why=why)


class UrlInvalid(UsageError):
    code = "BLT-103"

    def __init__(self, url: str, *, why: str, help: str = "") -> None:
        self.url = url
        super().__init__(f"The engine URL {url!r} cannot be used.", why=why, help=help)


class ExtraMissing(UsageError):
    code = "BLT-104"

    def __init__(self, *, extra: str, needed_for: str) -> None:
        self.extra, self.needed_for = extra, needed_for
        super().__init__(f"{needed_for} needs packages that are not installed.", help=f"Install them: pip install 'beltline[{extra}]'")


class TaskInvalid(UsageError):
    code = "BLT-201"


class ChainInvalid(UsageError):
    code = "BLT-202"


class TaskUnknown(UsageError):
    code = "BLT-203"

    def __init__(self, name: str, *, known: tuple[str, ...] = (), help: str = "") -> None:
        self.name, self.known = name, known
        super().__init__(f"No task or chain is called {name!r}.", why=f"Known: {', '.join(known) or 'none'}.", help=help)


class InvalidArguments(UsageError):
    """Carries task, parameter, expected and got; `parameter` is "" when the call as a whole does not fit."""

    code = "BLT-204"

    def __init__(self, *, task: str, parameter: str, expected: str, got: str, detail: str = "") -> None:
        self.task, self.parameter, self.expected, self.got, self.detail = task, parameter, expected, got, detail
        where = f"argument {parameter!r} of {task}" if parameter else f"the arguments of {task}"
        super().__init__(f"{where[0].upper()}{where[1:]}: expected {expected}, got {got}.", why=detail, help="Correct the call or the signature.")


class QueueNotDeclared(UsageError):
    code = "BLT-205"

    def __init__(self, queue: str, *, known: tuple[str, ...]) -> None:
        from difflib import get_close_matches

        self.queue, self.known = queue, known
        near = get_close_matches(queue, known, n=1)
        help = f"Did you mean {near[0]!r}?" if near else "Declare it or fix the name."
        super().__init__(f"Queue {queue!r} is not declared.", why=f"Known: {', '.join(known) or 'none'}.", help=help)


class Unsupported(UsageError):
    """Raised where a queue or chain is declared, never first at send time."""

    code = "BLT-206"

    def __init__(self, *, feature: str, need: object, have: object, engine: str, engines: tuple[str, ...] = ()) -> None:
        self.feature, self.need, self.have, self.engine, self.engines = feature, need, have, engine, engines
        can = f"Engines that can: {', '.join(engines)}." if engines else ""
        super().__init__(f"{feature} = {need} is more than engine {engine!r} carries ({have}).", why=can)


class BodyTooLarge(UsageError):
    code = "BLT-207"

    def __init__(self, *, size_bytes: int, limit_bytes: int, what: str = "The body") -> None:
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes
        super().__init__(
            f"{what} has {size_bytes:,} bytes; the limit is {limit_bytes:,}.",
            help="Nothing was stored. Send a path or key instead of the content, or raise max_body (BELTLINE_MAX_BODY).",
        )


class ValueInvalid(UsageError):
    code = "BLT-208"

    def __init__(self, *, name: str, value: object, allowed: str) -> None:
        self.name, self.value, self.allowed = name, value, allowed
        shown = repr(value)
        if len(shown) > SHOWN:  # a key of 10 kB would push the rest of the message off the screen
            shown = f"{shown[:SHOWN]}… ({len(shown):,} characters)"
        super().__init__(f"{name} = {shown} is not allowed.", why=f"Allowed: {allowed}.")


class NoDelivery(UsageError):
    code = "BLT-209"

    def __init__(self) -> None:
        super().__init__("current() was called outside of a task.", why="It describes the delivery that a worker is running.")


class ScheduleInvalid(UsageError):
    """Carries the schedule's name. `what` of the message goes on after it."""

    code = "BLT-601"

    def __init__(self, name: object, what: str, *, help: str = "") -> None:
        self.name = name
        super().__init__(f"Schedule {name!r}: {what}", help=help)


class QueueFull(BeltlineError):
    """The queue is bounded and at its bound: nothing of the batch was stored; slow down or send again later."""

    code = "BLT-301"

    def __init__(self, *, queue: str, bound: int) -> None:
        self.queue, self.bound = queue, bound
        super().__init__(f"Queue {queue!r} is full (bound {bound:,}).", why="Nothing of this batch was stored.", help="Send it again later.")


class NotFound(BeltlineError):
    code = "BLT-302"

    def __init__(self, *, kind: str, name: str) -> None:
        self.kind, self.name = kind, name
        super().__init__(f"There is no {kind} {name!r}.", why="It was never sent here, or its history is over.")


class ResultExpired(BeltlineError):
    code = "BLT-303"

    def __init__(self, id: str) -> None:
        self.id = id
        super().__init__(f"The result of {id} has expired.", why="It was kept for its result_ttl.")


class ResultTimeout(BeltlineError, TimeoutError):
    code = "BLT-304"

    def __init__(self, id: str, *, state: str, timeout_s: float) -> None:
        self.id, self.state, self.timeout_s = id, state, timeout_s
        super().__init__(f"{id} has not ended within {timeout_s:g} s; it is {state}.", why="It goes on; ask again.")


class TaskFailed(BeltlineError):
    """The message or run ended without a result. `outcome` is dead, cancelled or expired; `type`, `text` and `traceback` are the remote's, as text."""

    code = "BLT-305"

    def __init__(self, id: str, *, outcome: str, type: str = "", text: str = "", traceback: str = "") -> None:
        self.id, self.outcome, self.type, self.text, self.traceback = id, outcome, type, text, traceback
        cause = ": ".join(part for part in (type, text) if part)
        super().__init__(f"{id} ended as {outcome}" + (f" ({cause})." if cause else "."))


class MessageInvalid(BeltlineError):
    code = "BLT-306"


class Refused(BeltlineError):
    code = "BLT-307"


class EngineError(BeltlineError):
    code = "BLT-400"


class EngineUnavailable(EngineError):
    """The store did not answer as it should. `effect`: "none" = certainly nothing happened; "unknown" = it may have: repeat with the same id.

    `forbidden`: it is there, and this user has not the right.
    """

    code = "BLT-401"

    def __init__(self, what: str, *, effect: Literal["none", "unknown"], help: str = "", forbidden: bool = False) -> None:
        self.effect: Literal["none", "unknown"] = effect
        self.forbidden = forbidden
        self.ids: list[str] = []  # of a send: the ids to repeat it with
        why = "Nothing was stored." if effect == "none" else "It may have been stored: repeating with the same id is safe."
        super().__init__(what, why=why, help=help)


class EngineForeign(EngineError):
    code = "BLT-402"


class EngineTooNew(EngineError):
    code = "BLT-403"


class EngineTooOld(EngineError):
    code = "BLT-406"


class EngineMoved(EngineError):
    """The queues have moved, or are moving, to another store; nothing was stored here. `to`: its URL without password."""

    code = "BLT-407"

    def __init__(self, what: str, *, to: str, why: str = "", help: str = "") -> None:
        self.to = to
        super().__init__(what, why=why, help=help)


class EngineUnsafe(EngineError):
    code = "BLT-404"


class HandleMisused(EngineError):
    code = "BLT-405"
