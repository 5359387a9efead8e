"""The root command: fast help, exit codes, errors in one form."""

import json
import os
import pty
import subprocess
import sys

import click
import pytest

from beltline.cli.command import Command
from beltline.cli.main import COMMANDS, root
from beltline.cli.problems import EXIT_CODES, exit_code, report, unexpected
from beltline.core import errors
from tests.cli.conftest import ENDS_S


def commands(group, path=()):
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name), command


EVERY = [(" ".join(path), command) for path, command in commands(root)]


def test_help_imports_nothing_that_only_commands_need():
    code = "import sys; from beltline.cli.main import main; main(['--help']); print(*sorted(sys.modules), file=sys.stderr)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=ENDS_S)
    loaded = set(said.stderr.split())
    assert loaded.isdisjoint({"apsw", "asyncio", "PIL", "hypothesis", "rich", "psutil", "watchfiles", "uuid_utils", "logging", "subprocess"})
    assert {name for name in loaded if name.startswith("beltline.")} <= {
        "beltline.cli",
        "beltline.cli.command",
        "beltline.cli.main",
        "beltline.cli.output",
        "beltline.cli.problems",
        "beltline.cli.text",
        "beltline.core",
        "beltline.core.capabilities",
        "beltline.core.codec",
        "beltline.core.config",
        "beltline.core.errors",
        "beltline.core.flow",
        "beltline.core.limits",
        "beltline.core.names",
        "beltline.core.words",
    }


def test_help_lists_every_command_and_every_exit_code(beltline):
    said = beltline("--help")
    assert said.code == 0
    words = said.out.split()
    assert set(COMMANDS) <= set(words)
    assert {str(int(number)) for number, _ in EXIT_CODES} <= set(words)


def test_the_table_of_commands_is_what_the_modules_have():
    assert [name for name in COMMANDS if root.get_command(None, name).name != name] == []


@pytest.mark.parametrize(("name", "command"), EVERY, ids=[name for name, _ in EVERY])
def test_every_command_takes_json_and_quiet_and_has_help(beltline, name, command):
    assert isinstance(command, Command)
    assert {"as_json", "quiet", "url", "no_input", "debug"} <= {parameter.name for parameter in command.params}
    said = beltline(*name.split(), "--help")
    assert said.code == 0
    assert command.help
    assert "--json" in said.out


def test_version(run):
    said = run("--version")
    assert (said.code, said.out.split()[0]) == (0, "beltline")


def test_an_unknown_command_is_answered_with_the_near_one(beltline):
    said = beltline("quue")
    assert said.code == 2
    assert said.err.startswith("error[BLT-100]:")
    assert "Did you mean 'queue'" in said.err
    assert "help: See: beltline --help" in said.err


def test_an_unknown_option_and_an_unknown_subcommand_are_answered_too(beltline):
    assert "--state" in beltline("message", "ls", "--stat", "dead").err
    said = beltline("queue", "purg")
    assert (said.code, "'purge'" in said.err) == (2, True)


def test_an_error_is_one_object_on_stderr_with_json(beltline):
    said = beltline("queue", "ls", "--json")
    assert (said.code, said.out) == (4, "")
    found = json.loads(said.err)
    assert found["version"] == 1
    assert found["error"]["code"] == "BLT-401"
    assert found["error"]["exit_code"] == 4
    assert found["error"]["docs"] == "docs/errors.md#blt-401"


