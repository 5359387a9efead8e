"""What must hold for the repository itself: the lock, the version, the desk."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def entries(lock: Path) -> list[str]:
    """The requirements of a lock file, each with its hashes on one line."""
    text = "\n".join(line for line in lock.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#"))
    return [entry for entry in text.replace("\\\n", " ").splitlines() if entry.strip()]


def pins(lock: Path) -> dict[str, str]:
    return dict(re.match(r"([a-z0-9-]+)==(\S+)", entry).groups() for entry in entries(lock))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[A-Za-z0-9._-]+", name).group()).lower()


def test_there_are_two_locks():
    assert [lock.name for lock in LOCKS] == ["base.txt", "test.txt"]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_a_lock_names_no_address_and_no_path_of_a_machine(lock):
    text = lock.read_text(encoding="utf-8")
    assert "://" not in text
    assert "http" not in text
    assert not re.search(r"^\s*-", re.sub(r"--hash=", "", text), re.MULTILINE), "an option of pip stands in the lock"
    assert not re.search(r"(^|\s)/\w", text), "an absolute path stands in the lock"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_requirement_of_a_lock_is_exact_and_has_a_hash(lock):
    assert entries(lock)
    for entry in entries(lock):
        assert re.match(r"[a-z0-9-]+==[^\s;]+( ;.+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*$", entry), entry[:80]


def test_both_locks_agree_so_that_they_can_share_one_environment():
    base, test = (pins(lock) for lock in LOCKS)
    assert base.items() <= test.items()


def test_the_locks_hold_every_dependency_the_project_declares():
    extras, groups = PYPROJECT["project"]["optional-dependencies"], PYPROJECT["dependency-groups"]
    base = [*PYPROJECT["project"]["dependencies"], *extras["demo"], *groups["build"]]
    test = [*base, *extras["dev"], *extras["postgres"], *extras["pydantic"], *groups["test"], *groups["check"]]
    for lock, wanted in zip(LOCKS, (base, test), strict=True):
        assert {normal(name) for name in wanted} <= pins(lock).keys(), f"{lock.name} is stale: make lock"


def test_the_changelog_begins_with_unreleased_and_names_no_version_ahead_of_the_project():
    headings = re.findall(r"^## \[?([^\]\s]+)\]?", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = [tuple(map(int, heading.split("."))) for heading in headings[1:]]
    current = tuple(map(int, PYPROJECT["project"]["version"].split(".")))
    assert released == sorted(released, reverse=True)
    assert all(version <= current for version in released)


def test_make_help_lists_the_desk():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30).stdout
    names = re.findall(r"^make (\S+) +\S", listed, re.MULTILINE)
    assert {"demo", "test", "check", "bench", "docs", "services"} <= set(names)


def test_every_target_of_the_makefile_says_what_it_does():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z][a-z-]*):(.*)$", makefile, re.MULTILINE)
    assert [name for name, rest in targets if "## " not in rest] == []
