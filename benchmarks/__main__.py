"""Measure, and add an entry to the ledger: `python -m benchmarks`.

A run that stopped goes on where it was, unless the code has changed; until
it is finished its cells are in runs/.
"""

import argparse
import hashlib
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import cells, summary
from benchmarks.training import device as existing
from hcnn import bench, results
from hcnn.runtime import best_device

SELECTIONS = {
    "must-show": ("must_show", "must_show_memory", "gpu"),
    "grid": ("grid",),
    "memory": ("memory",),
}
CLOCK = (
    "seconds of a call: training is zero_grad(set_to_none=True), forward, "
    "cross-entropy and backward, evaluation is forward without gradients; "
    "neither has data or optimizer in it. All calls of a cell in turn, "
    "round after round, each warmed up for 0.2 s or one call, and repeated "
    "for at least 0.05 s; the median of the rounds. On a GPU by its events"
)
UNFINISHED = 3


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__
    )
    parser.add_argument(
        "--only", choices=SELECTIONS, help="a part; it gets its own entry"
    )
    parser.add_argument(
        "--quick", action="store_true", help="tiny cells, kept in runs/"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=float("inf"),
        help=f"stop after the cell at which they are over, with status "
        f"{UNFINISHED}; the same command goes on",
    )
    parser.add_argument("--repeats", type=int, default=5, help="rounds")
    parser.add_argument("--device", type=existing, default=best_device())
    chosen = parser.parse_args(arguments)
    device, repeats = chosen.device, 2 if chosen.quick else chosen.repeats
    torch.backends.cudnn.benchmark = True  # but for float32's own way
    kind, words = bench.machine(device)
    print(words)
    todo = [
        cell
        for cell in (
            cells.quick_cells if chosen.quick else cells.all_cells
        )(device)
        if chosen.only is None or cell.group in SELECTIONS[chosen.only]
    ]
    name = "-".join(filter(None, ("bench", kind, chosen.only)))
    runs = cells.ROOT / "runs"
    code = cells.code_digest()
    where = hashlib.sha256(words.encode()).hexdigest()[:8]
    part = f"{'quick-' * chosen.quick}{repeats}-{where}-{code}"
    store = cells.Store(runs / f"{name}-{part}")
    start = time.monotonic()
    for cell in cells.fill(store, todo, device, repeats):
        spent = time.monotonic() - start
        print(f"{spent:6.0f} s  {cell.key}", flush=True)
        if spent > 60 * chosen.minutes and todo[-1] not in store:
            done = sum(cell in store for cell in todo)
            print(f"{done} of {len(todo)} cells; the same command goes on")
            return UNFINISHED
    if cells.code_digest() != code:
        sys.exit(
            "benchmarks: the code was changed meanwhile, so nothing is "
            "recorded; the same command measures the new code"
        )
    measured = {cell: store[cell] for cell in todo}
    data = dict(
        command=" ".join(
            ["python -m benchmarks", *(arguments or sys.argv[1:])]
        ),
        machine=words,
        code=code,
        repeats=repeats,
        clock=CLOCK,
        **summary.summary(measured, kind, device),
    )
    print(promises(data["must_show"]))
    with tempfile.TemporaryDirectory() as folder:
        plot = Path(folder) / "bench.svg"
        summary.picture(data).savefig(plot)
        root = runs / "quick" if chosen.quick else None
        print(results.record(name, data, root=root, files=[plot]))
    store.clear()
    return 0


def promises(tree: dict, path: str = "") -> str:
    """A line for each figure that has a target."""
    lines = []
    for name, value in tree.items():
        if isinstance(value, dict):
            lines.append(promises(value, f"{path}{name} "))
        elif f"{name}_target" in tree:
            met = "met" if tree[f"{name}_met"] else "NOT MET"
            lines.append(
                f"{path + name:36} {value:10.3g}  target "
                f"{tree[f'{name}_target']:<6} {met}"
            )
    return "\n".join(filter(None, lines))


if __name__ == "__main__":
    sys.exit(main())
