"""Read built pages: links, anchors, visible words; and what shows them."""

import re
import shutil
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / "_build" / "html"
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link"}
VOID |= {"meta", "source", "track", "wbr"}
UNSEEN = {"script", "style", "pre", "code", "title", "template"}
RAW = re.compile(
    r"\$\$|\$\\|\\[({\[]|\\[a-zA-Z]{2,}|\w_\{|Traceback|"
    r"\{(?:ref|eq|doc|numref|cite|prf:ref|glue)[^}]*\}"
)


def chromium() -> str | None:
    """The browser's program, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next(filter(None, map(shutil.which, names)), None)


@dataclass
class Page(HTMLParser):
    """One HTML file: its links, ids, pictures and words."""

    path: Path
    links: list = field(default_factory=list)  # (tag, attributes, address)
    ids: set = field(default_factory=set)
    images: list = field(default_factory=list)
    words: list = field(default_factory=list)

    def __post_init__(self):
        super().__init__()
        self._open = []  # (tag, are its words unseen?)
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids |= {attributes.get("id"), attributes.get("name")} - {None}
        if tag == "img":
            self.images.append(attributes)
        for name in ("href", "src"):
            if attributes.get(name):
                self.links.append((tag, attributes, attributes[name]))
        if tag not in VOID:
            math = "math" in (attributes.get("class") or "").split()
            inside = bool(self._open) and self._open[-1][1]
            self._open.append((tag, inside or math or tag in UNSEEN))

    def handle_endtag(self, tag):
        while any(tag == opened for opened, _ in self._open):
            if self._open.pop()[0] == tag:
                break

    def handle_data(self, data):
        if not (self._open and self._open[-1][1]):
            self.words.append(data)

    def loaded(self):
        """Addresses that a browser fetches by itself."""
        for tag, attributes, address in self.links:
            kinds = (attributes.get("rel") or "").split()
            fetched = {"stylesheet", "preload", "icon", "shortcut"}
            if tag in ("script", "img", "audio", "iframe", "source") or (
                tag == "link" and fetched & set(kinds)
            ):
                yield address


def is_local(address: str) -> bool:
    return not re.match(r"[a-z]+:|//", address)


def read(folder: Path) -> dict[Path, Page]:
    """All pages of a built book."""
    found = sorted(folder.resolve().glob("*.html"))
    return {path: Page(path) for path in found}


def dead_ends(pages: dict[Path, Page]) -> list[str]:
    """Local links to no file, or to no place in a page."""
    found = []
    for path, page in pages.items():
        for _, _, address in page.links:
            if not is_local(address):
                continue
            name, _, fragment = address.partition("#")
            name = unquote(name.partition("?")[0])
            target = (path.parent / name).resolve() if name else path
            if not target.exists():
                found.append(f"{path.name}: {address} does not exist")
            elif fragment and target in pages:
                if unquote(fragment) not in pages[target].ids:
                    found.append(f"{path.name}: {address}: no such place")
    return found


def raw_markup(page: Page) -> list[str]:
    """TeX, MyST or error messages among the words that a reader sees."""
    text = " ".join(page.words)
    return [
        f"{page.path.name}: …{text[max(0, m.start() - 30) : m.end() + 30]}…"
        for m in RAW.finditer(text)
    ]


def nameless_images(page: Page) -> list[str]:
    """Pictures without words for those who cannot see them."""
    return [
        f"{page.path.name}: {image.get('src', '')[:80]} has no alt text"
        for image in page.images
        if not (image.get("alt") or "").strip()
    ]
