"""Finds the laws, runs each test in an event loop of its own, and turns them into pytest functions."""

import asyncio
import importlib
import inspect
import pkgutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from enum import IntEnum
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from beltline.core.capabilities import require
from beltline.core.errors import Unsupported
from beltline.engines.protocol import Browse, Control, Engine, Explain, Fleet, Limits, Results, Runs, Schedules, Sizes, Transactional, Upkeep
from beltline.testing.conformance.harness import Harness, Time
from beltline.testing.conformance.kit import QUEUES, specs

LIMIT_S = 30.0  # no test of a law needs a tenth of it; a stuck one says so instead of hanging the run
PACKAGE = __name__.rpartition(".")[0]
POWERS: dict[str, type] = {
    power.__name__: power for power in (Browse, Results, Control, Runs, Fleet, Sizes, Schedules, Limits, Explain, Upkeep, Transactional)
}

Test = Callable[..., Awaitable[None]]


class Law(NamedTuple):
    """`number` as in "L03", `sentence` the promise, `needs` capability -> least number, `powers` the optional protocols its tests use."""

    number: str
    sentence: str
    needs: dict[str, float]
    powers: tuple[str, ...]
    tests: dict[str, Test]


class Promise(NamedTuple):
    """One line of the user's documentation. `capability`: what an engine must have for it ("" = every engine keeps it)."""

    law: str
    sentence: str
    capability: str


@cache
def laws() -> tuple[Law, ...]:
    """All laws by number."""
    folder = Path(__file__).parent
    names = sorted(module.name for module in pkgutil.iter_modules([str(folder)]) if module.name.startswith("law_"))
    pytest.register_assert_rewrite(*(f"{PACKAGE}.{name}" for name in names))
    return tuple(_law(importlib.import_module(f"{PACKAGE}.{name}")) for name in names)


def _law(module: ModuleType) -> Law:
    doc = inspect.getdoc(module) or ""
    tests = {
        name: function
        for name, function in vars(module).items()
        if inspect.iscoroutinefunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
    }
    assert doc, f"{module.__name__} states no promise"
    assert tests, f"{module.__name__} tests nothing"
    sentence = " ".join(doc.partition("\n\n")[0].split())
    number = "L" + module.__name__.rpartition(".")[2].split("_")[1]
    return Law(number, sentence, getattr(module, "NEEDS", {}), tuple(getattr(module, "POWERS", ())), tests)


def promises() -> list[Promise]:
    """The promises as they are printed in the user's documentation."""
    return [Promise(law.number, law.sentence, ", ".join([*law.powers, *(_need(*need) for need in law.needs.items())])) for law in laws()]


def _need(name: str, number: float) -> str:
    return f"{name} >= {number.name if isinstance(number, IntEnum) else f'{number:g}'}"


def suite(namespace: MutableMapping[str, Any], kind: type[Harness]) -> None:
    """Put one pytest function per test of every law into `namespace`, the globals of a test module."""
    for law in laws():
        for name, test in law.tests.items():
            function = _bind(law, test, kind)
            function.__name__ = function.__qualname__ = f"test_{law.number.lower()}_{name}"
            function.__module__ = namespace["__name__"]
            function.__doc__ = law.sentence
            namespace[function.__name__] = function


def _bind(law: Law, test: Test, kind: type[Harness]) -> Callable[[Path], None]:
    def function(tmp_path: Path) -> None:
        missing = run(law, test, kind(tmp_path))
        if missing:
            pytest.skip(missing)

    return function


def check(kind: type[Harness], *, only: tuple[str, ...] = ()) -> dict[str, BaseException | None]:
    """Run the laws (`only` these numbers) without pytest: "L03 name of the test" -> what was raised, None when it passed or was refused loudly."""
    return dict(check_each(kind, only=only))


def check_each(kind: type[Harness], *, only: tuple[str, ...] = ()) -> Iterator[tuple[str, BaseException | None]]:
    """`check`, one test at a time, for a caller who stops at the first failure."""
    for law in laws():
        if only and law.number not in only:
            continue
        for name, test in law.tests.items():
            with tempfile.TemporaryDirectory(prefix="beltline-") as folder:
                error: BaseException | None = None
                try:
                    run(law, test, kind(Path(folder)))
                except (Exception, pytest.fail.Exception) as caught:  # noqa: BLE001 - a law that does not hold fails in any way it likes
                    error = caught
            yield f"{law.number} {name}", error


def run(law: Law, test: Test, harness: Harness) -> str:
    """Run one test. Returns why it could not be run ("" = it passed); raises what it raises."""
    return asyncio.run(_run(law, test, harness))


async def _run(law: Law, test: Test, harness: Harness) -> str:
    engine = harness.engine(clock=harness.clock)
    missing = _missing(law, engine)
    if missing:
        return missing
    given = {"engine": engine, "time": Time(harness.clock), "harness": harness}
    wanted = {name: given[name] for name in inspect.signature(test).parameters}
    async with asyncio.timeout(LIMIT_S):
        try:
            if "engine" in wanted:
                await engine.open()
                await engine.declare([specs(name) for name in QUEUES])
            await test(**wanted)
        finally:
            await engine.close()
    return ""


def _missing(law: Law, engine: Engine) -> str:
    """What the engine says it lacks for this law, after checking that it refuses loudly."""
    for name in law.powers:
        if not isinstance(engine, POWERS[name]):
            verbs = [verb for verb in vars(POWERS[name]) if not verb.startswith("_")]
            assert not all(hasattr(engine, verb) for verb in verbs), f"{engine.name} has the verbs of {name} but is none"
            return f"{engine.name} has no {name}"
    for name, need in law.needs.items():
        have = getattr(engine.capabilities, name)
        if have < need:
            with pytest.raises(Unsupported):
                require(engine.name, engine.capabilities, **{name: need})
            return f"{engine.name}: {name} is {have:g}, this law needs {need:g}"
    return ""
