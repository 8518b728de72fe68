"""What a text points to is there: files, commands, labels, numbers."""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BOOK = ROOT / "book"
FRONT = [
    path
    for name in ("README", "CONTRIBUTING", "CHANGELOG")
    if (path := ROOT / f"{name}.md").exists()
]
PAGES = sorted(BOOK.glob("*.md"))
MODULES = sorted((ROOT / "hcnn").glob("*.py"))
BY_PATH = {"ids": lambda path: path.name}

FENCE = re.compile(r"^(`{3,})([^\n`]*)\n(.*?)^\1\s*$", re.M | re.S)
ROLE = re.compile(
    r"\{(ref|numref|eq|doc|prf:ref|glue:text|glue:|glue|cite[:\w]*)\}`([^`]+)`"
)


def without_code(text: str) -> str:
    """The text without its listings; directives and their labels stay."""
    return FENCE.sub(
        lambda m: "" if re.match(r"\{code-cell\}|\w*\s*$", m[2]) else m[0],
        text,
    )


def prose(text: str) -> str:
    """The text without any code, `inline` neither; roles stay."""
    text = without_code(text)
    role_or_code = r"(\{[^{}\n]+\}`[^`\n]*`)|(?<!`)`[^`\n]*`(?!`)"
    return re.sub(role_or_code, r"\1", text)


# files ----------------------------------------------------------------------


def slug(heading: str) -> str:
    """GitHub's anchor of a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def dead_links(path: Path) -> list[str]:
    """Relative links of a text that lead nowhere."""
    text = path.read_text(encoding="utf-8")
    body = prose(text)
    links = re.findall(r"\]\(<?([^)\s>]+)>?[^)]*\)", body)
    links += re.findall(r"<(?:img|a)[^>]*(?:src|href)=\"([^\"]+)\"", body)
    links += re.findall(
        r"\{(?:image|figure|literalinclude|download|include)\}\s*`?([^\s`]+)",
        body,
    )
    found = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists():
            found.append(f"{path.name}: {link} does not exist")
        elif anchor and target.suffix == ".md":
            there = target.read_text(encoding="utf-8")
            heads = re.findall(r"^#+ (.+)$", there, re.M)
            labels = re.findall(r"^\(([\w-]+)\)=$", there, re.M)
            if anchor not in {*map(slug, heads), *labels}:
                found.append(f"{path.name}: {link}: no such heading")
    return found


@pytest.mark.parametrize("path", [*FRONT, *PAGES], **BY_PATH)
def test_relative_links_lead_somewhere(path):
    assert not dead_links(path), "\n".join(dead_links(path))


# commands -------------------------------------------------------------------

BUILTIN = {"cd", "export", "source", "set", ".", "echo", "unset"}
OUTSIDE = {"git", "make", "conda", "mamba", "apt-get", "sudo", "npm", "pip"}


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, re.M))


def dead_commands(path: Path) -> list[str]:
    """Commands and files of the project that a text names in vain."""
    text = path.read_text(encoding="utf-8")
    found = []
    shell = [
        line.strip().removeprefix("$ ")
        for _, kind, body in FENCE.findall(text)
        if kind.strip() in ("sh", "bash", "console", "shell")
        for line in body.replace("\\\n", " ").splitlines()
    ]
    said = re.findall(r"(?<![}`])`([^`\n]+)`(?!`)", without_code(text))
    for line in [*shell, *said]:
        for target in re.findall(r"(?:^|[;&|] *)make ([a-z][\w-]*)", line):
            if target not in targets():
                found.append(
                    f"{path.name}: `make {target}`: no such target"
                )
        for name in re.findall(
            r"(?<![\w./~-])((?:[\w.-]+/)+[\w.-]+\.(?:py|sh|md|toml|yml|ipynb|cfg))\b",
            line,
        ):
            if re.search(r"NN|\bname\b|_name\b", name) or name.startswith(
                ("_build/", ".venv/")
            ):
                continue
            if not (ROOT / name).exists() and not (BOOK / name).exists():
                found.append(f"{path.name}: `{name}` does not exist")
    for line in shell:
        words = line.split("#")[0].split()
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if not words:
            continue
        program = Path(words[0]).name
        there = (Path(sys.executable).parent / program).exists()
        if not (there or program in BUILTIN | OUTSIDE):
            found.append(f"{path.name}: `{line}`: no program {program}")
    return found


@pytest.mark.parametrize("path", [*FRONT, *PAGES], **BY_PATH)
def test_commands_and_files_named_exist(path):
    assert not dead_commands(path), "\n".join(dead_commands(path))


# labels ---------------------------------------------------------------------


def labels_of(text: str) -> list[str]:
    """All that a page names, in its prose and its figures."""
    return [
        *re.findall(r"^\(([\w-]+)\)=\s*$", text, re.M),
        *re.findall(r"^:(?:label|name): *([\w-]+)\s*$", text, re.M),
        *re.findall(r"^\$\$ *\(([\w-]+)\)\s*$", text, re.M),
        *re.findall(r"^ {4}name: *([\w-]+)\s*$", text, re.M),
        *re.findall(r"\\label\{([\w-]+)\}", text),
    ]


def glued(notebook: Path) -> set[str]:
    """Names of the numbers that a notebook's outputs hold."""
    if not notebook.exists():
        return set()
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return {
        output["metadata"]["scrapbook"]["name"]
        for cell in cells
        for output in cell.get("outputs", [])
        if "scrapbook" in output.get("metadata", {})
    }


