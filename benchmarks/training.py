"""Training runs for the ledger, in order of worth.

`python -m benchmarks.training PLAN` trains one network after the other, from
wherever the last call stopped: runs are in runs/, an entry is added to
results/ as each is finished. Give it --minutes, and call it again until it
ends with status 0. CIFAR is where HCNN_DATA says; runs whose images, or the
network they start from, are missing are left out, and the status is 4; runs
that fail are told, and it is 5.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.cells import ROOT
from hcnn import results, runs
from hcnn.data import Dataset, shapes10
from hcnn.network import HCNNConfig, preset
from hcnn.runtime import best_device, keep_memory
from hcnn.training import (
    Recipe,
    _lock,
    data_digest,
    read_checkpoint,
    recipe,
)

UNFINISHED, MISSING, FAILED = 3, 4, 5
FAULTS = FloatingPointError, torch.OutOfMemoryError, ValueError, OSError
HELD_OUT = 5_000  # training images that choices are judged by


class Job(NamedTuple):
    """An entry of the ledger, and the run that makes it."""

    entry: str
    run: runs.Run
    seeds: tuple[int, ...] = (0,)


def job(
    model,
    name,
    entry=None,
    seeds=(0,),
    validation=0,
    start=None,
    **changes,
) -> Job:
    """A preset by a recipe; `changes` of either go where they belong."""
    data = runs.default_data(model)
    known = vars(recipe(name))
    ours = {k: v for k, v in changes.items() if k in known}
    theirs = {k: v for k, v in changes.items() if k not in known}
    run = runs.Run(
        model,
        name,
        recipe(name, **ours),
        data,
        theirs,
        validation,
        start=start,
    )
    return Job(entry or f"train-{model}-{name}", run, seeds)


def full() -> Iterator[Job]:
    """The networks of the paper's tables, for a GPU.

    By its recipe they are those of its text, where no layer's output is
    normalized.
    """
    for name, changes in (
        ("modern", {}),
        ("paper", dict(output_norm=False)),
    ):
        for model in (
            "hcnn-cifar10",
            "hcnn-cifar10-periodic",
            "hcnn-plus-cifar10",
            "hcnn-cifar100",
            "hcnn-plus-cifar100",
        ):
            yield job(model, name, seeds=(0, 1, 2), **changes)


BEFORE = dict(  # modern, until polar factors came
    optimizer="sgd",
    learning_rate=0.05,
    weight_decay=5e-4,
)


def small() -> Iterator[Job]:
    """What each choice gives, in three epochs.

    Three seeds for batch, rate and normalization, one for what the paper
    compares and for all else: a run takes over a quarter of an hour.

    Tricks of the recipe are judged by held-out images, since they choose
    it, which leaves 45,000 to train on; what the paper compares, by the
    test set, trained on 50,000.
    """
    short = dict(model="hcnn8-cifar10", name="modern", epochs=3.0, **BEFORE)
    three = dict(seeds=(0, 1, 2))
    plain = dict(output_norm=False)  # as batch and rate were chosen
    chosen_by = {
        "baseline": {},
        "plain": plain,
        "plain-batch-64": plain | dict(batch=64, learning_rate=0.1),
        "plain-batch-128": plain | dict(batch=128, learning_rate=0.2),
    }
    now = dict(optimizer="muon", learning_rate=0.02, weight_decay=0.0)
    tricks = {
        "polar": now,
        "polar-half-rate": now | dict(learning_rate=0.01),
        "polar-twice-the-rate": now | dict(learning_rate=0.04),
        "polar-no-nesterov": now | dict(nesterov=False),
        "polar-no-flip": now | dict(flip=False),
        "polar-no-smoothing": now | dict(label_smoothing=0.0),
        "polar-no-average": now | dict(ema=0.0),
        "no-smoothing": dict(label_smoothing=0.0),
        "no-average": dict(ema=0.0),
        "no-flip": dict(flip=False),
        "steps": dict(
            schedule="steps", milestones=(1.5, 2.5), factors=(0.1, 0.01)
        ),
    }
    held = dict(validation=HELD_OUT)
    for name, changes in chosen_by.items():
        yield job(entry=f"ablate-{name}", **held | short | three | changes)
    yield job(entry="compare-Q-32", Q=32, **short)
    periodic = dict(model="hcnn8-cifar10-periodic")
    yield job(entry="compare-periodic", **short | periodic)
    for q in (9, 16):
        yield job(entry=f"compare-Q-{q}", Q=q, **short)
    for name, changes in tricks.items():
        yield job(entry=f"ablate-{name}", **held | short | changes)


def ship() -> Iterator[Job]:
    """Networks that come with the package, as far as a CPU gets in hours.

    A name that ends in -short says that its recipe is one of few epochs;
    in -from-zero, that periodic padding begins where the same network with
    zero padding ended: few epochs from random weights left it far behind.
    """
    wide = dict(learning_rate=0.05)  # by 300 steps, not recorded
    for model, epochs, changes in (
        ("hcnn8-shapes10", 4.0, BEFORE),
        ("hcnn8-shapes10-periodic", 2.0, BEFORE),
        ("hcnn8-cifar10", 60.0, BEFORE),
        ("hcnn-cifar10", 8.0, wide),
        ("hcnn8-cifar10-periodic", 10.0, BEFORE),
        ("hcnn8-cifar100", 6.0, BEFORE),
        ("hcnn8-plus-cifar100", 3.0, {}),  # small scale: (+) takes hours
        ("hcnn8-plus-cifar10", 3.0, {}),
    ):
        entry = f"train-{model}-short"
        yield job(model, "modern", entry, epochs=epochs, **changes)
    for start, epochs, changes in (
        ("hcnn8-cifar10", 4.0, {}),
        ("hcnn-cifar10", 8.0, wide),
    ):
        model = f"{start}-periodic"
        entry, begin = f"train-{model}-from-zero", dict(start=start)
        yield job(model, "modern", entry, epochs=epochs, **begin, **changes)


PLANS = {"full": full, "small": small, "ship": ship}


def dry(job: Job) -> Job:
    """Two steps of a job."""
    run = job.run
    few = replace(run.recipe, epochs=1.0, batch=4)
    if few.schedule == "steps":
        few = replace(few, milestones=(0.5,), factors=(0.1,))
    return job._replace(run=replace(run, recipe=few), seeds=job.seeds[:1])


def drawn(job: Job) -> tuple[Dataset, Dataset]:
    """A few drawn images, of as many classes as the job has."""
    classes = preset(job.run.model).classes
    names = tuple(f"class {i}" for i in range(classes))
    train, test = (
        replace(shapes10(8, 0, split), class_names=names, name="dry")
        for split in ("train", "test")
    )
    return train, test


def own_images(job: Job) -> tuple[Dataset, Dataset]:
    return runs.datasets(job.run.data, job.run.validation, job.run.root)


def alike(job: Job, data: dict) -> bool:
    """Is this of the job's network, recipe and start?

    What a record does not know had its default.
    """
    run = job.run
    wanted = [asdict(preset(run.model, **run.changes)), asdict(run.recipe)]
    found = [
        asdict(HCNNConfig()) | data["config"],
        asdict(Recipe()) | data["recipe"],
    ]
    start = data.get("start")
    if isinstance(start, str):  # a checkpoint knows the weights
        found.append(start)
        wanted.append(runs.weights_digest(run.start))
    else:  # a record also where they were
        found.append(start and start["source"])
        wanted.append(run.start)
    return json.loads(json.dumps(found)) == json.loads(json.dumps(wanted))


def same(job: Job, data: dict) -> bool:
    """Is this the record of the job's network, recipe and images?"""
    run, images = job.run, data["data"]
    return (
        alike(job, data)
        and images["source"] == run.data
        and images["validation"] == run.validation
    )


