"""The pages that are written from the code are fresh, and what they say in numbers and names is true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from beltline.cli.main import COMMANDS
from beltline.cli.problems import EXIT_CODES
from beltline.core.config import KEYS
from beltline.testing.conformance import promises

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
HOWTO = (DOCS / "howto" / "command-line.md").read_text(encoding="utf-8")


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("tool", ["errors_page.py", "promises_table.py"])
def test_a_page_written_from_the_code_is_fresh(tool):
    done = subprocess.run([sys.executable, f"tools/{tool}", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False)
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\nmend it with: python tools/{tool}"


def test_the_guarantees_print_every_promise_of_the_conformance_suite_and_no_other():
    rows = re.findall(r"^\| (L\d+) \| (.+?) \| (?:yes|no) \|", (DOCS / "guarantees.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [(number, sentence.replace("\\|", "|")) for number, sentence in rows] == [(promise.law, promise.sentence) for promise in promises()]
    assert len(rows) > 20


def test_the_command_line_page_names_every_command():
    assert [name for name in COMMANDS if f"beltline {name}" not in HOWTO] == []


def test_the_command_line_page_prints_every_exit_code():
    rows = dict(re.findall(r"^\| (\d+) \| (.+?) \|$", HOWTO, re.MULTILINE))
    assert rows == {str(int(number)): meaning for number, meaning in EXIT_CODES}


def test_the_command_line_page_prints_every_setting():
    rows = re.findall(r"^\| `(\w+)` \| `(BELTLINE_\w+)` \|", HOWTO, re.MULTILINE)
    assert rows == [(key.name, key.variable) for key in KEYS]


def test_every_decision_record_stands_in_the_list_of_decisions_under_its_own_title():
    listed = dict(re.findall(r"^\| \d{4} \| \[(.+?)\]\((.+?)\) \|$", (DOCS / "decisions" / "README.md").read_text(encoding="utf-8"), re.MULTILINE))
    records = {page.name: page for page in sorted((DOCS / "decisions").glob("0*.md"))}
    assert sorted(listed.values()) == sorted(records)
    for title, name in listed.items():
        text = records[name].read_text(encoding="utf-8")
        assert text.startswith(f"# {title}\n"), name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == ["Decision", "Why", "Alternatives", "Consequences", "Not covered"], name


def test_every_page_is_reached_from_the_index():
    seen, left = set(), [DOCS / "index.md"]
    while left:
        page = left.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        left += [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))]
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in seen] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page_speaks_of_no_machine_and_holds_no_unfinished_place(page):
    text = page.read_text(encoding="utf-8")
    assert re.findall(r"MARK-\w+|TODO|FIXME|/(?:work|root|home/\w+)/\S*", text) == []
