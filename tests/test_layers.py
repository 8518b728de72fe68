"""Imports go strictly down the levels, and importing is quick and silent."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "hcnn").glob("*.py"))
CHAPTERS = sorted((ROOT / "book").glob("[0-9][0-9]-*.md"))
LEVELS = (
    {"axes", "runtime", "vision"},
    {"groups", "data", "results"},
    {"hierarchy"},
    {"conv5d"},
    {"factorized", "fused"},
    {"network"},
    {"training"},
    {"baselines", "translations"},
    {"figures", "widgets", "bench", "runs"},
    {"cli"},
    {"__main__"},
)
LEVEL = {name: i for i, names in enumerate(LEVELS) for name in names}
EXEMPT = {"_modidx"}  # nbdev's index
# what a module may import when it is imported, besides Python's own library
ALWAYS = {"torch", "numpy", "safetensors", "jaxtyping"}
TOP = {
    "figures": ALWAYS | {"matplotlib"},
    "widgets": ALWAYS | {"ipywidgets", "PIL"},
    "cli": ALWAYS | {"tyro"},
}


def imported(node) -> list[str]:
    """Dotted names that an import statement reaches; ours as hcnn.name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    origin = node.module or ""
    if node.level:
        origin = "hcnn" + ("." if origin else "") + origin
    if origin == "hcnn":
        return [f"hcnn.{alias.name}" for alias in node.names]
    return [origin]


def imports(tree, inside=False):
    """Pairs (dotted name, is it imported only when a function runs?)."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((name, inside) for name in imported(node))
        else:
            function = isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
            )
            yield from imports(node, inside or function)


def complaints(path: Path) -> list[str]:
    """What this module imports and must not."""
    name, found = path.stem, []
    if name in EXEMPT:
        return []
    if name != "__init__" and name not in LEVEL:
        return [f"hcnn/{path.name} has no level: give it one in LEVELS"]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for dotted, lazy in imports(tree):
        root, _, ours = dotted.partition(".")
        ours = ours.partition(".")[0]
        if root != "hcnn":
            allowed = TOP.get(name, ALWAYS) | sys.stdlib_module_names
            if root == "torchvision" and (name != "vision" or not lazy):
                found.append(
                    f"hcnn/{path.name} imports torchvision; only hcnn.vision "
                    "does, inside a function: call hcnn.vision.torchvision()"
                )
            elif not lazy and root not in allowed:
                found.append(
                    f"hcnn/{path.name} imports {root} at its top: import it "
                    "inside the function that needs it"
                )
        elif name == "__init__":
            found.append(f"hcnn/__init__.py imports {dotted}: let it be")
        elif ours not in LEVEL:
            found.append(f"hcnn/{path.name} imports {dotted}, no module")
        elif LEVEL[ours] >= LEVEL[name]:
            where = "sideways" if LEVEL[ours] == LEVEL[name] else "upwards"
            found.append(
                f"hcnn/{path.name} (level {LEVEL[name]}) imports {where}: "
                f"{dotted} (level {LEVEL[ours]}); move what it needs down"
            )
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.stem)
def test_imports_go_strictly_down_the_levels(path):
    assert not complaints(path), "\n".join(complaints(path))


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda p: p.stem)
def test_exported_cells_never_import_figures_or_widgets(path):
    cells = re.findall(
        r"```\{code-cell\}.*?\n(.*?)```", path.read_text(), re.S
    )
    cells = [
        re.sub(r"\A---\n.*?\n---\n", "", cell, flags=re.S) for cell in cells
    ]
    exported = [cell for cell in cells if "#| export" in cell]
    assert exported, f"{path.name} exports nothing"
    for cell in exported:
        for name, _ in imports(ast.parse(cell)):
            assert name not in ("hcnn.figures", "hcnn.widgets"), (
                f"{path.name}: an exported cell imports {name}; move the "
                "import to a cell without `#| export`"
            )


@pytest.mark.parametrize(
    "name, text, complaint",
    [
        ("groups", "from .network import HCNN", "upwards"),
        ("groups", "import hcnn.data", "sideways"),
        ("fused", "from hcnn.factorized import fold", "sideways"),
        ("conv5d", "def f():\n    from hcnn import figures", "upwards"),
        ("network", "from .axis import axis", "no module"),
        ("elsewhere", "", "no level"),
        ("data", "def f():\n    import torchvision.io", "hcnn.vision"),
        ("vision", "import torchvision", "inside a function"),
        ("network", "import matplotlib.pyplot as plt", "at its top"),
        ("network", "import onnxscript", "at its top"),
        ("training", "import tyro", "at its top"),
        ("bench", "from .cli import main", "upwards"),
        (
            "data",
            "try:\n    import PIL\nexcept ImportError: pass",
            "its top",
        ),
        ("__init__", "from .axes import axis", "let it be"),
    ],
)
def test_the_check_complains_about(tmp_path, name, text, complaint):
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    (found,) = complaints(path)
    assert complaint in found


@pytest.mark.parametrize(
    "name, text",
    [
        (
            "groups",
            "from .axes import axis\nimport torch.nn.functional as F",
        ),
        ("vision", "def f():\n    import torchvision.datasets"),
        ("cli", "from hcnn.figures import canvas\nimport tyro"),
        ("_modidx", "import hcnn.cli"),
    ],
)
def test_the_check_accepts(tmp_path, name, text):
    path = tmp_path / f"{name}.py"
    path.write_text(text)
    assert complaints(path) == []


IMPORT_ALL = """
import json, sys, time, torch
start = time.perf_counter()
for name in sys.argv[1:]:
    __import__(f"hcnn.{name}")
seconds = time.perf_counter() - start
heavy = {"torchvision", "matplotlib", "PIL", "onnx", "tyro"} & set(sys.modules)
print(json.dumps([seconds, sorted(heavy)]))
"""


def test_importing_the_science_is_quick_and_silent():
    """All of it together takes less than half a second beyond torch."""
    names = [p.stem for p in MODULES if LEVEL.get(p.stem, 8) < 8]
    best = float("inf")
    for _ in range(3):  # the first may fill the disk's cache
        done = subprocess.run(
            [sys.executable, "-c", IMPORT_ALL, *names],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        assert done.stdout.count("\n") == 1 and not done.stderr, (
            f"importing {names} prints:\n{done.stdout}{done.stderr}"
        )
        seconds, heavy = json.loads(done.stdout)
        assert not heavy, f"importing {names} imports {heavy}"
        best = min(best, seconds)
        if best < 0.5:
            return
    raise AssertionError(
        f"importing {names} takes {best:.2f} s beyond torch"
    )
