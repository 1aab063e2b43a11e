"""Check links, anchors and lists of built pages, and list links to the outside: python .ci/check_links.py FOLDER."""

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links, self.anchors = set(), {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links.update(value for name, value in attrs if name in ("href", "src") and value)
        self.anchors.update(value for name, value in attrs if name in ("id", "name") and value)
        kind = str(dict(attrs).get("class"))
        if tag == "ol" and ("roman" in kind or ("alpha" in kind and "start" in dict(attrs))):  # (i) or T., not a. b. c.
            self.links.add("a sentence that begins with a letter and a full stop became a list")


root = Path(sys.argv[1]).resolve()
pages = {path: Page(path) for path in sorted(root.rglob("*.html")) if "_static" not in path.parts}
broken, outside = [], set()
for path, page in pages.items():
    # Sphinx's links back from sources know one package per file.
    for link in sorted(page.links) if "_modules" not in path.parts else ():
        parts = urlsplit(link)
        target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
        if parts.scheme or parts.netloc:
            outside.add(link)
        elif not target.exists() or (target in pages and unquote(parts.fragment) not in pages[target].anchors):
            broken.append(f"{path.relative_to(root)}: {link}")
counts = f"{len(pages)} pages, {len(broken)} broken links, {len(outside)} to the outside\n"
sys.stdout.write("\n".join([*sorted(outside), *broken, counts]))
sys.exit(bool(broken) or not pages)
