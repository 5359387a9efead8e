"""Make `.venv` hold exactly what one lock file names, and this checkout as an editable package.

    python3 tools/venv.py base     what `make demo` needs: the package, its demo extra, the build backend
    python3 tools/venv.py test     that and every tool of `make test` and `make check`

Standard library only: it runs on a bare Python before anything is installed. What is already right is not touched: a stamp
inside `.venv` holds the hashes of the files the last installation was made from, and is written after it succeeded. One file lock
lets several `make` runs of one checkout wait for each other.
"""

import fcntl
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "beltline-stamp.json"
LOCKS = {name: ROOT / "requirements" / f"{name}.txt" for name in ("base", "test")}  # test holds all that base holds


def main(wanted: str) -> None:
    with (ROOT / ".venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stamp = read_stamp()
        if not stamp and not works("import pip, sys; sys.exit(sys.version_info < (3, 11))"):
            create()
        hashes = {name: digest(path) for name, path in LOCKS.items()}
        if not any(stamp.get(name) == hashes[name] for name in {wanted, "test"}):
            say(f"Installing requirements/{wanted}.txt into .venv (once, and after it changes) …")
            pip("install", "--require-hashes", "--requirement", str(LOCKS[wanted]))
            stamp = stamp | {wanted: hashes[wanted]}
            write_stamp(stamp)
        project = digest(ROOT / "pyproject.toml")
        if stamp.get("project") != project:
            pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
            write_stamp(stamp | {"project": project})


def create() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 — this file is the one that may meet an older Python
        sys.exit("Beltline needs Python 3.11 or newer, this is {}.{}.".format(*sys.version_info[:2]))
    if not all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")):
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        sys.exit(
            f"{sys.executable} cannot make a virtual environment: its venv module is incomplete.\n"
            f"On Debian and Ubuntu:  sudo apt install python3-venv   (or python{version}-venv)\n"
            "Then run the same make command again, or name another Python: make PYTHON=/path/to/python3 …"
        )
    say(f"Making .venv with Python {sys.version.split()[0]} …")
    # --clear: a first try that was interrupted may have left half a directory.
    run([sys.executable, "-m", "venv", "--clear", str(VENV)])


def read_stamp() -> dict[str, str]:
    """The stamp of a finished installation; empty when there is none or when the Python under it is gone."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}
    return stamp if works("") else {}


def write_stamp(stamp: dict[str, str]) -> None:
    fresh = STAMP.with_suffix(".new")
    fresh.write_text(json.dumps(stamp))
    fresh.replace(STAMP)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def works(code: str) -> bool:
    """Whether the environment's own Python starts and runs `code`."""
    try:
        return subprocess.run([str(PYTHON), "-I", "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def pip(*arguments: str) -> None:
    run([str(PYTHON), "-I", "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input", *arguments])


def run(command: list[str]) -> None:
    environ = os.environ | {"PIP_USER": "0"}
    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX"):
        environ.pop(name, None)
    if code := subprocess.run(command, env=environ, check=False).returncode:
        sys.exit(f"{Path(command[0]).name} failed with {code}; the reason stands above. Nothing outside .venv was changed.")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