def recorded(job: Job, ledger) -> bool:
    """Has an entry the job, with all of its seeds?"""
    return any(
        same(job, entry.data)
        and {row["seed"] for row in entry.data["seeds"]} >= set(job.seeds)
        for entry in results.entries(job.entry, ledger)
    )


def command(job: Job) -> str:
    """The `hcnn train` that repeats a job."""
    run, known = job.run, vars(recipe(job.run.recipe_name))
    words = dict(data=run.data, model=run.model, recipe=run.recipe_name)
    words |= {k: v for k, v in vars(run.recipe).items() if v != known[k]}
    words |= dict(run.changes, seeds=job.seeds)
    words |= dict(validation=run.validation) if run.validation else {}
    words |= dict(start=run.start) if run.start else {}
    found = ["hcnn", "train"]
    for name, value in words.items():
        values = value if isinstance(value, tuple) else (value,)
        found += ["--" + name.replace("_", "-"), *map(str, values)]
    return " ".join(found)


def of_images(about: dict, images: tuple[Dataset, Dataset]) -> bool:
    """Is a checkpoint of a run on these images?"""
    known = about["data"]["sha256"], about["data"]["test_sha256"]
    return known == tuple(map(data_digest, images))


def make_room(
    job: Job, folder: Path, images: tuple[Dataset, Dataset]
) -> None:
    """Put the run of another recipe, or images, under another name."""
    if (folder / "run.json").exists():
        fits = same(job, runs.read(folder))
    else:  # not finished
        kept = map(read_checkpoint, sorted(folder.glob("seed-*")))
        fits = all(
            alike(job, about) and of_images(about, images)
            for *_, about in filter(None, kept)
        )
    if fits:
        return
    with ExitStack() as locks:
        for own in folder.glob("seed-*"):
            locks.enter_context(_lock(own))  # is one trained in?
        number = 1
        while (
            aside := folder.with_name(f"{folder.name}-old-{number}")
        ).exists():
            number += 1
        folder.rename(aside)


