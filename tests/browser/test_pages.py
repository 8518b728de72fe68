"""Every page of the built book in a real browser, over http and from files.

pytest -m browser tests                         after `make book`
pytest -m browser tests --screenshots DIR       pictures of every page
"""

import functools
import http.server
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pages import BUILT, chromium

WIDTHS = (1280, 390)
WAYS = ("http", "file")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
NAMES = sorted({path.stem for path in BUILT.glob("*.html")} - {"index"})

pytestmark = pytest.mark.browser

# Parts that stand out of the page, or that are cut: what scrolls inside a
# box of its own (long displays, tables, code on a telephone) is neither.
TOO_WIDE = """() => {
  // on a telephone a figure may scroll in a box of its own
  const scrolls = (e) => ["auto", "scroll"].includes(
    getComputedStyle(e).overflowX)
    && e.getBoundingClientRect().right <= innerWidth + 1;
  const boxed = (e) => e && e.tagName !== "ARTICLE"
    && (scrolls(e) || boxed(e.parentElement));
  const inside = (e) => e.closest("mjx-container, pre, table, math")
    || (innerWidth < 600 && boxed(e.parentElement));
  const wide = [...document.querySelectorAll("article *")]
    .filter((e) => e.checkVisibility() && !inside(e))
    .filter((e) => e.getBoundingClientRect().right > innerWidth + 1)
    .map((e) => `${e.tagName} ${e.className}`);
  const cut = [...document.querySelectorAll("article mjx-container")]
    .filter((e) => e.checkVisibility() && !e.hasAttribute("display"))
    .filter((e) => e.getBoundingClientRect().right
      > e.closest("p, li, td, th, dd, dt, figcaption, h1, h2, h3, div")
         .getBoundingClientRect().right + 1)
    .filter((e) => !e.closest("table"))
    .map((e) => "formula in a line: " + e.textContent.slice(0, 40)
      + " in " + e.parentElement.textContent.trim().slice(0, 60));
  return [...wide, ...cut];
}"""
SCROLLING_CODE = """() => [...document.querySelectorAll("article pre")]
  .filter((e) => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1)
  .map((e) => e.textContent.trim().slice(0, 60))"""
BAD_TEX = """() => [
  ...[...document.querySelectorAll("mjx-merror")].map((e) => e.title
    || e.textContent),
  ...[...document.querySelectorAll("article .math")]
    .filter((e) => e.checkVisibility() && !e.querySelector("mjx-container"))
    .map((e) => e.textContent.slice(0, 60)),
]"""
EMPTY_IMAGES = """() => [...document.images]
  .filter((e) => e.checkVisibility() && !(e.complete && e.naturalWidth))
  .map((e) => e.src.slice(0, 100))"""
SILENT = """() => Promise.all([...document.querySelectorAll("audio")].map(
  (e) => new Promise((done) => {
    const say = () => done(e.duration > 0 ? null : "audio of no length");
    if (e.readyState > 0) return say();
    e.addEventListener("loadedmetadata", say);
    e.addEventListener("error", () => done("audio: " + e.error.message));
    setTimeout(() => done("audio did not load"), 5000);
    e.load();
  }))).then((found) => found.filter(Boolean))"""
PICTURE = """(widget) => [...widget.querySelectorAll("img")]
  .filter((e) => e.checkVisibility() && e.complete && e.naturalWidth)
  .map((e) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [e.naturalWidth, e.naturalHeight];
    canvas.getContext("2d").drawImage(e, 0, 0);
    return canvas.toDataURL();
  }).join()"""


@dataclass
class Seen:
    """What happened while one page was open."""

    errors: list = field(default_factory=list)
    outside: list = field(default_factory=list)
    sliders: int = 0
    widgets: int = 0


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def site():
    """The address of the built book, over http."""
    handler = functools.partial(Quiet, directory=str(BUILT))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        program = playwright.chromium.launch(
            executable_path=chromium(), args=FLAGS
        )
        yield program
        program.close()


@pytest.fixture(scope="module")
def table(request):
    """Rows (page, way) -> Seen, printed at the end."""
    rows = {}
    yield rows
    request.config.page_table = summary(rows)


def summary(rows: dict) -> list[str]:
    lines = ["", f"{'page':22}{'way':6}widgets  sliders  errors  outside"]
    total = Counter()
    for (name, way), seen in rows.items():
        counts = (
            seen.widgets,
            seen.sliders,
            len(seen.errors),
            len(seen.outside),
        )
        total.update(dict(enumerate(counts)))
        cells = "".join(
            f"{count:>{w}}"
            for count, w in zip(counts, (7, 9, 8, 9), strict=True)
        )
        lines.append(f"{name:22}{way:6}{cells}")
    sums = "".join(f"{total[i]:>{w}}" for i, w in enumerate((7, 9, 8, 9)))
    return [*lines, f"{len(rows):<4}pages opened{'':12}{sums}"]


def open_page(page, address: str) -> None:
    """Go there, and wait for formulas, pictures and widgets."""
    page.goto(address)
    page.wait_for_load_state("load")
    page.evaluate("() => window.MathJax?.startup?.promise")
    page.evaluate(
        "() => document.querySelectorAll('img').forEach((e) => (e.loading = 'eager'))"
    )
    page.wait_for_function(
        """() => {
          const views = document.querySelectorAll(
            'script[type="application/vnd.jupyter.widget-view+json"]');
          const drawn = document.querySelectorAll(".hcnn-explore .noUi-handle");
          const boxes = document.querySelectorAll(".hcnn-explore");
          return boxes.length >= views.length
            && [...boxes].every((e) => e.querySelector(".noUi-handle")
              && e.querySelector("img")?.naturalWidth)
            && [...document.images].every((e) => e.complete);
        }""",
        timeout=20_000,
    )


