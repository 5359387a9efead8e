"""The root command. Commands are a table of names: the module of a command is imported when it is named, never for `--help`."""

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from beltline.cli.command import CONTEXT
from beltline.cli.problems import EXIT_CODES, INTERRUPTED, report, unexpected
from beltline.core.errors import BeltlineError, UsageError

# section -> command -> what it does. The module is beltline.cli.<command>, the object in it has the command's name.
SECTIONS: dict[str, dict[str, str]] = {
    "Try": {
        "demo": "photos through a line of three stages, with a live picture",
        "init": "write tasks.py and beltline.toml to start from",
    },
    "Work": {
        "dev": "a worker that reloads when your code changes",
        "worker": "run a worker: beltline worker tasks:app -q resize:4",
        "send": "send a message to a task or an item into a chain",
        "upkeep": "schedules, sweep and retention, where no worker is up all the time",
    },
    "Look and act": {
        "queue": "backlogs; why they do not move; pause, snooze, resume, limit, purge, move",
        "message": "list, show, why, ready, cancel, edit, move",
        "dead": "what was given up, by error; redrive, edit, delete",
        "chain": "the lines, drawn with their queues; pause, resume",
        "run": "one item through all its stages; rerun, cancel",
        "schedule": "what is sent again and again; next, add, trigger, pause",
        "limit": "how many may start and run; change it now",
        "fleet": "workers, what they serve, how many slots and why",
    },
    "Environment": {
        "engine": "engines and their capabilities in numbers; move to another",
        "migrate": "bring the tables of the store to this version",
        "health": "is the engine there, and does anybody work?",
        "doctor": "look for what is wrong with this installation",
        "config": "every setting and where it comes from",
        "bench": "how fast this machine is with this engine",
        "completion": "completion for bash, zsh or fish",
    },
}
COMMANDS = {name: about for section in SECTIONS.values() for name, about in section.items()}


class Root(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        # The name comes from the table above, never from what was typed.
        command = getattr(import_module(f"beltline.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            raise click.exceptions.NoSuchCommand(args[0], possibilities=COMMANDS, ctx=ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(commands.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Every command"):
            formatter.write_dl(
                [
                    ("--json", "print JSON (an array or object; one object a line from commands that go on)"),
                    ("--quiet", "print only ids"),
                    ("--url URL", "the engine; else BELTLINE_URL, beltline.toml, sqlite:///beltline.db"),
                    ("--config FILE", "read this file instead of beltline.toml"),
                    ("--color WHEN", "auto, always, never; NO_COLOR is honoured"),
                    ("--no-input", "never ask"),
                    ("--debug", "show tracebacks"),
                ]
            )
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(number)), meaning) for number, meaning in EXIT_CODES])


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"beltline {version('beltline')}")
        ctx.exit()


@click.group("beltline", cls=Root, context_settings=CONTEXT)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version.")
def root() -> None:
    """Beltline: durable queues, lines of stages, and fleets of workers that may die at any moment."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Completion scripts come in here too, by way of an environment variable."""
    if "_BELTLINE_COMPLETE" in os.environ:
        from beltline.cli.completion import answer

        return answer(root)
    args = list(sys.argv[1:] if argv is None else argv)
    words = args[: args.index("--")] if "--" in args else args
    as_json, debug = "--json" in words, "--debug" in words
    color = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    try:
        code = root.main(args=args, prog_name="beltline", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return 2
    except click.ClickException as error:
        return report(_usage(error), as_json=as_json, color=color)
    except (KeyboardInterrupt, click.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough (`| head`). Python would complain again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except BeltlineError as error:
        if debug:
            _traceback(error)
        return report(error, as_json=as_json, color=color)
    except Exception as error:  # noqa: BLE001  # the last resort: our own bug is reported in the same form as any other error
        if debug:
            _traceback(error)
        return report(unexpected(error), as_json=as_json, color=color)


def _usage(error: click.ClickException) -> BeltlineError:
    ctx = getattr(error, "ctx", None)
    return UsageError(error.format_message(), help=f"See: {ctx.command_path if ctx else 'beltline'} --help")


def _traceback(error: BaseException) -> None:
    import traceback

    from beltline.cli.text import safe_lines

    print(safe_lines("".join(traceback.format_exception(error))), file=sys.stderr, end="")


if __name__ == "__main__":
    sys.exit(main())