def dead_references(
    path: Path, labels: set[str], keys: set[str]
) -> list[str]:
    """References of a page or of a module's docstrings without target."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = without_code(text)
    found = []
    for role, target in ROLE.findall(text):
        inner = re.search(r"<([^>]+)>\s*$", target)
        name = inner[1] if inner else target
        if role.startswith("cite"):
            gone = {key.strip() for key in name.split(",")} - keys
        elif role == "doc":
            gone = set() if (BOOK / f"{name}.md").exists() else {name}
        elif role.startswith("glue"):
            page, _, key = name.rpartition("::")
            key = re.split(r":(?!:)", key)[0]
            notebook = BOOK / page if page else path.with_suffix(".ipynb")
            gone = {key} - glued(notebook)
        else:
            gone = {name} - labels
        found += [
            f"{path.name}: {{{role}}}`{target}`: no {g}" for g in gone
        ]
    return found


def all_labels() -> Counter:
    return Counter(
        label
        for page in PAGES
        for label in labels_of(page.read_text(encoding="utf-8"))
    )


def bibliography() -> set[str]:
    text = (BOOK / "references.bib").read_text(encoding="utf-8")
    return set(re.findall(r"^@\w+\{([^,]+),", text, re.M))


def test_labels_are_unique():
    twice = [label for label, times in all_labels().items() if times > 1]
    assert not twice, f"labels defined twice: {', '.join(twice)}"


@pytest.mark.parametrize("path", [*PAGES, *MODULES], **BY_PATH)
def test_references_have_a_target(path):
    found = dead_references(path, set(all_labels()), bibliography())
    assert not found, "\n".join(found)


# the checks themselves --------------------------------------------------


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("see [here](gone.md)", "gone.md does not exist"),
        ("![a figure](_assets/gone.png)", "gone.png does not exist"),
        ("[up](page.md#nowhere)", "no such heading"),
        ("[up](#nowhere)", "no such heading"),
        ("```{image} gone.png\n:alt: x\n```", "gone.png does not exist"),
    ],
)
def test_a_dead_link_is_found(tmp_path, text, complaint):
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{text}\n")
    (found,) = dead_links(page)
    assert complaint in found


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("run `make coffee`", "no such target"),
        ("```sh\nmake book && make coffee\n```", "no such target"),
        ("see `tools/gone.py`", "tools/gone.py` does not exist"),
        ("```sh\npython tools/gone.py 02\n```", "does not exist"),
        (
            "```sh\nsphinx-brew book/  # a drink\n```",
            "no program sphinx-brew",
        ),
    ],
)
def test_a_dead_command_is_found(tmp_path, text, complaint):
    page = tmp_path / "page.md"
    page.write_text(text + "\n")
    (found,) = dead_commands(page)
    assert complaint in found


@pytest.mark.parametrize(
    "role",
    [
        "{ref}`sec-gone`",
        "{ref}`words <sec-gone>`",
        "{prf:ref}`prop-gone`",
        "{eq}`eq-gone`",
        "{numref}`fig-gone`",
        "{doc}`99-gone`",
        "{cite}`known1999,gone2000`",
        "{glue:text}`gone:.2f`",
        "{glue:text}`01-groups.ipynb::gone:,d`",
    ],
)
def test_a_dead_reference_is_found(tmp_path, role):
    page = tmp_path / "page.md"
    page.write_text(f"As {role} shows.\n")
    (found,) = dead_references(page, {"sec-here"}, {"known1999"})
    assert found.endswith(("gone", "gone2000"))


def test_what_is_there_is_accepted(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "(sec-here)=\n# A title, here\n\n[up](#a-title-here), [x](page.md), "
        "{ref}`sec-here`, {glue:text}`01-groups.ipynb::zero-error`, "
        "{cite}`known1999`, [out](https://example.org), `make book`, "
        "`tools/chapters.py`, `book/NN-name.md`\n\n"
        "```sh\n$ cd hcnn\nHCNN_DATA=x pytest --nbval book/  # slow\n```\n"
        "```python\nx = y[0](gone)\n```\n"
    )
    labels = set(labels_of(page.read_text()))
    assert labels == {"sec-here"}
    assert dead_links(page) == dead_commands(page) == []
    assert dead_references(page, labels, {"known1999"}) == []


def test_commands_of_make_help_are_the_targets():
    if not shutil.which("make"):
        pytest.skip("no make: install it")
    said = subprocess.run(
        ["make", "--silent", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    told = set(re.findall(r"^make ([\w-]+)", said, re.M))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (commands,) = re.findall(r"^\.PHONY: (.*)", makefile, re.M)
    assert told == set(commands.split()) <= targets()