def test_a_usage_error_is_an_object_too(beltline):
    assert json.loads(beltline("queue", "ls", "--nothing", "--json").err)["error"]["exit_code"] == 2


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigInvalid(key="a", value=1, allowed="b", origin="c"), 2),
        (errors.InvalidArguments(task="t", parameter="p", expected="int", got="str"), 2),
        (errors.TaskUnknown("x"), 3),
        (errors.NotFound(kind="message", name="x"), 3),
        (errors.QueueNotDeclared("x", known=()), 3),
        (errors.ResultExpired("x"), 3),
        (errors.EngineUnavailable("x", effect="none"), 4),
        (errors.EngineUnavailable("x", effect="none", forbidden=True), 5),
        (errors.EngineUnavailable("x", effect="unknown"), 9),
        (errors.EngineTooNew("x"), 6),
        (errors.EngineForeign("x"), 6),
        (errors.Refused("x"), 6),
        (errors.QueueFull(queue="q", bound=1), 6),
        (errors.ResultTimeout("x", state="ready", timeout_s=1), 7),
        (errors.TaskFailed("x", outcome="dead"), 1),
        (errors.MessageInvalid("x"), 1),
        (unexpected(KeyError("x")), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_exit_codes(error, code):
    assert exit_code(error) == code


def test_the_form_of_an_error(capsys):
    assert report(errors.BeltlineError("What\x1b[2J", why="One.\nTwo.", help="Do.\nThis.")) == 1
    assert capsys.readouterr().err == "error[BLT-900]: What\\x1b[2J\n  One.\n  Two.\n  help: Do.\n        This.\n"


def test_our_own_bug_is_told_without_a_traceback_unless_asked(beltline, monkeypatch):
    monkeypatch.setattr("beltline.cli.queue.items", lambda *_: 1 / 0)
    said = beltline("queue", "ls", "--url", "sqlite:////dev/null/x.db")
    assert said.code == 4
    monkeypatch.setattr("beltline.cli.command.check_reachable", lambda *_, **__: 1 / 0)
    said = beltline("queue", "ls")
    assert said.code == 1
    assert "error[BLT-900]: ZeroDivisionError" in said.err
    assert "Traceback" not in said.err
    assert "Traceback" in beltline("queue", "ls", "--debug").err


def test_a_database_that_is_not_there_is_said_and_not_made(beltline, folder):
    for words in (["queue", "ls"], ["message", "ls"], ["dead", "ls"], ["fleet", "ls"], ["engine", "show"], ["health"]):
        said = beltline(*words)
        assert said.code == 4, words
        assert "There is no database file" in said.err
    assert list(folder.glob("*.db*")) == []


@pytest.mark.parametrize(("url", "code"), [("nonsense", 2), ("foo://x", 2), ("memory://x", 2), ("postgresql://x", 2), ("redis://x/y", 2)])
def test_an_engine_url_nobody_understands_is_refused(beltline, url, code):
    said = beltline("queue", "ls", "--url", url)
    assert said.code == code
    assert "error[BLT-103]" in said.err


def test_a_foreign_file_is_refused_and_not_touched(beltline, folder):
    (folder / "beltline.db").write_bytes(b"not a database" * 100)
    (folder / "beltline.db").chmod(0o600)
    said = beltline("queue", "ls")
    assert said.code == 6
    assert "error[BLT-402]" in said.err
    assert (folder / "beltline.db").read_bytes() == b"not a database" * 100


def test_whoever_stops_reading_gets_no_traceback(store, folder):
    store.send("resize", *[{"n": n} for n in range(2000)])
    command = f"{sys.executable} -m beltline message ls --limit 0 | head -n 1"
    said = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=ENDS_S, check=True)
    assert said.stdout.startswith("id\t")
    assert said.stderr == ""


def test_on_a_terminal_it_is_a_coloured_table_and_no_color_takes_the_colour(store):
    store.send("resize")
    for environ, bold in (({}, True), ({"NO_COLOR": "1"}, False)):
        shown = on_terminal("queue", "ls", environ=environ)
        assert ("\x1b[1m" in shown) is bold
        assert "\t" not in shown
        assert "queue" in shown


def test_a_narrow_terminal_gets_narrow_lines(store):
    store.send("resize", task="tasks." + "x" * 70)
    shown = on_terminal("message", "ls", environ={"COLUMNS": "90", "NO_COLOR": "1"})
    assert max(len(line) for line in shown.splitlines()) <= 90
    assert "…" in shown


def on_terminal(*args, environ):
    """What a command prints when its output is a terminal."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "beltline", *args], stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm", **environ}
    )
    os.close(theirs)
    shown = b""
    try:
        while chunk := os.read(ours, 65536):
            shown += chunk
    except OSError:  # the terminal is gone with its last process
        pass
    finally:
        os.close(ours)
    assert child.wait(ENDS_S) == 0
    return shown.decode()
