"""What is measured, cell by cell, what is skipped, and where it is kept."""

import hashlib
import json
import os
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch

from benchmarks.peers import ALL
from hcnn import bench, runtime
from hcnn.network import HCNNConfig

ROOT = Path(__file__).resolve().parent.parent
GIB = 2**30
MOST_BYTES, MOST_SECONDS = 10 * GIB, 10.0  # of one step
BATCHES = (1, 4, 8, 16, 50, 256)
GPU_BATCHES = (50, 64, 128, 256, 512, 1024, 2048)
SIZES = (8, 16, 32)
# the paper's 7 × 11, shorter where an attribute is
SUPPORTS = {8: (3, 7), 12: (5, 9), 16: (7, 11), 24: (7, 11)}
PAIR = ("published", "ours")


@dataclass(frozen=True)
class Cell:
    """One configuration, and who is compared on it in one round-robin.

    `smaller` is the batch from whose time and memory those of this cell
    are foretold; None where it is measured come what may.
    """

    group: str
    K: int
    size: int
    batch: int
    Q: int = 32
    plus: bool = False
    names: tuple[str, ...] = PAIR
    precisions: tuple[str, ...] = tuple(bench.TYPES)
    phases: tuple[str, ...] = ("training",)
    smaller: int | None = None

    @property
    def key(self) -> str:
        variant = f"K{self.K}plus" if self.plus else f"K{self.K}"
        return (
            f"{self.group}.{variant}.Q{self.Q}.size{self.size}"
            f".batch{self.batch}"
        )

    @property
    def config(self) -> HCNNConfig:
        return HCNNConfig(
            K=self.K, Q=self.Q, support=SUPPORTS[self.K], plus=self.plus
        )


def all_cells(device) -> Iterator[Cell]:
    """Every cell; one from which others are foretold comes before them."""
    yield Cell("must_show", 16, 32, 8)
    yield Cell("must_show", 8, 32, 16)
    yield Cell("must_show", 16, 32, 8, plus=True)
    yield Cell("must_show_memory", 16, 32, 50)
    if device.type == "cuda":
        for smaller, batch in pairwise((None, *GPU_BATCHES)):
            yield Cell(
                "gpu", 16, 32, batch, precisions=("bf16",), smaller=smaller
            )
    for K in SUPPORTS:
        for size in SIZES:
            for smaller, batch in pairwise((None, *BATCHES)):
                yield Cell(
                    "grid",
                    K,
                    size,
                    batch,
                    names=tuple(ALL),
                    phases=bench.PHASES,
                    smaller=smaller,
                )
    for Q in (8, 16, 64):
        yield Cell("grid", 16, 16, 8, Q=Q)
    trained = tuple(name for name in ALL if name != "folded")
    for K in SUPPORTS:
        yield Cell("memory", K, 32, 50, names=trained)


def quick_cells(device) -> Iterator[Cell]:
    """A handful of small cells, to see that everything runs."""
    for cell in all_cells(device):
        if cell.group == "must_show":
            yield replace(cell, size=8, batch=2)
        elif cell.group in ("must_show_memory", "memory"):
            if cell.K in (8, 16):
                yield replace(cell, size=8, names=PAIR)
        elif cell.group == "gpu" and cell.batch <= 64:
            yield cell
        elif cell.K == 8 and cell.size < 32 and cell.batch <= 4:
            yield cell


# measuring ------------------------------------------------------------------


def forecast(entry: dict, ratio: float, most_bytes: float) -> dict:
    """Seconds and bytes of a batch `ratio` times as large as an entry's,
    and why it is skipped if they are too many."""
    if "bytes" not in entry:  # it failed, and so would this
        return dict(entry)
    seconds, size = entry["seconds"] * ratio, entry["bytes"] * ratio
    found = dict(seconds=seconds, bytes=size)
    if size > most_bytes:
        found["skipped"] = (
            f"foretold {size / GIB:.0f} GiB, more than "
            f"{most_bytes / GIB:.0f}"
        )
    elif seconds > MOST_SECONDS:
        found["skipped"] = (
            f"foretold {seconds:.0f} s, more than {MOST_SECONDS:.0f}"
        )
    return found


def failure(error: Exception) -> dict:
    """Out of memory, or beyond what PyTorch can index."""
    return dict(skipped=f"failed: {str(error).splitlines()[0]}")


