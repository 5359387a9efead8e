"""By what name an app is known beyond its process: the place in the code where it stands.

    variable    `module:attribute`, as a worker is told it on its command line, whoever has imported it from there
    function    `module:function`, of an app that a function makes and no variable of its module holds
    neither     "": typed in, or one of several in a container. Nobody can say whose its schedules are

Two processes of one program mean the same app by it.
"""

import sys
from typing import Protocol

from msgspec import Struct


class Origin(Struct, frozen=True):
    """Where an app was made. `module`: its name in sys.modules; `place`: the name it would be imported by, "" = none; `function`: "" = at the top of the module."""

    module: str
    place: str
    function: str


class Placed(Protocol):
    @property
    def spec(self) -> str: ...
    @property
    def origin(self) -> Origin: ...


def origin_of(app: object) -> Origin:
    """Asked by the constructor of the app itself. Constructors of classes made from App are passed over."""
    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_name == "__init__" and frame.f_locals.get("".join(frame.f_code.co_varnames[:1])) is app:
        frame = frame.f_back
    module = str(frame.f_globals.get("__name__", ""))
    function = frame.f_code.co_qualname
    return Origin(module, _imported(module, frame.f_globals), "" if function == "<module>" else function)


def _imported(module: str, names: dict[str, object]) -> str:
    if module != "__main__":
        return module
    spec = names.get("__spec__")
    if spec is not None:
        return str(getattr(spec, "name", ""))
    return _stem(str(names.get("__file__") or ""))


def owner(app: Placed) -> str:
    """The app's name, "" = it has none."""
    if app.spec:  # the same app, whether it is named by its module or by its file
        place, _, attribute = app.spec.partition(":")
        return f"{_stem(place)}:{attribute}"
    origin = app.origin
    if not origin.place:
        return ""
    for name, value in vars(sys.modules.get(origin.module, object)).items():
        if value is app:
            return f"{origin.place}:{name}"
    return f"{origin.place}:{origin.function}" if origin.function and not origin.function.rpartition(".")[2].startswith("<") else ""


def _stem(path: str) -> str:
    return path.replace("\\", "/").rpartition("/")[2].removesuffix(".py")
