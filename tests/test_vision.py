"""The one import of torchvision, whole or with its extension missing."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from hcnn import vision

ROOT = Path(__file__).resolve().parent.parent


def alone(program: str) -> str:
    """Run a program in a process of its own; return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def importing(monkeypatch):
    """Let `import torchvision` fail as told, once, and then succeed."""

    def prepare(message: str | None) -> list:
        for name in [n for n in sys.modules if n.startswith("torchvision")]:
            monkeypatch.delitem(sys.modules, name)
        attempts, whole = [], ModuleType("torchvision")
        whole.__path__ = []

        class Finder:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] != "torchvision":
                    return None
                from importlib.machinery import ModuleSpec

                return ModuleSpec(name, self, is_package=True)

            def create_module(self, spec):
                return whole if spec.name == "torchvision" else None

            def exec_module(self, module):
                if module is whole:
                    attempts.append(module)
                    if message and len(attempts) == 1:
                        sys.modules["torchvision.half"] = module
                        raise RuntimeError(message)

        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
        monkeypatch.setattr(vision, "_declared", [])
        return attempts

    yield prepare
    for name in [n for n in sys.modules if n.startswith("torchvision")]:
        del sys.modules[
            name
        ]  # the stand-ins; monkeypatch restores the rest


@pytest.fixture
def declared(monkeypatch):
    """Record the declared operators instead of declaring them."""
    operators = []

    class Library:
        def __init__(self, namespace, kind):
            assert (namespace, kind) == ("torchvision", "DEF")

        def define(self, signature):
            operators.append(signature.split("(")[0])

    monkeypatch.setattr(torch.library, "Library", Library)
    return operators


def test_torchvision_has_the_data_sets_we_use():
    datasets = vision.torchvision().datasets
    assert all(
        hasattr(datasets, name)
        for name in ("CIFAR10", "CIFAR100", "ImageFolder")
    )
    assert vision.torchvision() is vision.torchvision()


def test_missing_operators_are_declared_after_the_import_failed(
    importing, declared
):
    attempts = importing("operator torchvision::nms does not exist")
    assert vision.torchvision() is attempts[-1]
    assert len(attempts) == 2
    assert "torchvision.half" not in sys.modules
    assert declared == ["nms", "qnms"]
    assert len(vision._declared) == 1  # kept, or it would be undone


def test_nothing_is_declared_where_the_import_succeeds(importing, declared):
    attempts = importing(None)
    vision.torchvision()
    assert len(attempts) == 1
    assert not declared and not vision._declared


def test_another_runtime_error_is_passed_on(importing, declared):
    attempts = importing("libcudart is of another version")
    with pytest.raises(RuntimeError, match="libcudart"):
        vision.torchvision()
    assert len(attempts) == 1
    assert not declared


def test_torchvision_imports_for_real_and_says_nothing():
    printed = alone(
        "from hcnn.vision import torchvision, _declared\n"
        "datasets = torchvision().datasets\n"
        "torchvision()  # a second time declares nothing more\n"
        "assert len(_declared) <= 1\n"
        "print(datasets.CIFAR10.base_folder)"
    )
    assert printed == "cifar-10-batches-py\n"


def test_torchvision_is_imported_in_one_place_only():
    places = [
        path.name
        for path in sorted((ROOT / "hcnn").glob("*.py"))
        if any(
            line.split("#")[0].split()[:2] == ["import", "torchvision"]
            or line.strip().startswith(
                ("import torchvision.", "from torchvision")
            )
            for line in path.read_text().splitlines()
        )
    ]
    assert places == ["vision.py"]
