"""Writes the table of promises in docs/guarantees.md, between its two marks, from the laws of beltline.testing.conformance.

python tools/promises_table.py            write it
python tools/promises_table.py --check    exit 1 if it is stale (tests/test_docs.py does the same)
"""

import sys
from pathlib import Path

from beltline.engines.registry import make_engine
from beltline.testing.conformance import laws
from beltline.testing.conformance.runner import POWERS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "guarantees.md"
BEGIN, END = "<!-- promises: written by tools/promises_table.py -->\n", "<!-- promises: end -->"
URLS = ("memory://promises-table", "sqlite:///promises-table.db", "postgresql://localhost/promises-table")  # made, never opened


def table() -> str:
    """One row per law: the promise, and which engines of this version make it."""
    engines = [make_engine(url) for url in URLS]
    lines = [f"| law | promise | {' | '.join(engine.name for engine in engines)} |", f"|---|---|{'---|' * len(engines)}"]
    for law in laws():
        kept = [
            "yes"
            if all(isinstance(engine, POWERS[name]) for name in law.powers)
            and all(getattr(engine.capabilities, name) >= need for name, need in law.needs.items())
            else "no"
            for engine in engines
        ]
        sentence = law.sentence.replace("|", "\\|")
        lines.append(f"| {law.number} | {sentence} | {' | '.join(kept)} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page with a fresh table."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE.name} has lost its marks {BEGIN.strip()} and {END}")
    return f"{before}{BEGIN}{table()}{END}{after}"


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        fresh = PAGE.read_text(encoding="utf-8") == text
        print(f"docs/guarantees.md is {'fresh' if fresh else 'stale: run tools/promises_table.py'}")
        return 0 if fresh else 1
    PAGE.write_text(text, encoding="utf-8")
    print("wrote the promises in docs/guarantees.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
