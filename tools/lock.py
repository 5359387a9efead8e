"""Write requirements/base.txt and requirements/test.txt from pyproject.toml: exact versions, every file's hash, no address.

One lock serves Linux and macOS, x86_64 and aarch64, and every Python we support. The addresses stay out on purpose: a mirror or a
proxy is the business of whoever installs. base.txt is chosen first and binds test.txt, so both may share one environment.
"""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BASE = ("base.txt", "--extra=demo", "--group=build")
TEST = (
    "test.txt",
    *("--extra=demo", "--extra=dev", "--extra=postgres", "--extra=pydantic"),
    *("--group=build", "--group=test", "--group=check"),
    "--constraints=requirements/base.txt",
)


def main() -> None:
    run("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv>=0.13,<0.14")
    for name, *inputs in (BASE, TEST):
        run(
            *("-m", "uv", "pip", "compile", "--quiet", "--upgrade", "--universal", "--python-version=3.11"),
            *("--generate-hashes", "--no-emit-index-url", "--no-header", *inputs),
            *("--output-file", f"requirements/{name}", "pyproject.toml"),
        )
        text = (ROOT / "requirements" / name).read_text(encoding="utf-8")
        if "http" in text:
            sys.exit(f"requirements/{name} holds an address; a lock may not.")
        print(f"requirements/{name}: {text.count('==')} packages")


def run(*arguments: str) -> None:
    if subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode:
        sys.exit(1)


if __name__ == "__main__":
    main()
