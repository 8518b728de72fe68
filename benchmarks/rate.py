"""What a trainer does beside its steps, in time, for the ledger.

`python -m benchmarks.rate` trains a few hundred images by the recipe
"modern", by turns with the trainer and with the bare step: forward pass,
loss, backward pass and optimizer, on one batch that is there already. It adds
the entry rate-trainer.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import asdict

import torch.nn.functional as F

from hcnn import results, runs, runtime
from hcnn.data import Dataset, shapes10
from hcnn.network import preset
from hcnn.runtime import autocast
from hcnn.training import Recipe, Trainer, new_optimizer, recipe

MODEL = "hcnn8-shapes10"


def bare(data: Dataset, own: Recipe, steps: int) -> float:
    """Images per second of steps alone."""
    network = runs.new_network(preset(MODEL), data, 0).train()
    optimizer = new_optimizer(network, own)
    x = network.standardize(data.images[: own.batch])
    labels = data.labels[: own.batch]
    begin = time.perf_counter()
    for _ in range(steps):
        with autocast(x.device, own.precision):
            loss = F.cross_entropy(
                network(x), labels, label_smoothing=own.label_smoothing
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return steps * own.batch / (time.perf_counter() - begin)


def trainer(data: Dataset, own: Recipe) -> float:
    """Images per second of a run, with its log and its checkpoints."""
    network = runs.new_network(preset(MODEL), data, 0)
    with tempfile.TemporaryDirectory() as folder:
        run = Trainer(
            network, data, own, folder=folder, device="cpu", progress=False
        )
        begin = time.perf_counter()
        result = run.run()
        seconds = time.perf_counter() - begin
    return result["steps"] * own.batch / seconds


def measure(rounds: int = 25, steps: int = 30, **changes) -> dict:
    """Medians over rounds, by turns; the first round is left out."""
    own = recipe("modern", epochs=1.0, **changes)
    data = shapes10(steps * own.batch)
    rates = [
        (bare(data, own, steps), trainer(data, own)) for _ in range(rounds)
    ][1:]
    steps_alone, whole = map(statistics.median, zip(*rates, strict=True))
    return dict(
        model=MODEL,
        batch=own.batch,
        recipe=asdict(own),
        step_images_per_second=steps_alone,
        trainer_images_per_second=whole,
        trainer_of_step=statistics.median(b / a for a, b in rates),
        rates=rates,
    )


if __name__ == "__main__":
    argparse.ArgumentParser(
        "python -m benchmarks.rate", description=__doc__
    ).parse_args()
    found = measure() | dict(
        command="python -m benchmarks.rate",
        environment=runtime.environment(),
    )
    print(results.record("rate-trainer", found))
