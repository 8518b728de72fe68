"""The files around the book say the same thing."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import readme_figure as tool
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import hcnn

ROOT = Path(__file__).resolve().parent.parent
# torch pins the first three itself; the others install, and are not frozen
NOT_OURS = ("nvidia-", "cuda-", "triton", "setuptools", "wheel", "pip")
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def project():
    return tomllib.loads(read("pyproject.toml"))["project"]


def pins():
    lines = [
        Requirement(line)
        for line in read("constraints.txt").splitlines()
        if line[0] != "#"
    ]
    return {canonicalize_name(r.name): r.specifier for r in lines}


def pinned(name):
    (pin,) = pins()[canonicalize_name(name)]
    return Version(pin.version)


def required(*extras):
    lists = project()["optional-dependencies"]
    lines = project()["dependencies"] + [
        r for e in extras for r in lists[e]
    ]
    return [Requirement(line) for line in lines]


def chapters():
    """Stem, title and question of each chapter, from its own page."""
    for path in sorted((ROOT / "book").glob("[0-9][0-9]-*.md")):
        text = path.read_text(encoding="utf-8")
        title = re.search(r"^# (.+)$", text, re.M)[1]
        question = re.search(r"^\*\*(.+\?)\*\*", text, re.M | re.S)[1]
        yield path.stem, title, " ".join(question.split())


# versions -------------------------------------------------------------------


def test_each_requirement_is_pinned_to_a_version_in_its_range():
    for requirement in required(*project()["optional-dependencies"]):
        version = pinned(requirement.name)
        assert version in requirement.specifier, (
            f"constraints.txt pins {requirement.name}=={version}, "
            f"pyproject.toml asks for {requirement.specifier}"
        )


def test_constraints_pin_all_that_is_installed_with_the_project():
    """Walk what the installed packages require, extras and all."""
    todo = required(*project()["optional-dependencies"])
    seen, missing = set(), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        extras = frozenset(requirement.extras or {""})
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # for another system, another Python, or an extra
        if name not in pins() and not name.startswith(NOT_OURS):
            missing.add(f"{name}=={found.version}")
        todo += [
            inner
            for inner in map(Requirement, found.requires or [])
            if not inner.marker
            or any(inner.marker.evaluate({"extra": e}) for e in extras)
        ]
    assert len(seen) > 100
    assert not missing, f"add to constraints.txt: {sorted(missing)}"


def test_the_conda_environment_installs_the_project_with_the_same_versions():
    environment = yaml.safe_load(read("environment.yml"))
    *conda, section = environment["dependencies"]
    lines = dict(line.split(maxsplit=1) for line in section["pip"])
    assert lines["--constraint"] == "constraints.txt"
    path, extras = re.fullmatch(
        r"(.+)\[(.+)\]", lines["--editable"]
    ).groups()
    assert (ROOT / path / "pyproject.toml").exists()
    assert set(extras.split(",")) == set(project()["optional-dependencies"])
    versions = dict(entry.partition("=")[::2] for entry in conda)
    assert versions.pop("python") in SpecifierSet(
        project()["requires-python"]
    )
    assert set(versions) == {"pip"}, (
        "other versions belong in constraints.txt"
    )


def test_the_version_is_the_same_everywhere():
    version = project()["version"]
    newest = re.search(r"^## \[(\d[^]]*)\]", read("CHANGELOG.md"), re.M)[1]
    init = re.search(r'__version__ = "(.+)"', read("hcnn/__init__.py"))[1]
    citation = yaml.safe_load(read("CITATION.cff"))["version"]
    assert [newest, init, citation] == [version] * 3


def test_jupyter_starts_where_its_notebooks_are_paired():
    """A folder would be the server's root, and jupytext.toml above it."""
    (options,) = re.findall(r"-m jupyter lab(.*)", read("Makefile"))
    assert all(word.startswith("--") for word in options.split()), options
    assert 'formats = "ipynb,md:myst"' in read("jupytext.toml")


def test_python_is_the_same_everywhere():
    least = project()["requires-python"].removeprefix(">=")
    assert f"({least.replace('.', ', ')})" in read("Makefile")
    assert f"Python ≥ {least}" in read("README.md")
    matrix = yaml.safe_load(read(".github/workflows/ci.yml"))["jobs"][
        "make"
    ]
    assert least in matrix["strategy"]["matrix"]["python"]


def test_the_package_alone_needs_nothing_of_the_book():
    """What modules import at their top level comes with `pip install .`."""
    base = {canonicalize_name(r.name) for r in required()} | {"hcnn"}
    for path in sorted((ROOT / "hcnn").glob("*.py")):
        if path.stem in ("figures", "widgets"):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {name.split(".")[0] for name in names}:
                assert name in base | sys.stdlib_module_names, (
                    f"hcnn/{path.name} imports {name}, which the base "
                    "dependencies of pyproject.toml do not bring"
                )


# licence and citation -------------------------------------------------------


