"""Texts, notebooks, modules, stored outputs and pages are in step.

Words and numbers are compared by `pytest --nbval book/`; here every chapter
is executed as `make chapters` does it, and its pictures are compared.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import chapters
import numpy as np
import pytest
from pages import (
    BUILT,
    ROOT,
    Page,
    dead_ends,
    is_local,
    nameless_images,
    raw_markup,
    read,
)
from PIL import Image

BIN = Path(sys.executable).parent
BOOK = ROOT / "book"

NOTEBOOKS = sorted(BOOK.glob("[0-9][0-9]-*.ipynb"))
WORKED = BOOK / "01-groups.ipynb"  # the one that is broken below


def code_cells(notebook):
    return [c for c in notebook["cells"] if c["cell_type"] == "code"]


# pairs, exports, outputs ----------------------------------------------------


@pytest.mark.parametrize(
    "check",
    [
        chapters.pairs_out_of_step,
        chapters.exports_out_of_step,
        chapters.outputs_out_of_step,
    ],
    ids=lambda check: check.__name__,
)
def test_the_book_is_in_step(check):
    assert not check(), "\n".join(check())


@pytest.fixture
def copy(tmp_path):
    """A book of one chapter and the package it exports to."""
    book, package = tmp_path / "book", tmp_path / "hcnn"
    book.mkdir()
    package.mkdir()
    for suffix in (".md", ".ipynb"):
        shutil.copy(WORKED.with_suffix(suffix), book)
    for name in ("__init__", "axes", "runtime", "groups"):
        shutil.copy(ROOT / "hcnn" / f"{name}.py", package)
    return tmp_path


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def edit_notebook(path, change):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    change(notebook)
    path.write_text(json.dumps(notebook), encoding="utf-8")


def test_a_whole_copy_has_no_complaint(copy):
    book, package = copy / "book", copy / "hcnn"
    assert chapters.pairs_out_of_step(book) == []
    assert chapters.outputs_out_of_step(book) == []
    found = chapters.exports_out_of_step(book, package)
    assert [c for c in found if "_modidx" not in c] == []


@pytest.mark.parametrize("place", ["prose", "code", "options"])
def test_an_edited_text_is_found(copy, place):
    old, new = {
        "prose": ("A symmetry", "Some symmetry"),
        "code": ("depth=5", "depth=6"),
        "options": ("name: fig-cascade", "name: fig-cascades"),
    }[place]
    text = copy / "book/01-groups.md"
    if old not in text.read_text():
        old, new = "You need:", "You want:"
    edit(text, old, new)
    (found,) = chapters.pairs_out_of_step(copy / "book")
    assert "differ: run `make chapters ONLY=01`" in found


def test_a_missing_half_is_found(copy):
    book = copy / "book"
    (book / "02-x.md").write_text("# X\n")
    shutil.copy(WORKED, book / "03-y.ipynb")
    two, three = chapters.pairs_out_of_step(book)
    assert two == "02-x.ipynb is missing: run `make chapters ONLY=02`"
    assert three == "03-y.md is missing: restore it, or remove 03-y.ipynb"


def test_an_edited_module_is_found(copy):
    module = copy / "hcnn/groups.py"
    module.write_text(module.read_text() + "\n# a change\n")
    found = chapters.exports_out_of_step(copy / "book", copy / "hcnn")
    (found,) = [c for c in found if "groups" in c]
    assert "not what its chapter exports: run `make chapters`" in found
    assert "nbdev-update --fname hcnn/groups.py" in found


def test_a_module_without_its_chapter_is_found(copy):
    shutil.copy(copy / "hcnn/groups.py", copy / "hcnn/left.py")
    found = chapters.exports_out_of_step(copy / "book", copy / "hcnn")
    assert any("hcnn/left.py is exported by no chapter" in c for c in found)


def test_a_module_without_docstring_is_found(copy):
    def drop(notebook):
        for cell in notebook["cells"]:
            source = "".join(cell["source"])
            cell["source"] = re.sub(r"^> .*\n", "", source, flags=re.M)

    edit_notebook(copy / "book/01-groups.ipynb", drop)
    module = copy / "hcnn/groups.py"
    head, mark, rest = module.read_text().partition(chapters.GENERATED)
    module.write_text(mark + rest)
    found = chapters.exports_out_of_step(copy / "book", copy / "hcnn")
    (found,) = [c for c in found if "groups" in c]
    assert "has no docstring" in found and "make chapters" in found


def clear(cells):
    cells[5].update(execution_count=None, outputs=[])


def swap(cells):
    one, two = cells[5], cells[6]
    one["execution_count"], two["execution_count"] = (
        two["execution_count"],
        one["execution_count"],
    )


def fail(cells):
    cells[5]["outputs"] = [{"output_type": "error", "ename": "ValueError"}]


def empty(cells):
    for cell in cells:
        cell["outputs"] = []


@pytest.mark.parametrize(
    "change, complaint",
    [
        (clear, "has 1 cells that were not executed"),
        (swap, "was not executed from top to bottom"),
        (fail, "holds an error"),
        (empty, "holds no output"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_outputs_that_no_run_has_left_are_found(copy, change, complaint):
    path = copy / "book/01-groups.ipynb"
    edit_notebook(path, lambda notebook: change(code_cells(notebook)))
    (found,) = chapters.outputs_out_of_step(copy / "book")
    assert complaint in found
    assert found.endswith("run `make chapters ONLY=01`")


def test_06_and_07_are_not_stored_without_data(tmp_path):
    """The real program, on a copy of the project."""
    parts = ("book", "hcnn", "tools", "pyproject.toml", "jupytext.toml")
    skipped = shutil.ignore_patterns("vendor", "__pycache__")
    for part in parts:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, tmp_path / part, ignore=skipped)
        else:
            shutil.copy(source, tmp_path)
    environment = {k: v for k, v in os.environ.items() if k != "HCNN_DATA"}
    done = subprocess.run(
        [sys.executable, tmp_path / "tools/chapters.py", "06", "07"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "not stored: 06-data, 07-network." in done.stderr
    assert "set HCNN_DATA" in done.stderr
    assert "run `make chapters` again" in done.stderr
    for notebook in (BOOK / "06-data.ipynb", BOOK / "07-network.ipynb"):
        ours, copied = (
            [c["outputs"] for c in code_cells(json.loads(path.read_text()))]
            for path in (notebook, tmp_path / "book" / notebook.name)
        )
        assert ours == copied, f"{notebook.name} lost its outputs"


# pictures -------------------------------------------------------------------

# Between two instruction sets of one machine the pictures do not differ at
# all. A line moved by two pixels differs in 0.1 % of them, a marker that
# moves by its own size in 0.03 %.
CLEARLY, SHARE, MEAN = 32, 2e-4, 0.5


def before_training(cells: list) -> list:
    """The cells before the section that draws a training curve.

    What that section draws depends on the machine, and it takes long; its
    words and claims are checked by `pytest --nbval`.
    """
    for index, cell in enumerate(cells):
        if "training-curve" in cell["metadata"].get("tags", []):
            while not any(
                line.startswith("## ")
                for line in "".join(cells[index]["source"]).splitlines()
            ):
                index -= 1
            return cells[:index]
    return cells


def pictures(text: str) -> dict[str, Image.Image]:
    """Figures and frames of widgets in a notebook, by their place."""
    notebook, found = json.loads(text), {}

    def keep(name, data):
        image = Image.open(io.BytesIO(base64.b64decode(data)))
        found[name] = image.convert("RGB")

    notebook["cells"] = before_training(notebook["cells"])
    for index, cell in enumerate(code_cells(notebook)):
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                figure = (
                    cell["metadata"].get("mystnb", {}).get("figure", {})
                )
                name = figure.get("name", f"of cell {index}")
                keep(f"figure {name}", output["data"]["image/png"])
    widgets = notebook["metadata"].get("widgets", {})
    models = widgets.get(chapters.WIDGET_STATE, {}).get("state", {})
    for name, model in models.items():
        if model["model_name"] == "ImageModel":
            keep(f"widget frame {name[:8]}", model["buffers"][0]["data"])
    return found


def changed_pictures(name: str, stored: str, made: str) -> list[str]:
    """Complaints about stored pictures that the code no longer draws."""
    stored, made = pictures(stored), pictures(made)
    complaints = []
    for place in stored | made:
        if place not in stored or place not in made:
            where = "stored" if place in made else "drawn any more"
            complaints.append(f"{name}: {place} is not {where}")
            continue
        one, two = stored[place], made[place]
        if one.size != two.size:
            complaints.append(
                f"{name}: {place} is {one.size} as stored, {two.size} now"
            )
            continue
        one, two = (np.asarray(image, float) for image in (one, two))
        difference = np.abs(one - two).max(2)
        share, mean = (difference > CLEARLY).mean(), difference.mean()
        if share > SHARE or mean > MEAN:
            complaints.append(
                f"{name}: {place} has changed ({100 * share:.2g} % of its "
                f"pixels clearly, {mean:.2g} of 255 on average)"
            )
    return [f"{c}: {chapters.mend(name)}" for c in complaints]


@cache
def executed(notebook: Path) -> str:
    return chapters.executed(notebook, before_training)


@pytest.fixture
def as_stored(monkeypatch):
    """The environment in which outputs are stored; ours again after."""
    for name in ("HCNN_WIDGETS", "PYDEVD_DISABLE_FILE_VALIDATION"):
        monkeypatch.setenv(name, "")
    chapters.prepare_environment()


def marked(notebook):
    needs = notebook.name[:2] in chapters.NEEDS_DATA
    marks = [pytest.mark.cifar] if needs else []
    return pytest.param(notebook, marks=marks, id=notebook.stem)


@pytest.mark.parametrize("notebook", [marked(path) for path in NOTEBOOKS])
def test_stored_pictures_are_what_the_code_draws(notebook, as_stored):
    stored = notebook.read_text(encoding="utf-8")
    found = changed_pictures(notebook.name, stored, executed(notebook))
    assert not found, "\n".join(found)


def test_executing_twice_gives_the_same_bytes(as_stored):
    assert executed(WORKED) == chapters.executed(WORKED)


def as_png(image):
    drawn = io.BytesIO()
    image.save(drawn, format="png")
    return base64.b64encode(drawn.getvalue()).decode()


def alter(notebook, name, change):
    """Replace one stored figure."""
    for cell in code_cells(notebook):
        figure = cell["metadata"].get("mystnb", {}).get("figure", {})
        if figure.get("name") == name:
            (output,) = [o for o in cell["outputs"] if "data" in o]
            data = base64.b64decode(output["data"]["image/png"])
            image = Image.open(io.BytesIO(data)).convert("RGB")
            output["data"]["image/png"] = as_png(change(image))


def move_marker(image):
    """The orange marker, moved by its own size."""
    pixels = np.asarray(image).copy()
    red, _, blue = pixels.transpose(2, 0, 1).astype(int)
    rows, columns = np.nonzero(red - blue > 150)
    right = columns > pixels.shape[1] // 2
    top, left = rows[right].min(), columns[right].min()
    bottom, end = rows[right].max() + 1, columns[right].max() + 1
    marker = pixels[top:bottom, left:end].copy()
    pixels[top:bottom, left:end] = 255
    width = end - left
    pixels[top:bottom, left + width : end + width] = marker
    return Image.fromarray(pixels)


def move_down(image):
    return Image.fromarray(np.roll(np.asarray(image), 2, 0))


def darken(image):
    return image.point(lambda value: int(0.99 * value))


def crop(image):
    return image.crop((0, 0, image.width, image.height - 1))


def flicker(image):
    """Rounding: every value one off, and an edge here and there."""
    pixels = np.asarray(image).astype(int)
    noise = np.random.default_rng(0)
    pixels += noise.integers(0, 10, pixels.shape) == 0
    pixels[:20, :2] += 40
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "name, change, seen",
    [
        ("fig-covariance", move_marker, True),
        ("fig-subsampling", move_down, True),
        ("fig-shifted", darken, True),
        ("fig-cascade", crop, True),
        ("fig-borders", flicker, False),
    ],
)
def test_an_altered_figure_is_found(name, change, seen):
    stored = WORKED.read_text(encoding="utf-8")
    notebook = json.loads(stored)
    alter(notebook, name, change)
    found = changed_pictures(WORKED.name, json.dumps(notebook), stored)
    assert len(found) == seen
    for complaint in found:
        assert f"figure {name}" in complaint
        assert complaint.endswith("run `make chapters ONLY=01`")


def test_an_altered_frame_is_found():
    stored = WORKED.read_text(encoding="utf-8")
    notebook = json.loads(stored)
    models = notebook["metadata"]["widgets"][chapters.WIDGET_STATE]["state"]
    one, two, *_ = [
        m for m in models.values() if m["model_name"] == "ImageModel"
    ]
    one["buffers"] = two["buffers"]
    found = changed_pictures(WORKED.name, json.dumps(notebook), stored)
    assert len(found) == 1 and "widget frame" in found[0]


def test_a_figure_that_is_gone_is_found():
    stored = WORKED.read_text(encoding="utf-8")
    notebook = json.loads(stored)
    for cell in code_cells(notebook)[:5]:
        cell["outputs"] = []
    found = changed_pictures(WORKED.name, stored, json.dumps(notebook))
    assert len(found) == 1
    assert "figure fig-cascade is not drawn any more" in found[0]


def test_a_training_curve_and_its_section_are_left_out():
    stored = WORKED.read_text(encoding="utf-8")
    notebook = json.loads(stored)
    for cell in code_cells(notebook):
        figure = cell["metadata"].get("mystnb", {}).get("figure", {})
        if figure.get("name") == "fig-borders":
            cell["metadata"]["tags"] = ["training-curve"]
    kept = before_training(notebook["cells"])
    text = "".join("".join(cell["source"]) for cell in kept)
    assert "def draw_shifts" in text
    assert "What does a border break" not in text
    figures = {n for n in pictures(json.dumps(notebook)) if "figure" in n}
    assert figures == {"figure fig-cascade", "figure fig-shifted"}


# built pages ----------------------------------------------------------------


def build(folder: Path, vendor: bool) -> Path:
    """A book of three pages, with or without the fetched scripts."""
    skipped = shutil.ignore_patterns("vendor")
    (folder / "book").mkdir(parents=True)
    shutil.copy(ROOT / "_config.yml", folder)
    for name in ("_ext", "_assets"):
        shutil.copytree(BOOK / name, folder / "book" / name, ignore=skipped)
    for name in ("notation.md", "references.bib", WORKED.name, "api.md"):
        shutil.copy(BOOK / name, folder / "book")
    (folder / "book/_toc.yml").write_text(
        "format: jb-book\nroot: notation\nchapters:\n"
        "  - file: 01-groups\n  - file: api\n"
    )
    if vendor:
        widgets = folder / "book/_assets/vendor/widgets"
        mathjax = folder / "book/_assets/vendor/mathjax"
        for path in (
            widgets / "require.js",
            widgets / "embed-amd.js",
            mathjax / "tex-mml-chtml.js",
        ):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    subprocess.run(
        [BIN / "jupyter-book", "build", "book", "--quiet"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return folder / "_build/html"


SCRIPTS = ("require", "embed-amd", "tex-mml-chtml")


@pytest.mark.parametrize("vendor", [True, False], ids=["fetched", "public"])
def test_pages_take_their_scripts_from_where_they_are(tmp_path, vendor):
    pages = read(build(tmp_path, vendor))
    page = pages[(tmp_path / "_build/html/01-groups.html").resolve()]
    loaded = list(page.loaded())
    for name in SCRIPTS:
        (address,) = [a for a in loaded if re.search(rf"{name}[^/]*$", a)]
        assert is_local(address) == vendor, address
        assert vendor or address.startswith("https://"), address
    outside = [
        a for p in pages.values() for a in p.loaded() if not is_local(a)
    ]
    assert not (vendor and outside), outside
    for page in pages.values():
        for address in filter(is_local, page.loaded()):
            name = address.partition("?")[0].partition("#")[0]
            assert (page.path.parent / name).exists(), address


@pytest.fixture(scope="module")
def built():
    return read(BUILT)


@pytest.mark.browser
def test_every_link_of_the_built_book_leads_somewhere(built):
    assert not dead_ends(built), "\n".join(dead_ends(built))


@pytest.mark.browser
def test_no_page_shows_raw_markup_or_an_error(built):
    found = [c for page in built.values() for c in raw_markup(page)]
    assert not found, "\n".join(found)


@pytest.mark.browser
def test_every_picture_of_the_built_book_has_a_text(built):
    found = [c for page in built.values() for c in nameless_images(page)]
    assert not found, "\n".join(found)


@pytest.mark.browser
def test_no_page_weighs_more_than_six_megabytes(built):
    heavy = {p.name: p.stat().st_size / 1e6 for p in built}
    assert max(heavy.values()) < 6, heavy


@pytest.mark.browser
def test_the_built_book_is_not_older_than_its_sources():
    built = max(page.stat().st_mtime for page in BUILT.glob("*.html"))
    sources = [
        *BOOK.glob("*.ipynb"),
        *BOOK.glob("*.md"),
        ROOT / "_config.yml",
    ]
    newer = [s.name for s in sources if s.stat().st_mtime > built]
    stale = [n for n in newer if not re.match(r"\d\d-.*\.md", n)]
    assert not stale, f"{stale} changed since: run `make book`"


@pytest.mark.parametrize(
    "body, check",
    [
        ('<a href="gone.html">x</a>', "dead_ends"),
        ('<a href="#gone">x</a>', "dead_ends"),
        ('<img src="gone.png" alt="x">', "dead_ends"),
        ("<p>so $$ x $$</p>", "raw_markup"),
        ("<p>where \\frac12</p>", "raw_markup"),
        ("<p>along v_{j-2}</p>", "raw_markup"),
        ("<p>see {ref}`sec`</p>", "raw_markup"),
        ("<div>Traceback (most recent call last)</div>", "raw_markup"),
        ('<img src="page.html">', "nameless_images"),
        ('<img src="page.html" alt=" ">', "nameless_images"),
    ],
)
def test_the_checks_of_pages_complain_about(tmp_path, body, check):
    path = tmp_path / "page.html"
    path.write_text(f"<html><body>{body}</body></html>")
    page = Page(path)
    complaints = {
        "dead_ends": dead_ends({path.resolve(): page}),
        "raw_markup": raw_markup(page),
        "nameless_images": nameless_images(page),
    }
    assert [name for name, found in complaints.items() if found] == [check]


def test_the_checks_of_pages_accept_code_formulas_and_places(tmp_path):
    path = tmp_path / "page.html"
    path.write_text(
        '<p id="here">a $5 note</p><a href="#here">x</a><a href="page.html">'
        '</a><pre>$$ \\frac12 $$ Traceback</pre><span class="math notranslate">'
        '\\(x\\)</span><img src="page.html" alt="a page">'
        '<a href="https://example.org/gone">out</a>'
    )
    page = Page(path)
    assert dead_ends({path.resolve(): page}) == []
    assert raw_markup(page) == nameless_images(page) == []
