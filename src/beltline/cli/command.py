"""What every command has: the common options, and a session that knows the configuration, the engine and the output of this one call.

Nothing here imports an engine, asyncio or the user's code before a command asks for it: `beltline --help` must stay fast.
"""

from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from beltline.cli.output import Output
from beltline.core.config import redact
from beltline.core.errors import BeltlineError, EngineUnavailable, UrlInvalid, UsageError

if TYPE_CHECKING:
    from beltline.app import App
    from beltline.core.config import Config
    from beltline.engines.protocol import Engine

T = TypeVar("T")

COMMON = ("as_json", "quiet", "url", "config_file", "color", "no_input", "debug")
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


def _common_options() -> list[click.Option]:
    return [
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
        click.Option(["--quiet", "quiet"], is_flag=True, help="Print only ids or names."),
        click.Option(
            ["--url", "--engine", "url"], metavar="URL", help="The engine (else the app's own, BELTLINE_URL, beltline.toml, sqlite:///beltline.db)."
        ),
        click.Option(["--config", "config_file"], metavar="FILE", type=click.Path(path_type=Path), help="Read this file instead of beltline.toml."),
        click.Option(
            ["--color"], type=click.Choice(["auto", "always", "never"]), default="auto", hidden=True, help="Colours (NO_COLOR is honoured)."
        ),
        click.Option(["--no-input"], is_flag=True, hidden=True, help="Never ask."),
        click.Option(["--debug"], is_flag=True, hidden=True, help="Show tracebacks."),
    ]


class Command(click.Command):
    """A command with the common options. `shape`: the struct of its JSON, whose fields the help lists."""

    def __init__(self, *args: Any, shape: type[Any] | None = None, **attrs: Any) -> None:
        super().__init__(*args, **{"context_settings": CONTEXT, **attrs})
        self.shape = shape
        self.params = [*self.params, *_common_options()]

    def invoke(self, ctx: click.Context) -> Any:
        common = {name: ctx.params.pop(name) for name in COMMON if name in ctx.params}
        ctx.obj = Session(**common)
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_epilog(ctx, formatter)
        if self.shape is not None:
            with formatter.section("JSON fields"), formatter.indentation():
                formatter.write_text(", ".join(self.shape.__struct_fields__))


class Group(click.Group):
    command_class = Command

    def __init__(self, *args: Any, **attrs: Any) -> None:
        super().__init__(*args, **{"context_settings": CONTEXT, **attrs})


