"""`make test ENGINE=sqlite` leaves out what is about another engine; what is about none stays."""

import os

import pytest

ENGINES = ("memory", "sqlite", "postgres")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wanted = os.environ.get("TEST_ENGINE", "")
    if not wanted:
        return
    if wanted not in ENGINES:
        raise pytest.UsageError(f"ENGINE={wanted} is not tested here. Engines: {', '.join(ENGINES)}.")
    others = [engine for engine in ENGINES if engine != wanted]
    dropped = [item for item in items if "engines" in item.path.parts and any(engine in item.nodeid.lower() for engine in others)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]
