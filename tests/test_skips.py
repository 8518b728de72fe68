"""A test that skips says why, and fails where HCNN_REQUIRE forbids it."""

import os
import subprocess
import sys

import pytest
from pages import ROOT

TEST = """
import pytest

@pytest.mark.cifar
def test_data():
    pass

@pytest.mark.skip(reason="for another reason")
@pytest.mark.cifar
def test_skipped():
    pass

def test_unmarked():
    pytest.skip("not marked")
"""


def outcome(tmp_path, require):
    """What pytest says of these three tests without the data."""
    path = tmp_path / "test_three.py"
    path.write_text(TEST)
    environment = os.environ | {"HCNN_DATA": "", "HCNN_REQUIRE": require}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "conftest", path]
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-c", ROOT / "pyproject.toml"],
        cwd=tmp_path,
        env=environment | {"PYTHONPATH": str(ROOT / "tests")},
        capture_output=True,
        text=True,
    )
    return done.stdout + done.stderr


def test_a_skip_says_how_to_get_what_is_missing(tmp_path):
    said = outcome(tmp_path, "")
    assert "3 skipped" in said
    assert "no CIFAR-10: set HCNN_DATA to a folder" in said


def test_what_is_required_must_not_skip(tmp_path):
    said = outcome(tmp_path, "cifar")
    assert "1 skipped, 2 errors" in said
    assert "HCNN_REQUIRE=cifar, but Skipped: no CIFAR-10" in said
    assert "for another reason" in said


def test_another_requirement_changes_nothing(tmp_path):
    assert "3 skipped" in outcome(tmp_path, "browser,gpu")


@pytest.mark.parametrize("require", ["data", "cifar;browser"])
def test_an_unknown_requirement_is_refused(tmp_path, require):
    said = outcome(tmp_path, require)
    assert f"HCNN_REQUIRE names {require}; expected some of" in said