def test_the_citation_names_the_project_and_the_paper():
    citation = yaml.safe_load(read("CITATION.cff"))
    for field in ("message", "title", "authors"):
        assert citation[field]
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == project()["license"] == "MIT"
    authors = [author["name"] for author in project()["authors"]]
    assert citation["authors"] == [{"name": name} for name in authors]
    (paper,) = citation["references"]
    entry = re.search(
        r"@article\{jacobsen2017,.*?\n\}", read("book/references.bib"), re.S
    )[0]
    assert f"title = {{{paper['title']}}}" in entry
    assert f"year = {{{paper['year']}}}" in entry
    assert paper["identifiers"][0]["value"] in entry
    for author in paper["authors"]:
        assert author["family-names"] in entry
    readme = re.search(r"```bibtex\n(.*?)```", read("README.md"), re.S)[1]
    assert readme.split() == entry.split(), "README.md and references.bib"


def test_the_licence_names_the_authors():
    first, _, who = read("LICENSE").splitlines()[:3]
    assert first == "MIT License"
    assert who.startswith("Copyright (c) 2026 the hcnn authors")


# commands -------------------------------------------------------------------


def test_ci_runs_the_commands_of_the_readme():
    steps = [
        step.get("run", "").split(" && ")[-1]
        for job in yaml.safe_load(read(".github/workflows/ci.yml"))[
            "jobs"
        ].values()
        for step in job["steps"]
    ]
    for command in (
        "make book",
        "make test",
        "jupyter-book build book/",
        "pytest --nbval book/",
    ):
        assert f"\n{command}" in read("README.md")
        assert command in steps
    local = read(".ci/run")
    stages = re.findall(r'^stage "[^"]+" (.+)$', local, re.M)
    for command in (
        *("make check", "make book", "make results-gpu-dry"),
        *("wheel", "without_data", "strict_book", "browser"),
    ):
        assert command in stages
    assert any(stage.endswith(" make test") for stage in stages)


def test_the_ci_script_stops_at_the_first_failure():
    script = ROOT / ".ci/run"
    assert os.access(script, os.X_OK), "chmod +x .ci/run"
    assert read(".ci/run").startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in read(".ci/run")
    subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_parses_and_names_actions_by_their_major_version(path):
    workflow = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert workflow[True], "no trigger"  # YAML reads the key `on` as true
    for job in workflow["jobs"].values():
        assert job["runs-on"] and job["timeout-minutes"]
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step)
            assert re.fullmatch(
                r"[\w-]+/[\w-]+@v\d+", step.get("uses", "a/b@v1")
            )


# pages ----------------------------------------------------------------------


def test_both_tables_of_contents_are_equal():
    assert read("_toc.yml") == read("book/_toc.yml"), (
        "mend with: cp _toc.yml book/_toc.yml"
    )


def test_the_table_of_contents_lists_every_page():
    toc = yaml.safe_load(read("_toc.yml"))
    listed = [c["file"] for part in toc["parts"] for c in part["chapters"]]
    pages = {path.stem for path in (ROOT / "book").glob("*.md")}
    assert {toc["root"], *listed} == pages
    numbered = [name for name in listed if name[0].isdigit()]
    assert numbered == sorted(numbered)


def test_the_readme_asks_the_questions_of_the_chapters():
    readme = read("README.md")
    for stem, title, question in chapters():
        number, name = stem.split("-")
        row = f"| {number} | [{title}](book/{stem}.md) | {question} | `hcnn.{name}` |"
        assert row in readme, f"README.md, table of chapters: {row}"


def test_the_landing_page_asks_the_questions_of_the_chapters():
    intro = read("book/intro.md")
    cards = re.findall(
        r":::\{grid-item-card\} (.+)\n:link: (.+)\n:link-type: ref\n(.+)\n\n(.+)\n:::",
        intro,
    )
    expected = [
        (f"{s[:2]} {title}", f"ch-{s[3:]}", question, f"`hcnn.{s[3:]}`")
        for s, title, question in chapters()
    ]
    assert cards == expected


def test_help_of_the_package_names_every_module():
    modules = {p.stem for p in (ROOT / "hcnn").glob("[!_]*.py")}
    named = set(re.findall(r"`hcnn\.(\w+)`", hcnn.__doc__))
    apart = ", ".join(sorted(named ^ modules))
    assert named == modules, f"hcnn/__init__.py: name, or drop, {apart}"


def test_the_api_page_lists_every_module_after_those_it_imports():
    listed = re.findall(r"automodule:: hcnn\.(\w+)", read("book/api.md"))
    modules = {p.stem for p in (ROOT / "hcnn").glob("*.py")}
    assert sorted(listed) == sorted(
        modules - {"__init__", "__main__", "_modidx"}
    )
    for index, name in enumerate(listed):
        imports = re.findall(
            r"^\s*from (?:\.|hcnn\.)(\w+) import",
            read(f"hcnn/{name}.py"),
            re.M,
        )
        below = set(imports) - set(listed[:index])
        assert not below, f"book/api.md lists {name} before {below}"


def test_the_figure_of_the_readme_is_the_one_stored_in_chapter_03():
    assert tool.PICTURE.exists(), "mend with: python tools/readme_figure.py"
    assert tool.PICTURE.read_bytes() == tool.stored(), (
        "mend with: python tools/readme_figure.py"
    )
    for page, link in (
        ("README.md", "book/_assets/"),
        ("book/intro.md", "_assets/"),
    ):
        assert f"{link}{tool.PICTURE.name}" in read(page)


def test_the_code_of_the_readme_runs_and_prints_what_it_says(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", read("README.md"), re.S)
    *_, last = block.splitlines()
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip() == last.partition("  # ")[2]
    assert len(re.findall(r"^\S", block, re.M)) <= 10
