"""Checks that every link inside of the built site leads somewhere: ``python docs/check_links.py docs/_build/html``."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The names that a page has for links to it, and where its own links point."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.file = file
        self.names = {""}
        self.targets: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what is named and what is pointed at."""
        for name, value in attrs:
            if value and (name == "id" or (tag, name) == ("a", "name")):
                self.names.add(value)
            elif value and name in ("href", "src"):
                self.targets.append(value)


def broken(site: Path) -> list[str]:
    """The links inside of the site that lead to no file, or to no place in it; those to other sites are not followed."""
    pages = {file.resolve(): Page(file) for file in sorted(site.rglob("*.html"))}
    found = []
    for page in pages.values():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (page.file.parent / unquote(parts.path)).resolve() if parts.path else page.file.resolve()
            names = pages[file].names if file in pages else {"", unquote(parts.fragment)}
            if not file.is_file() or unquote(parts.fragment) not in names:
                found.append(f"{page.file.relative_to(site)}: {target}")
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if not (folder / "index.html").is_file():
        sys.exit(f"{folder}: no site here; build it first")
    wrong = broken(folder)
    print("\n".join(wrong) or "every link inside of the site leads somewhere")
    sys.exit(1 if wrong else 0)
