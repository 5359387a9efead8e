"""The tree of errors: one code each, texts that help, and the drawing of it that rules."""

import inspect
import pickle  # noqa: TID251 - exceptions cross process borders this way in the standard library (multiprocessing, futures)
import re
from collections.abc import Callable

import pytest

from beltline.core import errors
from beltline.core.errors import BeltlineError

MAKE: dict[type[BeltlineError], Callable[[], BeltlineError]] = {
    errors.ConfigInvalid: lambda: errors.ConfigInvalid(key="drain_s", value=-1, allowed="0 to 3600", origin="BELTLINE_DRAIN_S", help="Use 0."),
    errors.NameInvalid: lambda: errors.NameInvalid(kind="queue", name="a b"),
    errors.UrlInvalid: lambda: errors.UrlInvalid("mysql://x", why="No engine is called mysql.", help="Use sqlite:///work.db."),
    errors.ExtraMissing: lambda: errors.ExtraMissing(extra="demo", needed_for="The demo"),
    errors.TaskInvalid: lambda: errors.TaskInvalid("Task 'a' has *args.", why="A queue carries named arguments.", help="Name them."),
    errors.ChainInvalid: lambda: errors.ChainInvalid("Stages do not fit.", why="a gives str, b takes int."),
    errors.TaskUnknown: lambda: errors.TaskUnknown("resise", known=("resize",), help="Did you mean resize?"),
    errors.InvalidArguments: lambda: errors.InvalidArguments(task="resize", parameter="width", expected="int", got="str"),
    errors.QueueNotDeclared: lambda: errors.QueueNotDeclared("thumbs", known=("mail", "thumb")),
    errors.Unsupported: lambda: errors.Unsupported(feature="max_delay_s", need=1e6, have=900, engine="sqs", engines=("sqlite",)),
    errors.BodyTooLarge: lambda: errors.BodyTooLarge(size_bytes=2_000_000, limit_bytes=1_048_576),
    errors.ValueInvalid: lambda: errors.ValueInvalid(name="delay", value=-1, allowed="0 or more"),
    errors.NoDelivery: errors.NoDelivery,
    errors.ScheduleInvalid: lambda: errors.ScheduleInvalid("nightly", "there is no time zone 'Mars'.", help="Did you mean 'UTC'?"),
    errors.QueueFull: lambda: errors.QueueFull(queue="mail", bound=1000),
    errors.NotFound: lambda: errors.NotFound(kind="message", name="0" * 32),
    errors.ResultExpired: lambda: errors.ResultExpired("0" * 32),
    errors.ResultTimeout: lambda: errors.ResultTimeout("0" * 32, state="ready", timeout_s=2.5),
    errors.TaskFailed: lambda: errors.TaskFailed("0" * 32, outcome="dead", type="ValueError", text="no", traceback="Traceback …"),
    errors.MessageInvalid: lambda: errors.MessageInvalid("The bytes are not MessagePack."),
    errors.Refused: lambda: errors.Refused("Message 1 is leased.", why="Only dead ones can be edited."),
    errors.EngineUnavailable: lambda: errors.EngineUnavailable("The disk is full.", effect="none", help="Make room."),
    errors.EngineForeign: lambda: errors.EngineForeign("work.db is no queue.", help="Choose another file."),
    errors.EngineTooNew: lambda: errors.EngineTooNew("work.db has schema 9.", why="This Beltline knows 1.", help="Update it."),
    errors.EngineTooOld: lambda: errors.EngineTooOld("Schema beltline is at version 1.", help="Run beltline migrate."),
    errors.EngineMoved: lambda: errors.EngineMoved("The queues have moved.", to="postgresql://localhost/app", help="Use the new URL."),
    errors.EngineUnsafe: lambda: errors.EngineUnsafe("work.db lies on a network file system."),
    errors.HandleMisused: lambda: errors.HandleMisused("The engine is closed."),
}
BASES = (BeltlineError, errors.UsageError, errors.EngineError)
CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BeltlineError)]
each = pytest.mark.parametrize("kind", list(MAKE), ids=lambda kind: kind.__name__)


def test_every_class_is_tried_here() -> None:
    assert set(MAKE) | set(BASES) == set(CLASSES)


def test_one_code_one_class() -> None:
    assert len({kind.code for kind in CLASSES}) == len(CLASSES)
    assert all(re.fullmatch(r"BLT-\d{3}", kind.code) for kind in CLASSES)


def test_the_drawing_at_the_top_of_the_module_is_the_tree() -> None:
    drawn: dict[str, str] = {}
    parents: dict[str, str] = {}
    stack: list[tuple[int, str]] = []
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        match = re.match(r"([ │├└]*)([A-Z]\w+)(?:\s+(BLT-\d{3}))?(?:\s|$)", line)
        if match is None or not hasattr(errors, match[2]):
            continue
        while stack and stack[-1][0] >= len(match[1]):
            stack.pop()
        if stack:
            parents[match[2]] = stack[-1][1]
        stack.append((len(match[1]), match[2]))
        drawn[match[2]] = match[3] or ""
    assert set(drawn) == {kind.__name__ for kind in CLASSES}
    for kind in CLASSES:
        assert drawn[kind.__name__] in ("", kind.code)
        assert (drawn[kind.__name__] == "") == (kind in BASES)
        if kind is not BeltlineError:
            assert parents[kind.__name__] == kind.__bases__[0].__name__


@each
def test_an_error_says_what_happened_and_then_why_or_how_to_repair_it(kind: type[BeltlineError]) -> None:
    error = MAKE[kind]()
    parts = [part for part in (error.what, error.why, error.help) if part]
    assert str(error) == " ".join(parts)
    assert error.what
    assert not any(word in part for part in parts for word in ("None", "{", "}"))
    if "__init__" in vars(kind) and kind is not errors.TaskFailed:  # that one says what the task said
        assert error.why or error.help


@each
def test_an_error_survives_the_way_through_another_process(kind: type[BeltlineError]) -> None:
    error = MAKE[kind]()
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert again.__dict__ == error.__dict__
    assert again.args == error.args


@each
def test_the_fields_given_are_kept(kind: type[BeltlineError]) -> None:
    parameters = [name for name in inspect.signature(kind.__init__).parameters if name not in ("self", "what", "why", "help")]
    error = MAKE[kind]()
    assert all(hasattr(error, name) for name in parameters)


def test_a_time_out_can_be_caught_as_the_standard_one() -> None:
    with pytest.raises(TimeoutError):
        raise errors.ResultTimeout("0" * 32, state="ready", timeout_s=1)


def test_whether_a_send_may_have_happened_is_said_in_words() -> None:
    assert "Nothing was stored." in str(errors.EngineUnavailable("Gone.", effect="none"))
    assert "repeating with the same id is safe" in str(errors.EngineUnavailable("Gone.", effect="unknown"))


def test_usage_errors_are_told_apart_from_the_stores() -> None:
    assert not issubclass(errors.UsageError, errors.EngineError)
    for kind in MAKE:
        family = int(kind.code[4])
        assert issubclass(kind, errors.UsageError) == (family in (1, 2, 6))
        assert issubclass(kind, errors.EngineError) == (family == 4)
