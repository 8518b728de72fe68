"""Where a training step spends its time: `python -m benchmarks.profile`.

The network of the paper, batch 8, by PyTorch's profiler, and the rates of the
three passes of one block of its widest layers.
"""

import argparse

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from hcnn import bench, fused, results
from hcnn.network import preset
from hcnn.runtime import rng

CPU = torch.device("cpu")
BATCH, ROUNDS = 8, 5
GROUPS = {
    "convolutions": ("conv", "mkldnn", "mm", "addmm", "bmm", "baddbmm"),
    "elu": ("elu", "elu_", "elu_backward"),
    "copies": ("copy_", "cat", "stack", "clone", "fill_", "zero_"),
    "sums": ("add", "add_", "sum", "mean", "div", "div_", "mul"),
}
MOMENTS = ("_Moments", "_StridedMoments")


def group(event) -> str:
    """What an operation is for, by its name and those around it."""
    outer = event
    while outer is not None:
        if outer.name.removesuffix("Backward") in MOMENTS:
            return "moments"
        outer = outer.cpu_parent
    name = event.name.removeprefix("aten::")
    for title, names in GROUPS.items():
        if name in names or (title == "convolutions" and "conv" in name):
            return title
    return "rest"


def shares(precision: str) -> dict[str, float]:
    """Percent of the time of the fastest of some steps, by group; `rest` is
    bookkeeping too."""
    (step,) = bench.calls(
        {"ours": bench.ours},
        preset("hcnn-cifar10", output_norm=False),
        32,
        BATCH,
        CPU,
        [precision],
        ["training"],
    ).values()
    bench.warm_up(step, CPU, 1.0)
    steps = []
    for _ in range(ROUNDS):
        with profile(activities=[ProfilerActivity.CPU]) as profiled:
            step()
        spent = dict.fromkeys((*GROUPS, "moments", "rest"), 0.0)
        for event in profiled.events():
            spent[group(event)] += event.self_cpu_time_total
        steps.append(spent)
    spent = min(steps, key=lambda spent: sum(spent.values()))
    total = sum(spent.values())
    return {name: 100 * time / total for name, time in spent.items()}


def pass_rates(precision: str) -> dict[str, float]:
    """G multiply-adds a second of a block's convolution, by pass, the best
    of some rounds."""
    dtype = bench.TYPES[precision]
    outputs = fused._OUTPUTS.get(dtype, 64)
    x = torch.randn(BATCH, 32, 32, 72, generator=rng(0)).to(dtype)
    weight = torch.randn(outputs, 3, 3, 72, generator=rng(1)).to(dtype)
    d_z = torch.randn(BATCH, 32, 32, outputs, generator=rng(2)).to(dtype)
    x, weight, d_z = (t.permute(0, 3, 1, 2) for t in (x, weight, d_z))

    def backward(*which):
        return lambda: torch.ops.aten.convolution_backward(
            d_z,
            x,
            weight,
            None,
            [1, 1],
            [1, 1],
            [1, 1],
            False,
            [0, 0],
            1,
            [*which, False],
        )

    calls = {
        "forward": lambda: F.conv2d(x, weight, padding=1),
        "input": backward(True, False),
        "filters": backward(False, True),
    }
    work = BATCH * 32 * 32 * weight.numel() / 1e9
    return {
        name: work / min(times)
        for name, times in bench.timings(calls, CPU, ROUNDS).items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.profile", description=__doc__
    )
    parser.add_argument(
        "--try", dest="trial", action="store_true", help="record nothing"
    )
    chosen = parser.parse_args()
    kind, words = bench.machine(CPU)
    data = dict(
        command="python -m benchmarks.profile",
        machine=words,
        batch=BATCH,
        share_percent={name: shares(name) for name in bench.TYPES},
        pass_rate={name: pass_rates(name) for name in bench.TYPES},
    )
    print(data)
    if not chosen.trial:
        print(results.record(f"profile-{kind}", data))


if __name__ == "__main__":
    main()
