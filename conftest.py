"""The Python blocks of README.md and docs/ are tests (`make docs`).

The blocks of one page run from top to bottom and share their names; each page has an empty directory of its own to run in. `<!-- skip: next -->`
above a block leaves it out; ```console and all other blocks are never run. Only pages named on pytest's command line are read, so
`make test` does not run them a second time.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


def enter_own_directory(namespace: dict[str, Any]) -> None:
    namespace["__page"] = (Path.cwd(), tempfile.TemporaryDirectory(prefix="beltline-docs-"), dict(os.environ))
    os.chdir(namespace["__page"][1].name)
    for name in [name for name in os.environ if name.startswith("BELTLINE_")]:
        del os.environ[name]


def leave_own_directory(namespace: dict[str, Any]) -> None:
    home, directory, environ = namespace["__page"]
    os.chdir(home)
    os.environ.clear()
    os.environ.update(environ)
    directory.cleanup()


pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/**/*.md"],
    setup=enter_own_directory,
    teardown=leave_own_directory,
).pytest()
