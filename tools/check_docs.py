"""Every relative link of the README, the pages under docs/ and the other Markdown files at the root leads to a file and a heading that exist."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*\s*$|\Z)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]+`")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|^ {0,3}\[[^\]]+\]:\s+<?(\S+?)>?(?:\s|$)", re.MULTILINE)
HTML_LINK = re.compile(r"<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=\"([^\"\s]+)", re.IGNORECASE)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*\s*$", re.MULTILINE)
HTML_ANCHOR = re.compile(r"<a\b[^>]*\b(?:id|name)=\"([^\"]+)\"", re.IGNORECASE)
ELSEWHERE = re.compile(r"^([a-z][a-z0-9+.-]*:|//)", re.IGNORECASE)


def main() -> int:
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    broken = [problem for page in pages for problem in problems(page)]
    for problem in broken:
        print(problem)
    print(f"{len(pages)} pages, {len(broken)} broken links")
    return 1 if broken else 0


def problems(page: Path) -> list[str]:
    """One line per broken link of `page`: where it stands and what is missing."""
    text = page.read_text(encoding="utf-8")
    prose = CODE.sub(blank, FENCE.sub(blank, text))
    found = []
    for match in [*LINK.finditer(prose), *HTML_LINK.finditer(prose)]:
        link = next(group for group in match.groups() if group)
        if ELSEWHERE.match(link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        where = f"{page.relative_to(ROOT)}:{prose.count(chr(10), 0, match.start()) + 1}"
        if not target.exists() or not target.is_relative_to(ROOT):
            found.append(f"{where}: {link}: no such file in this repository")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            found.append(f"{where}: {link}: no such heading in {target.relative_to(ROOT)}")
    return found


def anchors(page: Path) -> set[str]:
    """The names a link into `page` may use, made from its headings as the common hosts make them."""
    text = FENCE.sub(blank, page.read_text(encoding="utf-8"))
    names = set(HTML_ANCHOR.findall(text))
    for heading in HEADING.findall(text):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        name, copies = slug, 0
        while name in names:
            copies += 1
            name = f"{slug}-{copies}"
        names.add(name)
    return names


def blank(match: re.Match[str]) -> str:
    """Take a piece out but keep its lines, so that the numbers still fit."""
    return "\n" * match.group().count("\n")


if __name__ == "__main__":
    sys.exit(main())