def device(name: str) -> torch.device:
    """For argparse, which knows no RuntimeError."""
    try:
        return torch.zeros((), device=name).device
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(
            f"{name}: {error}; expected cpu, cuda or cuda:N, one that is here"
        ) from None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.training", description=__doc__
    )
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("--minutes", type=float, help="stop when over")
    parser.add_argument(
        "--dry", action="store_true", help="two steps of each, in runs/dry"
    )
    parser.add_argument("--only", help="entries whose name holds this")
    parser.add_argument("--device", type=device, default=best_device())
    chosen = parser.parse_args(arguments)
    if chosen.plan == "full" and chosen.device.type == "cpu":
        if not chosen.dry:
            parser.error(
                "the plan full needs a GPU, or --dry; on a CPU it would take "
                "months"
            )
    place = ROOT / "runs" / ("dry" if chosen.dry else "")
    ledger = place / "results" if chosen.dry else ROOT / "results"
    torch.backends.cudnn.benchmark = True
    keep_memory()
    begin, missing, failed = time.monotonic(), 0, 0
    limit = math.inf if chosen.minutes is None else chosen.minutes

    def left():  # minutes
        return limit - (time.monotonic() - begin) / 60

    jobs = list(PLANS[chosen.plan]())
    wanted = [job for job in jobs if (chosen.only or "") in job.entry]
    if not wanted:
        names = ", ".join(job.entry for job in jobs)
        parser.error(
            f"--only is {chosen.only!r}; expected a part of one of {names}"
        )
    for job in wanted:
        own = dry(job) if chosen.dry else job
        if recorded(own, ledger):
            continue
        if left() <= 0:
            return stopped(job)
        try:
            images = (drawn if chosen.dry else own_images)(own)
            runs.weights_digest(own.run.start)
        except (ValueError, OSError) as error:  # others may be there
            print(f"{job.entry}: left out; {error}", flush=True)
            missing += 1
            continue
        try:
            make_room(own, place / job.entry, images)
            done = runs.train(
                own.run,
                place / job.entry,
                own.seeds,
                minutes=max(0.0, left()),
                device=chosen.device,
                command=command(own),
                save_minutes=2.0,
                images=images,
            )
            if done is None:
                return stopped(job)
            path = runs.record(place / job.entry, job.entry, ledger)
        except FAULTS as error:  # others may do better
            print(f"{job.entry}: failed; {error}", flush=True)
            failed += 1
            continue
        print(f"{path.name}: {100 * done['mean']:.2f} %", flush=True)
    return FAILED if failed else MISSING if missing else 0


def stopped(job: Job) -> int:
    print(f"stopped in {job.entry}; the same command goes on", flush=True)
    return UNFINISHED


if __name__ == "__main__":
    sys.exit(main())
