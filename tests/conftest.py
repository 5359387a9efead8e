"""For every test: no thread, no process and no asyncio task is left behind when it and its fixtures are over."""

import asyncio
import asyncio.runners
import os
import threading
import time
from collections.abc import Iterator
from typing import NoReturn

import psutil
import pytest

from tests.services import fixtures, keeper

CI = os.environ.get("CI") == "true"
GRACE_S = 5.0  # what has been told to end may need this long on a loaded machine; what leaks does not end at all
# Of the interpreter and of libraries: they live as long as the process and are made by whichever test comes first.
KEPT_THREADS = ("asyncio-waitpid-", "pydevd.")
KEPT_PROCESSES = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def need_service(name: str, reason: str) -> NoReturn:
    """Leave a test out because a server it needs is not there: skipped on a laptop, a failure in CI, where `make services` has run."""
    text = f"{name}: {reason} (make services starts what can be started here)"
    if CI:
        pytest.fail(text)
    pytest.skip(text)


left_tasks: list[str] = []
cancel_all_tasks = asyncio.runners._cancel_all_tasks


def note_and_cancel_all_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """In place of asyncio's own: a loop that ends cancels what still runs without a word, which is where forgotten tasks hide."""
    left_tasks.extend(repr(task) for task in asyncio.all_tasks(loop))
    cancel_all_tasks(loop)


asyncio.runners._cancel_all_tasks = note_and_cancel_all_tasks


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith(KEPT_THREADS)}


def processes() -> dict[int, str]:
    """Our children and theirs, with their command lines. Servers that serve the whole session, and their children, are nobody's leftovers."""
    if not has_children():
        return {}
    found = {}
    kept = keeper.session_pids()
    for ours in psutil.Process().children():
        if ours.pid in kept:
            continue
        for child in [ours, *descendants(ours)]:
            try:
                found[child.pid] = " ".join(child.cmdline()) or child.status()
            except psutil.NoSuchProcess:
                continue
    return {pid: command for pid, command in found.items() if not any(kept in command for kept in KEPT_PROCESSES)}


def descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def has_children() -> bool:
    """Cheap, for it is asked twice per test: looking through all processes of the machine is not."""
    if not hasattr(os, "waitid"):
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    item.stash[before] = (threads(), set(processes()))
    left_tasks.clear()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """After all fixtures have been taken down."""
    outcome = yield
    had_threads, had_processes = item.stash[before]
    deadline = time.monotonic() + GRACE_S
    while left_threads := threads() - had_threads:
        if time.monotonic() > deadline:
            pytest.fail(f"threads left behind: {sorted(thread.name for thread in left_threads)}", pytrace=False)
        next(iter(left_threads)).join(0.05)
    while left := {pid: command for pid, command in processes().items() if pid not in had_processes}:
        if time.monotonic() > deadline:
            pytest.fail(f"processes left behind: {left}", pytrace=False)
        time.sleep(0.05)  # somebody else's child cannot be waited for
    if left_tasks:
        pytest.fail(f"asyncio tasks left behind: {left_tasks}", pytrace=False)
    return outcome


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(fixtures, "beltline-services")


before = pytest.StashKey[tuple[set[threading.Thread], set[int]]]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`make test ENGINE=sqlite`: only what is about this engine, by the names of its files and classes in tests/engines."""
    engine = os.environ.get("TEST_ENGINE", "")
    if not engine:
        return
    chosen = [item for item in items if "tests/engines/" in item.nodeid and engine.lower() in item.nodeid.partition("tests/engines/")[2].lower()]
    if not chosen:
        raise pytest.UsageError(f"ENGINE={engine}: no test in tests/engines is about it")
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
