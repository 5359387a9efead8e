"""An app is known by the place in the code where it stands, whoever loads it and however often."""

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from beltline import App
from beltline.loading import load_app
from beltline.origin import owner


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes modules that can be imported; they are forgotten after the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from beltline import App\n" + textwrap.dedent(text))
        return path

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_app_that_is_a_variable_of_a_module_is_called_as_a_worker_calls_it(code):
    code("shop.py", "app = App('memory://')")
    import shop  # type: ignore[import-not-found]

    assert owner(shop.app) == "shop:app"
    load_app("shop:app")
    assert owner(shop.app) == "shop:app"


def test_it_is_the_module_that_made_it_not_one_that_has_imported_it(code):
    code("deep/__init__.py", "")
    code("deep/shop.py", "tasks = App('memory://')")
    code("front.py", "from deep.shop import tasks")
    import front  # type: ignore[import-not-found]

    assert owner(front.tasks) == "deep.shop:tasks"


def test_an_app_of_a_function_is_called_by_the_function(code):
    code("web.py", "def make():\n    app = App('memory://')\n    return app\nclass Site:\n    def app(self): return App('memory://')\n")
    import web  # type: ignore[import-not-found]

    assert (owner(web.make()), owner(web.make()), owner(web.Site().app())) == ("web:make", "web:make", "web:Site.app")


def test_a_function_that_only_makes_the_variable_of_its_module_does_not_count(code):
    code("web.py", "def make():\n    return App('memory://')\napp = make()\n")
    import web

    assert owner(web.app) == "web:app"


def test_a_class_of_apps_of_your_own_is_no_place(code):
    code("mine.py", "class Mine(App):\n    def __init__(self):\n        super().__init__('memory://')\n")
    code("shop.py", "from mine import Mine\napp = Mine()\n")
    import shop

    assert owner(shop.app) == "shop:app"


def test_where_it_is_no_variable_nobody_can_say(code):
    code("shop.py", "apps = {name: App('memory://') for name in ('a', 'b')}")
    import shop

    assert owner(shop.apps["a"]) == ""


SCRIPT = "from beltline.origin import owner\napp = App('memory://')\nprint(owner(app))\n"


@pytest.mark.parametrize(
    ("how", "name"),
    [(["main.py"], "main:app"), (["-m", "main"], "main:app"), (["-m", "deep.main"], "deep.main:app"), (["-m", "deep"], "deep.__main__:app")],
)
def test_a_program_is_called_as_it_would_be_imported(code, tmp_path, how, name):
    for file in ("main.py", "deep/main.py", "deep/__main__.py"):
        code(file, SCRIPT)
    said = subprocess.run([sys.executable, *how], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout.strip() == name


def test_what_is_typed_in_has_no_place(tmp_path):
    said = subprocess.run(
        [sys.executable, "-c", "from beltline import App\n" + SCRIPT], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.strip() == ""


def test_a_file_and_its_module_are_one_app(code):
    path = code("shop.py", "app = App('memory://')")
    assert owner(load_app(f"{path}:app")) == "shop:app"


def test_the_app_of_a_test_is_called_by_the_test():
    assert owner(App("memory://")).endswith("test_origin:test_the_app_of_a_test_is_called_by_the_test")
