"""The paper's networks at full size, trained and added to the ledger.

`python -m benchmarks.full` trains one network after the other, in order of
worth, from wherever the last call stopped: runs are in runs/full, an entry is
added to results/ as each is finished. Give it --minutes, and call it again
until it ends with status 0. It needs a GPU and CIFAR (HCNN_DATA).
"""

import argparse
import sys
import time
from dataclasses import replace

import torch

from benchmarks.cells import ROOT
from hcnn import results, runs
from hcnn.data import Dataset, shapes10
from hcnn.network import preset
from hcnn.training import recipe

UNFINISHED = 3
MODELS = (
    "hcnn-cifar10",
    "hcnn-cifar10-periodic",
    "hcnn-plus-cifar10",
    "hcnn-cifar100",
    "hcnn-plus-cifar100",
)
JOBS = tuple(
    (model, name) for name in ("modern", "paper") for model in MODELS
)
SEEDS = (0, 1, 2)


def entry_name(model: str, name: str) -> str:
    return f"train-{model}-{name}"


def job(model: str, name: str, dry: bool) -> tuple[runs.Run, dict]:
    """A run, and what else `runs.train` is told."""
    data = "cifar100" if "cifar100" in model else "cifar10"
    run = runs.Run(model, name, recipe(name), data, {})
    if not dry:
        return run, {}
    few = replace(
        run.recipe, epochs=1.0, batch=4, ema=0.5 * (name != "paper")
    )
    return replace(run, recipe=few), dict(images=a_few_images(model))


def a_few_images(model: str) -> tuple[Dataset, Dataset]:
    """Drawn images with as many classes as the model has."""
    classes = preset(model).classes
    names = tuple(f"class {i}" for i in range(classes))
    return tuple(
        replace(shapes10(8, 0, split), class_names=names, name="dry")
        for split in ("train", "test")
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.full", description=__doc__
    )
    parser.add_argument("--minutes", type=float, help="stop when over")
    parser.add_argument(
        "--dry", action="store_true", help="two steps of each, in runs/dry"
    )
    parser.add_argument("--device", help="by default the GPU")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=SEEDS, metavar="N"
    )
    chosen = parser.parse_args(arguments)
    device = torch.device(
        chosen.device or ("cpu" if chosen.dry else "cuda")
    )
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is found; try --dry, or --device cpu in days")
    place = ROOT / "runs" / ("dry" if chosen.dry else "full")
    ledger = place / "results" if chosen.dry else ROOT / "results"
    torch.backends.cudnn.benchmark = True
    begin = time.monotonic()
    for model, name in JOBS:
        title = entry_name(model, name)
        if results.entries(title, ledger):
            continue
        left = None
        if chosen.minutes is not None:
            left = chosen.minutes - (time.monotonic() - begin) / 60
            if left <= 0:
                return stopped(title)
        run, more = job(model, name, chosen.dry)
        done = runs.train(
            run,
            place / title,
            chosen.seeds[:1] if chosen.dry else chosen.seeds,
            minutes=left,
            device=device,
            command="make results-gpu",
            save_minutes=2.0,
            **more,
        )
        if done is None:
            return stopped(title)
        print(runs.record(place / title, title, ledger), flush=True)
    return 0


def stopped(title: str) -> int:
    print(f"stopped in {title}; the same command goes on", flush=True)
    return UNFINISHED


if __name__ == "__main__":
    sys.exit(main())