def move(page, widget, handle) -> list[str]:
    """Move one slider by keyboard, there and back."""
    handle.scroll_into_view_if_needed()
    handle.focus()
    name = handle.evaluate(
        "(e) => document.getElementById(e.getAttribute('aria-labelledby'))?.textContent"
    )
    if not name:
        return ["a slider without a name"]
    first, last = (
        float(handle.get_attribute(f"aria-value{end}"))
        for end in ("now", "max")
    )
    there, back = "ArrowRight", "ArrowLeft"
    if first == last:
        there, back = back, there
    before = widget.evaluate(PICTURE)
    found = []
    for key, moved in ((there, True), (back, False)):
        at = float(handle.get_attribute("aria-valuenow"))
        page.keyboard.press(key)
        try:
            page.wait_for_function(
                """([handle, at, widget, old, moved, picture]) => {
                  const now = eval(picture)(widget);
                  return +handle.getAttribute("aria-valuenow") !== at
                    && now && (now !== old) === moved;
                }""",
                arg=[
                    handle.element_handle(),
                    at,
                    widget.element_handle(),
                    before,
                    moved,
                    PICTURE,
                ],
                timeout=4000,
            )
        except Exception as error:
            now = handle.get_attribute("aria-valuenow")
            found.append(
                f"slider {name!r}: {key} from {at} to {now}: its picture "
                f"{'stays' if moved else 'does not come back'} ({error})"[
                    :300
                ]
            )
    return found


def visit(browser, address, width, seen, work):
    """Open a page at one width, do the work, collect errors."""
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on(
        "console",
        lambda said: (
            seen.errors.append(f"{said.text} {said.location}")
            if said.type == "error"
            else None
        ),
    )
    ours = (address.rpartition("/")[0], "data:", "blob:")
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(ours)
            else seen.outside.append(request.url)
        ),
    )
    open_page(page, address)
    found = work(page)
    context.close()
    return found


def look(page, width) -> list[str]:
    """What is ugly or broken in an open page."""
    scroll = page.evaluate("document.scrollingElement.scrollWidth")
    complaints = [f"{width} pixels: the page is {scroll} wide"] * (
        scroll > width
    )
    checks = {
        "stands out": TOO_WIDE,
        "raw TeX": BAD_TEX,
        "no picture": EMPTY_IMAGES,
        "no sound": SILENT,
    }
    if width == 1280:
        checks["code scrolls sideways"] = SCROLLING_CODE
    for words, check in checks.items():
        complaints += [
            f"{width} pixels: {words}: {found}"
            for found in page.evaluate(check)
        ]
    return complaints


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_the_page_is_whole_and_its_widgets_move(
    name, way, site, browser, table, request
):
    path = (BUILT / f"{name}.html").resolve()
    address = f"{site}{name}.html" if way == "http" else path.as_uri()
    seen = table[name, way] = Seen()
    folder = request.config.getoption("screenshots")

    def work(page, width):
        complaints = look(page, width)
        if folder and way == "file":
            Path(folder).mkdir(parents=True, exist_ok=True)
            picture = Path(folder) / f"{name}-{width}.png"
            page.screenshot(path=picture, full_page=True)
        if width == 1280:
            widgets = page.locator(".hcnn-explore")
            for widget in widgets.all():
                seen.widgets += 1
                for handle in widget.locator(".noUi-handle").all():
                    seen.sliders += 1
                    complaints += move(page, widget, handle)
        return complaints

    complaints = []
    for width in WIDTHS:
        if way == "http" or width == 1280 or folder:
            complaints += visit(
                browser,
                address,
                width,
                seen,
                functools.partial(work, width=width),
            )
    complaints += [f"page error: {error}" for error in seen.errors]
    complaints += [f"request to {address}" for address in seen.outside]
    assert not complaints, f"{name} ({way}):\n" + "\n".join(complaints)


def test_the_front_door_leads_to_the_first_page(site, browser):
    page = browser.new_page()
    page.goto(f"{site}index.html")
    page.wait_for_url(f"{site}intro.html", timeout=5000)
    page.close()


@pytest.mark.parametrize("chapter", ["01", "02", "03", "04", "07"])
def test_the_chapter_has_a_widget(chapter):
    (path,) = BUILT.glob(f"{chapter}-*.html")
    assert "widget-view+json" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "body, complaint",
    [
        ("<div style='width: 2000px'>wide</div>", "the page is 2"),
        ("<article><p style='width: 50px'><b>" + "w" * 999, "stands out"),
        ("<article><pre>" + "w" * 999, "code scrolls sideways"),
        ("<article><span class='math'>\\(x\\)</span>", "raw TeX: \\(x\\)"),
        ("<img src='gone.png' width='9' height='9'>", "no picture"),
        ("<audio src='gone.wav'></audio>", "no sound"),
    ],
)
def test_the_checks_complain_about(browser, tmp_path, body, complaint):
    path = tmp_path / "page.html"
    path.write_text(f"<style>pre {{overflow: auto}}</style>{body}")
    seen = Seen()
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(path.as_uri())
    found = look(page, 1280)
    context.close()
    assert any(complaint in each for each in found), (found, seen)
