"""Measured numbers of the pages come from results/: none is typed."""

import re
from pathlib import Path

import pytest
from test_links import prose

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("book/*.md")), ROOT / "README.md"]
TABLE = "<!-- networks, by tools/ship.py -->"  # made from the ledger
MEASURE = re.compile(
    r"(?<![\w.])\d[\d,]*(?:\.\d+)?\s?"
    r"(?:%|per ?cent|points|images/s|images a second|ms\b|seconds|minutes"
    r"|hours|MB\b|GB\b|(?:times|×) (?:as )?fast)"
    r"|(?<=\| )\d[\d,]*(?:\.\d+)?(?= (?:± \S+ )?\|)"  # alone in a cell
)
# the paper's; of a formula, a guess or a definition; of an exercise
OTHERS = {
    "02-hierarchy.md": {"0.1 %"},
    "03-conv5d.md": {"39 %"},
    "04-factorized.md": {"92.50 %", "91.43 %", "4.2 %", "1.1 %"},
    "06-data.md": {"10 %", "154 MB", "3 %", "65,536 points"},
    "08-training.md": {
        "95 %",
        "0.4 points",
        "0.3 points",
        "91.43 %",
        "92.50 %",
        "91.25 %",
        "92.75 %",
        "62.01 %",
        "63.19 %",
        "100 %",
        "4.2 %",
        "1.1 %",
    },
    "10-translations.md": {"95 %", "9 %", "80 %"},
    "README.md": {"91.43 %", "62.01 %"}
    | {path.name[:2] for path in ROOT.glob("book/[0-9]*.md")},
}


def typed(text: str) -> list[str]:
    """Numbers with units in what a reader reads, outside of code."""
    text = prose("".join(text.split(TABLE)[::2]))
    text = re.sub(r"\$\$.*?\$\$|\$[^$\n]*\$", "", text, flags=re.S)
    return MEASURE.findall(text)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_no_measured_number_is_typed(path):
    found = set(typed(path.read_text("utf-8")))
    known = OTHERS.get(path.name, set())
    assert found <= known, (
        f"{path.name}: typed {sorted(found - known)}; expected measured "
        "numbers from results/, by glue or a table that reads the ledger"
    )
    assert known <= found, f"no longer there: {sorted(known - found)}"


def test_a_typed_number_is_found():
    cell = "```{code-cell} ipython3\nprint('97.3 %')\n```\n"
    assert typed(f"{cell}| `net` | 97.3 % |\n") == ["97.3 %"]
    assert typed(f"It trains at 1,200 images/s.\n{cell}") == [
        "1,200 images/s"
    ]
    assert typed("It takes 6.4 ms, $95 %$ and `80 %`.") == ["6.4 ms"]
    assert typed("{glue:text}`accuracy:.1f` % of all images") == []
    assert typed("{ref}`a`: 97.3 % ({ref}`b`), 98 % `in code`") == [
        "97.3 %",
        "98 %",
    ]
    assert typed("| `net` | 1 | 97.30 | 97.41 ± 0.12 | 60 |\n") == [
        "1",
        "97.30",
        "97.41",
        "60",
    ]
    assert typed("| `net` | 53,040 |\n") == ["53,040"]
    assert typed("97.3 percent in 14 hours, 2 points, 18 × faster") == [
        "97.3 percent",
        "14 hours",
        "2 points",
        "18 × fast",
    ]
    assert typed(f"{TABLE}\n| 97.3 % |\n{TABLE}\n") == []
