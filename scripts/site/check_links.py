"""Check the links of a built site: python check_links.py FOLDER. Links to other hosts are listed, not opened."""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADED = {"link", "script", "img", "source", "video", "iframe"}
"""Elements whose address the browser loads by itself."""


class Links(HTMLParser):
    """Identifiers and links of one page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect the identifier and the address of an element."""
        values = dict(attrs)
        self.ids.update(value for key in ("id", "name") if (value := values.get(key)))
        self.links += [(tag, value) for key in ("href", "src") if (value := values.get(key))]


def faults(site: Path) -> list[str]:
    """Return a line for each link that leads nowhere, and for each file of another host that a page would load."""
    pages = {}
    for path in sorted(site.rglob("*.html")):
        pages[path] = Links()
        pages[path].feed(path.read_text(encoding="utf-8"))
    found = []
    for path, page in pages.items():
        for tag, link in page.links:
            parts = urlsplit(link)
            where = f"{path.relative_to(site)}: {link}"
            if parts.scheme or parts.netloc:
                if tag in LOADED and parts.scheme != "data":
                    found.append(f"{where} is loaded from another host")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if path.name == "404.html":
                continue  # its links are those of the server's root
            if not target.exists():
                found.append(f"{where} leads nowhere")
            elif parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
                found.append(f"{where} has no such place")
    return found


def main(folder: str) -> None:
    """Print the faults and end with 1 where there are any."""
    site = Path(folder).resolve()
    lines = faults(site)
    print("\n".join(lines) or f"{sum(1 for _ in site.rglob('*.html'))} pages, all links lead somewhere")
    sys.exit(bool(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
