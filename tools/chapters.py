"""The literate machinery: text -> notebook -> module -> stored outputs.

    python tools/chapters.py            all steps for every chapter
    python tools/chapters.py 02 03      for these chapters
    python tools/chapters.py --check    are pairs and exported modules in step?

Chapters 06 and 07 store outputs on CIFAR-10's images, so they are stored
only where HCNN_DATA names a folder that has them.
"""

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOOK, PACKAGE = ROOT / "book", ROOT / "hcnn"
NEEDS_DATA = ("06", "07")
MEND = "run `make chapters`"
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"


def texts(book: Path = BOOK) -> list[Path]:
    """The chapters' MyST sources, in reading order."""
    return sorted(book.glob("[0-9][0-9]-*.md"))


def run(*command, cwd: Path = ROOT) -> None:
    """Run a program of this environment; show its output only if it fails."""
    program = Path(sys.executable).parent / command[0]
    done = subprocess.run(
        [program, *command[1:]],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")


def has_data() -> bool:
    folder = os.environ.get("HCNN_DATA")
    return bool(folder) and (Path(folder) / "cifar-10-batches-py").is_dir()


def update(paths: list[Path]) -> None:
    """Carry the text into the notebooks; cell ids and outputs stay."""
    for path in paths:
        run("jupytext", "--quiet", "--update", "--to", "ipynb", path)


def export(root: Path = ROOT) -> None:
    """Write the modules from the notebooks."""
    run("nbdev-export", cwd=root)
    (root / "book" / "llms.txt").unlink(missing_ok=True)  # nbdev's, not ours
    run("ruff", "format", "--quiet", "hcnn", cwd=root)
    run("ruff", "format", "--quiet", "--no-force-exclude", "hcnn/_modidx.py", cwd=root)


def executed(path: Path) -> str:
    """The notebook's text after execution; equal for equal code.

    No time stamps, one stream a cell, widget ids from their order.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata.pop("widgets", None)
    NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        extra_arguments=["--log-level=40"],
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    notebook.metadata.get("language_info", {}).pop("version", None)
    widgets = notebook.metadata.get("widgets", {}).get(WIDGET_STATE, {})
    text = nbformat.writes(notebook)
    for index, model in enumerate(widgets.get("state", {})):
        name = hashlib.md5(f"{path.name}:{index}".encode()).hexdigest()
        text = text.replace(model, name)
    # read and written again: the widget models stand sorted by their new ids
    return nbformat.writes(nbformat.reads(text, 4)) + "\n"


def prepare_environment() -> None:
    """What a chapter's kernel must find when its outputs are stored."""
    os.environ["HCNN_WIDGETS"] = "frames"
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    if os.environ.get("HCNN_DATA"):
        os.environ["HCNN_DATA"] = str(Path(os.environ["HCNN_DATA"]).resolve())


def write(path: Path, text: str) -> None:
    """Write beside, then rename: a notebook is never half written."""
    beside = path.with_suffix(".partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


def make(paths: list[Path]) -> None:
    update(paths)
    export()
    prepare_environment()
    refused = []
    for path in paths:
        if path.name[:2] in NEEDS_DATA and not has_data():
            refused.append(path.stem)
            continue
        print(f"executing {path.stem}", flush=True)
        notebook = path.with_suffix(".ipynb")
        write(notebook, executed(notebook))
    if refused:
        sys.exit(
            f"not stored: {', '.join(refused)}. Their outputs are those on "
            "CIFAR-10: set HCNN_DATA to the folder that holds "
            "cifar-10-batches-py and run `make chapters` again"
        )


def pairs_out_of_step(book: Path = BOOK) -> list[str]:
    """Complaints about texts and notebooks that do not belong together."""
    complaints = []
    names = {p.stem for p in texts(book)}
    names |= {p.stem for p in book.glob("*.ipynb")}
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "jupytext.toml", folder)
        copies = []
        for name in sorted(names):
            text, notebook = book / f"{name}.md", book / f"{name}.ipynb"
            if not (text.exists() and notebook.exists()):
                missing = notebook if text.exists() else text
                complaints.append(f"{missing.name} is missing: {MEND}")
            else:
                copies.append(shutil.copy(notebook, folder))
        if copies:
            run("jupytext", "--quiet", "--to", "md:myst", *copies, cwd=Path(folder))
        for copy in copies:
            text = Path(copy).with_suffix(".md")
            if text.read_text() != (book / text.name).read_text():
                complaints.append(
                    f"{text.name} and its notebook differ: {MEND}"
                )
    return complaints


def exports_out_of_step() -> list[str]:
    """Complaints about modules that differ from what the chapters export."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        shutil.copy(ROOT / "pyproject.toml", root)
        for source in (BOOK, PACKAGE):
            shutil.copytree(
                source,
                root / source.name,
                ignore=shutil.ignore_patterns("_assets", "__pycache__"),
            )
        export(root)
        return [
            f"hcnn/{made.name} is not what its chapter exports: {MEND}; an edit "
            f"made in the module goes back by `nbdev-update --fname hcnn/{made.name}` "
            "and `jupytext --to md:myst book/NN-name.ipynb`"
            for made in sorted((root / "hcnn").glob("*.py"))
            if not (PACKAGE / made.name).exists()
            or made.read_text() != (PACKAGE / made.name).read_text()
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapters", nargs="*", help="numbers: 02 03 (default: all)")
    parser.add_argument("--check", action="store_true", help="only compare")
    arguments = parser.parse_args()
    if arguments.check:
        complaints = pairs_out_of_step() + exports_out_of_step()
        sys.exit("\n".join(complaints) or 0)
    known = {path.name[:2]: path for path in texts()}
    for number in arguments.chapters:
        if number not in known:
            sys.exit(f"no chapter {number}; there are {', '.join(known)}")
    make([p for n, p in known.items() if n in (arguments.chapters or known)])


if __name__ == "__main__":
    main()
