"""What the tests share: skips that say how to get what is missing.

HCNN_REQUIRE=browser,cifar makes a skip of a test with one of these marks a
failure: where the browser or the data must be there, nothing goes unseen.
"""

import os
import sys
from pathlib import Path

import pytest
from pages import BUILT, ROOT, chromium

sys.path.insert(0, str(ROOT / "tools"))  # its programs, as modules
MARKS = ("browser", "cifar", "gpu")


def missing(mark: str) -> str | None:
    """Why a test with this mark cannot run here, and what to do."""
    if mark == "browser":
        if not (BUILT / "index.html").exists():
            return "no built pages: run `make book`"
        if not chromium():
            return (
                "no Chromium: install it (Debian: `apt-get install "
                "chromium`), then run `make book` and this test again"
            )
    if mark == "cifar":
        folder = Path(os.environ.get("HCNN_DATA") or "/nowhere")
        folder = folder.expanduser()
        if not (folder / "cifar-10-batches-py/test_batch").is_file():
            return (
                "no CIFAR-10: set HCNN_DATA to a folder in which "
                "torchvision.datasets.CIFAR10(folder, download=True) "
                "has put the official files"
            )
    if mark == "gpu":
        import torch

        if not torch.cuda.is_available():
            return "no GPU: run this test where torch.cuda.is_available()"
    return None


def required() -> set[str]:
    names = os.environ.get("HCNN_REQUIRE", "").replace(",", " ").split()
    return set(names)


def pytest_configure(config):
    unknown = required() - set(MARKS)
    if unknown:
        raise pytest.UsageError(
            f"HCNN_REQUIRE names {', '.join(sorted(unknown))}; expected "
            f"some of {', '.join(MARKS)}, separated by commas"
        )


def pytest_addoption(parser):
    parser.addoption(
        "--screenshots",
        default=os.environ.get("HCNN_SCREENSHOTS"),
        help="folder for pictures of every page at both widths",
    )


def pytest_runtest_setup(item):
    for mark in MARKS:
        reason = item.get_closest_marker(mark) and missing(mark)
        if reason:
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    needed = {m for m in required() if item.get_closest_marker(m)}
    if report.skipped and needed and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2]
        report.outcome = "failed"
        report.longrepr = (
            f"HCNN_REQUIRE={','.join(sorted(needed))}, but {reason}"
        )
    return report


@pytest.fixture
def no_shape_checks():
    """Let our own error messages come before those of the annotations."""
    from jaxtyping import config

    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", before)


def pytest_terminal_summary(terminalreporter, config):
    for line in getattr(config, "page_table", []):
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    """A folder of drawn shapes of three classes, 8 x 8 pixels each."""
    from PIL import Image

    from hcnn.data import shapes10

    root = tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 60), ("test", 20)):
        drawn = shapes10(count, 0, split)
        for number, label in enumerate(drawn.labels.tolist()):
            if label < 3:
                folder = root / split / f"class {label}"
                folder.mkdir(parents=True, exist_ok=True)
                pixels = drawn.images[number, :, ::4, ::4].permute(1, 2, 0)
                Image.fromarray(pixels.numpy()).save(
                    folder / f"{number}.png"
                )
    return root
