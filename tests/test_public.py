"""The public surface fits one screen, and importing it is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import beltline

HEAVY = (
    "apsw",
    "click",
    "cronsim",
    "psutil",
    "sqlite3",
    "pydantic",
    "PIL",
    "rich",
    "watchfiles",
    "setproctitle",
    "beltline.engines.sqlite",
    "beltline.worker",
    "beltline.cli",
    "http.server",
    "zoneinfo",
)


def test_everything_in_all_is_there_and_listed_for_type_checkers_too() -> None:
    tree = ast.parse(Path(str(beltline.__file__)).read_text())
    [guarded] = [node for node in tree.body if isinstance(node, ast.If)]
    seen_by_checkers = {alias.name: node.module for node in guarded.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen_by_checkers == beltline._PLACES
    assert sorted(beltline.__all__) == list(beltline.__all__) == sorted({*beltline._PLACES, "__version__"})
    for name in beltline.__all__:
        assert getattr(beltline, name) is not None
    assert set(beltline.__all__) <= set(dir(beltline))


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = beltline.nonsense


def test_import_beltline_brings_no_engine_no_cli_and_no_heavy_library() -> None:
    code = f"import sys, beltline; beltline.App; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.strip() == "[]"