def measure(cell: Cell, before: dict | None, device, repeats: int) -> dict:
    """An entry for each "competitor.precision.phase" of a cell: seconds of
    a call (median, least, most), or why it was skipped.

    `before` are the entries of the cell of the smaller batch. Bytes are
    those of the warm-up in this process, good to foretell the next cell;
    memory to report is that of fresh processes, in `measure_memory`.
    """
    most = memory(device)
    if cell.group != "gpu":
        most = min(most, MOST_BYTES)
    calls = bench.calls(
        {name: ALL[name] for name in cell.names},
        cell.config,
        cell.size,
        cell.batch,
        device,
        cell.precisions,
        cell.phases,
    )
    work = {}
    if cell.group == "must_show":
        rates = bench.rate_calls(device)
        calls |= {f"rate.{name}": call for name, (call, _) in rates.items()}
        work = {f"rate.{name}": work for name, (_, work) in rates.items()}
    found, warm = {}, {}
    for name, call in calls.items():
        if before is not None:
            ratio = cell.batch / cell.smaller
            found[name] = forecast(before[name], ratio, most)
            if "skipped" in found[name]:
                continue

        def first(name=name, call=call):
            warm[name] = bench.warm_up(call, device)

        try:
            found[name] = dict(bytes=bench.peak_memory(first, device) or 0)
        except RuntimeError as error:
            found[name] = failure(error)
            if device.type == "cuda":
                torch.cuda.empty_cache()
    ready = {name: calls[name] for name in warm}
    for name, times in bench.timings(ready, device, repeats, warm).items():
        found[name] |= dict(
            seconds=statistics.median(times),
            least=min(times),
            most=max(times),
        )
        if name in work:
            found[name]["rate"] = work[name] / found[name]["seconds"]
    return found


def measure_memory(cell: Cell, device) -> dict:
    """Peak bytes of a training step in a fresh process for each
    "competitor.precision"; foretold by a batch of a sixth."""
    most = memory(device)
    if cell.group == "memory":
        most = min(most, MOST_BYTES)
    small = max(1, cell.batch // 6)
    found = {}
    for name in cell.names:
        for precision in cell.precisions:

            def step(batch, name=name, precision=precision):
                peak = bench.fresh_step_memory(
                    ALL[name],
                    cell.config,
                    cell.size,
                    batch,
                    precision,
                    device,
                )
                return dict(bytes=peak or 0, seconds=0)

            try:
                entry = forecast(step(small), cell.batch / small, most)
                if "skipped" not in entry:
                    entry = step(cell.batch)
            except RuntimeError as error:
                entry = failure(error)
            found[f"{name}.{precision}"] = entry
    return found


def memory(device) -> float:
    """Bytes that a step may take: most of the GPU's, or of this machine's."""
    if device.type == "cuda":
        return 0.9 * torch.cuda.get_device_properties(device).total_memory
    return 0.7 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# keeping --------------------------------------------------------------------


class Store:
    """What is measured so far, a file a cell: a run that stopped goes on."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, cell: Cell) -> Path:
        return self.folder / f"{cell.key}.json"

    def __contains__(self, cell: Cell) -> bool:
        return self.path(cell).exists()

    def __getitem__(self, cell: Cell) -> dict:
        return json.loads(self.path(cell).read_text(encoding="utf-8"))

    def __setitem__(self, cell: Cell, found: dict) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        runtime.write(self.path(cell), json.dumps(found).encode())

    def clear(self) -> None:
        shutil.rmtree(self.folder)


def fill(store: Store, cells, device, repeats: int) -> Iterator[Cell]:
    """Measure the cells that the store lacks, and yield each that is done."""
    for cell in cells:
        if cell in store:
            continue
        if cell.group.endswith("memory"):
            store[cell] = measure_memory(cell, device)
        else:
            before = None
            if cell.smaller is not None:
                before = store[replace(cell, batch=cell.smaller)]
            store[cell] = measure(cell, before, device, repeats)
        yield cell


def code_digest() -> str:
    """Eight digits that change with the code that is measured."""
    digest = hashlib.sha256(torch.__version__.encode())
    for folder in ("hcnn", "benchmarks"):
        for path in sorted((ROOT / folder).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
