"""Configuration is read once, here, at the edge: flag > environment BELTLINE_* > .env (only where asked for) > beltline.toml > [tool.beltline] > default.

The files are those of one folder, the current one unless told otherwise; parents are not searched, because module names and relative SQLite
paths are relative to that same folder. `BELTLINE_CONFIG` (or --config) names another file of either shape.
A variable that may hold a password is also read from a file: `BELTLINE_URL_FILE=/run/secrets/url`.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path

from beltline.core.config import KEYS, Config, Setting, known_variables, merge, queue_slots, redact
from beltline.core.errors import ConfigInvalid, NameInvalid

FILE = "beltline.toml"
PROJECT_FILE = "pyproject.toml"
ELSEWHERE = ("BELTLINE_CONFIG",)  # variables that are read, but are no keys


def load(
    flags: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    file: Path | None = None,
    dotenv: bool = False,
) -> Config:
    """The whole configuration. `flags`: key -> value as given on the command line (None = not given); `queues` as a list of `NAME[:SLOTS]`.

    Raises ConfigInvalid: a key nobody knows, a value out of its range, a file that cannot be read.
    """
    environ = os.environ if environ is None else environ
    folder = Path.cwd() if folder is None else folder
    named = environ.get("BELTLINE_CONFIG")
    layers = [_from_flags(flags or {}), _from_environment(environ)]
    if dotenv and (folder / ".env").is_file():
        layers.append(_from_environment(read_dotenv(folder / ".env"), where=" in .env"))
    if file is not None or named:
        layers.append(_from_file(file or Path(str(named)), origin="--config" if file else "BELTLINE_CONFIG"))
    else:
        layers += [_from_file(folder / name) for name in (FILE, PROJECT_FILE) if (folder / name).is_file()]
    return merge(layers)


def unknown_variables(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """BELTLINE_* variables that nothing reads -> the nearest one that is read, or "". Never an error: another version may know them."""
    environ = os.environ if environ is None else environ
    known = {*known_variables(), *ELSEWHERE, *(key.variable + "_FILE" for key in KEYS if key.secret)}
    strange = sorted(name for name in environ if name.startswith("BELTLINE_") and name not in known)
    return {name: (get_close_matches(name, known, n=1, cutoff=0.75) or [""])[0] for name in strange}


def shown(config: Config, key: str) -> object:
    """The value of a key as it may be shown to people: without a password."""
    value = getattr(config, key)
    return redact(value) if isinstance(value, str) and any(k.name == key and k.secret for k in KEYS) else value


# -------------------------------------------------------------------------------------------------------------- layers
def _from_flags(flags: Mapping[str, object]) -> list[Setting]:
    settings: list[Setting] = []
    for name, value in flags.items():
        if value is None or value in ((), []):
            continue
        origin = "--" + name.removesuffix("_s").replace("_", "-")  # --lease sets lease_s
        if name == "queues":
            assert isinstance(value, (list, tuple))
            settings += _queues([str(each) for each in value], "-q")
        else:
            settings.append(Setting(name, value, origin))
    return settings


def _from_environment(environ: Mapping[str, str], where: str = "") -> list[Setting]:
    settings: list[Setting] = []
    for variable, key in known_variables().items():
        origin = variable + where
        text = environ.get(variable)
        if text is None and any(k.variable == variable and k.secret for k in KEYS):
            text = _read_secret(variable + "_FILE", environ)
            origin = f"{variable}_FILE{where}"
        if not text:  # an empty variable is how a container says "not set"
            continue
        settings += _queues(text.replace(",", " ").split(), origin) if key == "queues" else [Setting(key, text, origin)]
    return settings


def _queues(words: Iterable[str], origin: str) -> list[Setting]:
    settings: list[Setting] = []
    said: dict[str, str] = {}
    for word in words:
        try:
            name, number = queue_slots(word)
        except NameInvalid as error:
            allowed = "QUEUE:SLOTS such as resize:4 or resize:2..8"
            raise ConfigInvalid(key="queues", value=word, allowed=allowed, origin=origin, help=error.why) from None
        if said.setdefault(name, word) != word:
            raise ConfigInvalid(key="queues", value=word, allowed="each queue once", origin=origin, help=f"{said[name]!r} is there already.")
        settings.append(Setting(f"queues.{name}.slots", number, origin))
    return settings


def _read_secret(variable: str, environ: Mapping[str, str]) -> str | None:
    name = environ.get(variable)
    if not name:
        return None
    try:
        return Path(name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(key=variable, value=name, allowed="a file this process may read", origin=variable, help=f"{error}.") from None


def read_dotenv(path: Path) -> dict[str, str]:
    """NAME=value lines, as shells and containers write them: `export `, quotes and # comments; no expansion, no line continuation."""
    found: dict[str, str] = {}
    for number, line in enumerate(_read_text(path, ".env").splitlines(), 1):
        text = line.strip().removeprefix("export ").strip()
        if not text or text.startswith("#"):
            continue
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigInvalid(key=".env", value=line, allowed="lines of the form NAME=value", origin=f".env:{number}")
        value = value.strip()
        if value[:1] in ("'", '"') and value[-1:] == value[:1] and len(value) >= 2:
            value = value[1:-1]
        else:
            value = value.partition(" #")[0].rstrip()
        found[name.strip()] = value
    return found


def _read_text(path: Path, origin: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigInvalid(key="config", value=str(path), allowed="a TOML file this process may read", origin=origin, help=f"{error}.") from None


def _from_file(path: Path, origin: str = "") -> list[Setting]:
    text = _read_text(path, origin or path.name)
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigInvalid(key="config", value=str(path), allowed="valid TOML", origin=origin or path.name, help=f"{error}.") from None
    within: tuple[str, ...] = ()
    if path.name == PROJECT_FILE or set(table) == {"tool"}:
        within = ("tool", "beltline")
        for part in within:
            table = table.get(part, {})
    return [Setting(key, value, f"{path.name}:{_line_of(text, (*within, *key.split('.')))}") for key, value in _flat(table)]


def _flat(table: Mapping[str, object]) -> list[tuple[str, object]]:
    """Only `queues` is a table of tables; any other table is a value, which its reader will refuse."""
    flat: list[tuple[str, object]] = []
    for key, value in table.items():
        if key == "queues" and isinstance(value, dict):
            for name, settings in value.items():
                # An integer alone is the slots: queues.resize = 4
                inner = settings.items() if isinstance(settings, dict) else [("slots", settings)]
                flat += [(f"queues.{name}.{field}", each) for field, each in inner]
        else:
            flat.append((key, value))
    return flat


def _line_of(text: str, wanted: tuple[str, ...]) -> int:
    """The line that says it: the assignment or header whose dotted name is the longest beginning of `wanted`. tomllib keeps no positions."""
    best, best_length = 1, -1
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[([^\[\]]+)\]\s*(?:#.*)?$", line)
        assignment = re.match(r"\s*([A-Za-z0-9_.\-\"' ]+?)\s*=", line)
        if header:
            name = table = _parts(header[1])
        elif assignment:
            name = (*table, *_parts(assignment[1]))
        else:
            continue
        if len(name) > best_length and wanted[: len(name)] == name:
            best, best_length = number, len(name)
    return best


def _parts(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))