class Session:
    """One call of one command."""

    def __init__(
        self,
        *,
        as_json: bool = False,
        quiet: bool = False,
        url: str | None = None,
        config_file: Path | None = None,
        color: str = "auto",
        no_input: bool = False,
        debug: bool = False,
    ) -> None:
        self.out = Output(as_json=as_json, quiet=quiet, color=color, no_input=no_input)
        self._given = {
            "as_json": as_json,
            "quiet": quiet,
            "url": url,
            "config_file": config_file,
            "color": color,
            "no_input": no_input,
            "debug": debug,
        }
        self.flags: dict[str, object] = {"url": url}
        self.config_file = config_file
        self.debug = debug
        self.dotenv = False

    def again(self) -> "Session":
        """The same call, before anything was read."""
        return Session(**self._given)  # type: ignore[arg-type]  # what __init__ was given

    @cached_property
    def config(self) -> "Config":
        from beltline.config import load

        return load(self.flags, file=self.config_file, dotenv=self.dotenv)

    def set_flags(self, **flags: object) -> None:
        """Further settings from the command line (None = not given), before the configuration is first read."""
        self.flags.update(flags)

    # ------------------------------------------------------------------------------------------------------------- app
    @property
    def has_app(self) -> bool:
        return bool(self.config.app)

    def app_name(self, *, needed_for: str) -> str:
        """Where the app is, unloaded. Raises UsageError when none is named."""
        if not self.config.app:
            raise UsageError(
                f"No app is named, and {needed_for} needs one.",
                help='Name it: MODULE:NAME (for example tasks:app), BELTLINE_APP, or app = "tasks:app" in beltline.toml.',
            )
        return self.config.app

    def app(self, *, needed_for: str = "this") -> "App":
        """The user's App: named on the command line, by BELTLINE_APP or in beltline.toml. Imports the user's code.

        Its engine is the configured one. Raises UsageError when no app is named or its module cannot be imported.
        """
        name = self.app_name(needed_for=needed_for)
        from beltline.loading import load_app

        try:
            app = load_app(name)
        except (BeltlineError, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever the user's module raises when it is imported, SystemExit too
            raise _user_code(name, error) from error
        app.use_url(self.url_for(app), durability=self.durability)
        return app

    # ---------------------------------------------------------------------------------------------------------- engine
    def url_for(self, app: "App | None" = None) -> str:
        """A flag wins over what the app's code says; that wins over environment and files: the rule of App.url, so that all processes meet at one store."""
        if app is None or self.config.origin("url").startswith("--"):
            return self.config.url
        if self.config.origin("url") != "default" and app.url != self.config.url:
            self.out.warn(f"the app's code says {redact(app.url)}, {self.config.origin('url')} says {redact(self.config.url)}: using the former")
        return app.url

    @property
    def durability(self) -> str | None:
        """The configured level, or None where nothing was said: then the URL or the app's code may say it."""
        return self.config.durability.name.lower() if self.config.origin("durability") != "default" else None

    @asynccontextmanager
    async def engine(self, *, app: "App | None" = None, create: bool = False) -> "AsyncGenerator[Engine]":
        """The opened engine, nothing declared. With `create` False a database that does not exist is an error and is not made."""
        from beltline.engines.registry import make_engine

        url = self.config.url if app is None else app.url
        check_reachable(url, create=create)
        engine = make_engine(url, durability=self.durability, max_body=self.config.max_body)
        try:
            await engine.open()
            yield engine
        finally:
            await engine.close()

    def run(self, work: "Callable[[Engine], Coroutine[Any, Any, T]]", *, app: "App | None" = None, create: bool = False) -> T:
        """Open the engine (the app's, if one is given), do `work` with it, close it."""
        import asyncio

        async def whole() -> T:
            async with self.engine(app=app, create=create) as engine:
                return await work(engine)

        return asyncio.run(whole())


def _user_code(spec: str, error: BaseException) -> UsageError:
    """An error of the user's own module: where it happened in their file, not in ours."""
    import traceback

    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename and "/beltline/" not in frame.filename
    ]
    where = f"{frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}, line {error.lineno}: {(error.text or '').strip()}"
    return UsageError(
        f"{spec} cannot be imported: {type(error).__name__}: {error}", why=where, help="Mend it and start again; --debug shows the whole traceback."
    )


def check_reachable(url: str, *, create: bool) -> None:
    """Raises before an engine is made: for a store that lives in another process's memory, and for a SQLite file that is not there."""
    if url.startswith("memory:"):
        raise UrlInvalid(
            url, why="It lives inside one process: this command would look at an empty one of its own.", help="Use a file: sqlite:///beltline.db"
        )
    path = sqlite_path(url)
    if path is not None and not create and not path.exists():
        raise EngineUnavailable(
            f"There is no database file {path}.",
            effect="none",
            help=f"The first send or worker makes it. Looked in {path.absolute().parent}; name another with --url sqlite:///PATH or BELTLINE_URL.",
        )


def sqlite_path(url: str) -> Path | None:
    """The file of a sqlite URL: `sqlite:///relative.db`, `sqlite:////absolute.db`. None for any other URL."""
    if not url.startswith("sqlite:///"):
        return None
    from urllib.parse import unquote

    return Path(unquote(url.removeprefix("sqlite:///").partition("?")[0]))


pass_session = click.make_pass_decorator(Session)
