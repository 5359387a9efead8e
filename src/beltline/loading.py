"""Finding the App a command or worker was told to use: `module:attribute`, or a file."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from beltline.app import App
from beltline.core.errors import UsageError


def load_app(spec: str) -> App:
    """The App that `module:attribute` or `path/to/file.py:attribute` names; the attribute may be left out when there is just one App.

    The current directory is importable. Raises UsageError saying what was not found; errors of the user's own module come through as they are.
    """
    place, _, attribute = spec.partition(":")
    if not place:
        raise UsageError(f"{spec!r} names no module.", help="Write module:app, for example tasks:app.")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place, spec)
    if attribute:
        found = module
        for part in attribute.split("."):
            found = getattr(found, part, None)
        if not isinstance(found, App):
            raise UsageError(f"{place} has no App called {attribute!r}.", help=f"Apps there: {', '.join(_apps(module)) or 'none'}.")
        app = found
    else:
        apps = _apps(module)
        if len(apps) != 1:
            raise UsageError(f"{place} has {len(apps) or 'no'} Apps.", help="Name one: module:attribute.")
        attribute, app = next(iter(apps.items()))
    app.spec = f"{place}:{attribute}"
    return app


def _apps(module: Any) -> dict[str, App]:
    return {name: value for name, value in vars(module).items() if isinstance(value, App)}


def _load_module(name: str, spec: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        raise UsageError(
            f"There is no module {name!r} ({spec}).", why=f"Looked in {here} and the import path.", help="Run it where the module is."
        ) from None


def _load_file(path: Path) -> Any:
    path = path.resolve()
    if not path.is_file():
        raise UsageError(f"There is no file {str(path)!r}.")
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    found = importlib.util.spec_from_file_location(path.stem, path)
    if found is None or found.loader is None:
        raise UsageError(f"{str(path)!r} cannot be loaded as Python.")
    module = importlib.util.module_from_spec(found)
    sys.modules[path.stem] = module
    try:
        found.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(path.stem, None)
        raise
    return module
