"""The short benchmark: time and memory on this machine, beside the published graph."""

import math
import os
import pickle
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from .conv5d import layer_cost
from .network import DEPTH, HCNN, HCNNConfig, preset
from .runtime import (
    autocast,
    best_device,
    environment,
    rng,
    whole_float32,
)

TYPES = {"float32": torch.float32, "bf16": torch.bfloat16}  # by precision
PHASES = ("training", "evaluation")


# peers ----------------------------------------------------------------------


class Published(nn.Module):
    """A network as the published graph computes it, in PyTorch's layout.

    For equation (8) of the paper: a convolution of every plane with the
    spatial factors, its normalization, a transposition, a convolution
    along the attributes, an ELU, each written out to memory.

    Args:
        own: a network with zero padding and without `output_norm`; its
            parameters are used.

    Call: as `own`, the same scores up to rounding.

    Raises:
        ValueError: a network that normalizes the outputs of its layers.
    """

    def __init__(self, own: HCNN):
        super().__init__()
        if own.config.output_norm:
            raise ValueError(
                "Published: the network has output_norm, this graph has "
                "no normalization of outputs; expected "
                "preset(…, output_norm=False)"
            )
        self.own = own

    def forward(
        self, images: Float[Tensor, "n c h w"]
    ) -> Float[Tensor, "n classes"]:
        own = self.own
        x = F.elu(own.W1(images))
        x = F.elu(published_second(own.W2, x))[:, None]
        for j in range(3, DEPTH):
            x = published_layer(getattr(own, f"W{j}"), x.mean(1))
        return x.mean((1, 2, 4, 5))


def published_second(W2: nn.Module, x: Tensor) -> Tensor:
    """The second layer as `conv3d` along (v_1, u)."""
    s2, s = W2.weight.shape[1], W2.stride
    z = F.conv3d(
        x[:, None],
        W2.weight[:, None],
        W2.bias,
        stride=(2, s, s),
        padding=(s2 // 2, 1, 1),
    )
    return z.transpose(1, 2)


def published_layer(layer: nn.Module, m: Tensor) -> Tensor:
    """A factorized layer from the marginal to its ELU, step by step."""
    n, b, c, h, w = m.shape
    d, q, s1, s2 = layer.attribute.shape
    y = F.conv2d(
        m.reshape(-1, 1, h, w),
        layer.spatial[:, None],
        padding=1,
        stride=layer.stride,
    )
    y = F.batch_norm(
        y,
        layer.running_mean,
        layer.running_var,
        layer.scale,
        layer.shift,
        training=layer.training,
    )
    if layer.plus:
        y = F.elu(y)
    h, w = y.shape[-2:]
    y = y.reshape(n, b, c, q, h, w).permute(0, 4, 5, 3, 1, 2)
    z = F.conv2d(
        y.reshape(-1, q, b, c),
        layer.attribute,
        layer.bias,
        padding=(s1 // 2, s2 // 2),
        stride=2,
    )
    z = z.reshape(n, h, w, d, b // 2, c // 2)
    return F.elu(z.permute(0, 4, 5, 3, 1, 2))


def published(config: HCNNConfig) -> Published:
    """The published graph with parameters of its own."""
    return Published(HCNN(config, "factorized"))


def ours(config: HCNNConfig) -> HCNN:
    """The fast engine: the fused one, or the lean one for (+)."""
    return HCNN(config, "lean" if config.plus else "fused")


def folded(config: HCNNConfig) -> nn.Module:
    """The folded network, for evaluation only."""
    return ours(config).fold()


COMPETITORS = {
    "published": published,
    "ours": ours,
    "folded": folded,
}


# the clock ------------------------------------------------------------------


def training_step(network, images, labels, precision) -> Callable[[], None]:
    """Forward, cross-entropy and backward: what the clock includes."""

    def call():
        network.zero_grad(set_to_none=True)
        with whole_float32(precision):
            with autocast(images.device, precision):
                scores = network.train()(images)
            F.cross_entropy(scores.float(), labels).backward()

    return call


def evaluation(network, images, precision) -> Callable[[], None]:
    """Forward without gradients, in `eval`."""

    @torch.no_grad()
    def call():
        with (
            whole_float32(precision),
            autocast(images.device, precision),
        ):
            network.eval()(images)

    return call


def calls(
    competitors: dict, config, size, batch, device, types, phases
) -> dict[str, Callable[[], None]]:
    """What to time: "competitor.type.phase" and the call; no training of
    the folded network."""
    images = torch.randn(
        batch, config.channels, size, size, generator=rng(0)
    ).to(device)
    labels = (torch.arange(batch) % config.classes).to(device)
    found = {}
    for name, build in competitors.items():
        network = build(config).to(device)
        for precision in types:
            key = f"{name}.{precision}"
            if "training" in phases and name != "folded":
                found[f"{key}.training"] = training_step(
                    network, images, labels, precision
                )
            if "evaluation" in phases:
                found[f"{key}.evaluation"] = evaluation(
                    network, images, precision
                )
    return found


def seconds(call, device, count: int = 1) -> float:
    """Seconds of one of `count` calls in a row; on a GPU by its events."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # whose stream the events join
            first, last = (
                torch.cuda.Event(enable_timing=True) for _ in range(2)
            )
            torch.cuda.synchronize()
            first.record()
            for _ in range(count):
                call()
            last.record()
            torch.cuda.synchronize()
        return first.elapsed_time(last) / 1e3 / count
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def warm_up(call, device, least: float = 0.2) -> float:
    """Call until `least` seconds have passed; seconds of the last call."""
    start = time.perf_counter()
    while True:
        last = seconds(call, device)
        if time.perf_counter() - start >= least:
            return last


def timings(
    calls: dict[str, Callable[[], None]],
    device,
    repeats: int = 5,
    warm: dict[str, float] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each call, all in turn, round after round.

    Args:
        calls: by name.
        device: the device they run on.
        repeats: rounds.
        warm: seconds of each that is warm already; otherwise each is
            warmed up. A time is the mean of as many calls in a row as
            take a twentieth of a second.
    """
    if warm is None:
        warm = {name: warm_up(call, device) for name, call in calls.items()}
    found = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            count = min(math.ceil(0.05 / warm[name]), 1000)
            found[name].append(seconds(call, device, count))
    return found


def rate_calls(device) -> dict[str, tuple[Callable[[], None], int]]:
    """Calls that show the rate of the hardware, and their multiply-adds:
    a matrix product and the dense `conv2d` of 128 to 512 channels."""
    side, n = (8192, 256) if device.type == "cuda" else (2048, 8)
    found = {}
    for precision, dtype in TYPES.items():
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        x = torch.randn(n, 128, 32, 32, device=device).to(dtype)
        weight = torch.randn(512, 128, 3, 3, device=device).to(dtype)
        x, weight = (
            t.contiguous(memory_format=torch.channels_last)
            for t in (x, weight)
        )
        found[f"matmul.{precision}"] = (
            lambda a=a, b=b: torch.mm(a, b),
            side**3,
        )
        found[f"conv2d.{precision}"] = (
            whole_float32(precision)(
                lambda x=x, weight=weight: F.conv2d(x, weight, padding=1)
            ),
            n * 32 * 32 * weight.numel(),
        )
    return found


def floor_seconds(
    config: HCNNConfig, size: int, rate: float, phase: str = "training"
) -> float:
    """The least time for one image by direct products: multiply-adds in the
    support, for (+) those of its factors, at `rate` a second, in three
    passes for training, in one for evaluation."""
    costs = layer_cost(
        size, **config.geometry, Q=config.Q, padding=config.padding
    )
    count = "factor_multiply_adds" if config.plus else "multiply_adds"
    work = sum(getattr(cost, count) for cost in costs)
    return (3 if phase == "training" else 1) * work / rate


# memory ---------------------------------------------------------------------


def peak_memory(call: Callable[[], None], device) -> int | None:
    """Bytes that a call holds at its worst, beyond those held before it.

    On a GPU those of PyTorch's allocator, else the resident memory: on
    Linux its high-water mark is reset before; elsewhere it never falls,
    so that only a fresh process tells; None where there is no such mark.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass
    before = _high_water()
    call()
    return None if before is None else _high_water() - before


def _high_water() -> int | None:
    """The most resident memory so far, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():
        line = status.read_text().partition("VmHWM:")[2]
        return int(line.split()[0]) * 1024 if line else None
    try:
        import resource
    except ImportError:
        return None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024


def step_memory(
    build, config, size, batch, precision, device
) -> int | None:
    """Peak memory of the first training step in this process."""
    (step,) = calls(
        {"": build}, config, size, batch, device, [precision], ["training"]
    ).values()
    return peak_memory(step, device)


def fresh_step_memory(*arguments) -> int | None:
    """`step_memory` in a fresh process: above the idle interpreter's, with
    PyTorch imported and the network built. glibc gives arrays of a MiB or
    more back to the system when they are freed, so that what is counted is
    in use.

    Raises:
        RuntimeError: the process failed or was killed, as one that takes
            more memory than there is.
    """
    code = (
        "import pickle, sys\n"
        "from hcnn.bench import step_memory\n"
        "print(step_memory(*pickle.load(sys.stdin.buffer)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps(arguments),
        capture_output=True,
        env=dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**20)),
    )
    if done.returncode == -signal.SIGKILL:
        raise RuntimeError(
            "step_memory in a fresh process: killed by the system, probably "
            "out of memory; take a smaller batch"
        )
    if done.returncode:
        errors = done.stderr.decode(errors="replace").strip().splitlines()
        reason = errors[-1] if errors else f"status {done.returncode}"
        raise RuntimeError(f"step_memory in a fresh process: {reason}")
    printed = done.stdout.split()[-1]
    return int(printed) if printed.isdigit() else None


# the machine ----------------------------------------------------------------


def machine(device) -> tuple[str, str]:
    """A name for results, such as "amx" or "nvidia-h100-80gb-hbm3", and
    the machine in words."""
    about = environment()
    if device.type == "cuda":
        hardware = torch.cuda.get_device_name(device)
        kind = "-".join(re.findall("[a-z0-9]+", hardware.lower()))
        has = "GPU"
    else:
        hardware = about["hardware"]
        kind = (
            "amx"
            if about["amx"]
            else "avx512-bf16"
            if about["avx512_bf16"]
            else platform.machine().lower()
        )
        has = "AMX" if about["amx"] else f"{kind}, no AMX"
        limit = about["onednn_max_cpu_isa"]
        if limit:
            kind = f"{kind}-as-{limit.lower()}"
            has = f"{has}, held to {limit}"
    threads = about["threads"]
    return kind, (
        f"{hardware} ({has}), {threads} threads, torch {torch.__version__}"
    )


# the table ------------------------------------------------------------------


def measure(
    model: str = "hcnn-cifar10",
    batch: int = 4,
    size: int = 32,
    repeats: int = 5,
    device=None,
    memory: bool = True,
) -> dict:
    """What the table shows: times in ms an image, rates in multiply-adds a
    second, memory in bytes, under flat names such as
    "ours.bf16.training"."""
    device = torch.device(device or best_device())
    config = preset(model, output_norm=False)
    chosen = {
        name: build
        for name, build in COMPETITORS.items()
        if name != "folded" or not config.plus
    }
    data = dict(
        model=model,
        K=config.K,
        Q=config.Q,
        batch=batch,
        size=size,
        repeats=repeats,
        machine=machine(device)[1],
    )
    rates = rate_calls(device)
    todo = calls(chosen, config, size, batch, device, TYPES, PHASES)
    todo |= {f"rate.{name}": call for name, (call, _) in rates.items()}
    for name, values in timings(todo, device, repeats).items():
        middle = statistics.median(values)
        if name.startswith("rate."):
            data[name] = rates[name.removeprefix("rate.")][1] / middle
        else:
            data[name] = middle / batch * 1e3
    for precision in TYPES:
        better = max(
            data[f"rate.{c}.{precision}"] for c in ("matmul", "conv2d")
        )
        for phase in PHASES:
            data[f"floor.{precision}.{phase}"] = 1e3 * floor_seconds(
                config, size, better, phase
            )
        for name in ("published", "ours") if memory else ():
            data[f"{name}.{precision}.memory"] = fresh_step_memory(
                COMPETITORS[name], config, size, batch, precision, device
            )
    return data


ROWS = {
    "published": "published graph",
    "ours": "this package",
    "folded": "  folded",
}


def table(data: dict) -> str:
    """The figures of `measure`, laid out for a terminal of 80 columns."""
    keys = [f"{p}.{phase}" for phase in PHASES for p in TYPES]

    def row(title, cells):
        return f"{title:18}" + "".join(f"{cell:15}" for cell in cells)

    def both(name, scale):
        """A figure in either type."""
        return ", ".join(
            f"{data[name.format(p)] / scale:,.0f} in {p}" for p in TYPES
        )

    side, batch = data["size"], data["batch"]
    lines = [
        f"{data['model']}: K = {data['K']}, Q = {data['Q']}, "
        f"images {side} × {side}, batch {batch}",
        data["machine"],
        "",
        row(
            "", ["".join(f"{phase + ', ms/image':^30}" for phase in PHASES)]
        ),
        row("", [f"{key.partition('.')[0]:>8}" for key in keys]),
    ]
    for name, title in ROWS.items():
        times = [data.get(f"{name}.{key}") for key in keys]
        if any(times):
            cells = [
                f"{ms:8.3g} {data[f'published.{key}'] / ms:5.3g}×"
                if ms
                else ""
                for key, ms in zip(keys, times, strict=True)
            ]
            lines.append(row(title, cells))
    rates, peak = "G multiply-adds/s: ", "MiB of a training step: "
    floor = [data[f"floor.{key}"] for key in keys]
    shares = [
        f / data[f"ours.{key}"] for key, f in zip(keys, floor, strict=True)
    ]
    lines += [
        row("floor", [f"{ms:8.3g}" for ms in floor]),
        row("  reached", [f"{share:8.0%}" for share in shares]),
        "",
        row("matrix product", [rates + both("rate.matmul.{}", 1e9)]),
        row("dense conv2d", [rates + both("rate.conv2d.{}", 1e9)]),
    ]
    if data.get("ours.float32.memory"):
        lines += [
            row(
                "peak, published",
                [peak + both("published.{}.memory", 2**20)],
            ),
            row("peak, here", [peak + both("ours.{}.memory", 2**20)]),
        ]
    lines += ["", NOTES.format(**data)]
    return "\n".join(line.rstrip() for line in lines)


NOTES = """\
×: published graph / row, in the same type. bf16: under autocast.
Time: median of {repeats} rounds, all in turn, each warmed up for 0.2 s or one call.
Network: the preset without output_norm, in every row.
Clock: training is forward, loss and backward, evaluation is forward alone;
neither has data or optimizer in it.
Floor: multiply-adds in the support, of (+) in its factors, three passes in
training and one in evaluation, at the better of the two rates. Peak: in a
fresh process, above the idle interpreter with PyTorch and the network."""


def run(
    model: str = "hcnn-cifar10",
    batch: int = 4,
    size: int = 32,
    repeats: int = 5,
    device=None,
    memory: bool = True,
) -> dict:
    """Measure, print the table, and return its figures.

    Args:
        model: name of a preset with zero padding, without the suffix
            -authors, which has no published graph here.
        batch: images of a step.
        size: side of the images.
        repeats: rounds; the median is shown.
        device: where; a GPU if there is one, else the CPU.
        memory: whether to measure the peak of a training step, which
            starts a process for each figure.

    Raises:
        ValueError: an unknown model, or one with periodic padding or a
            dense head; a batch, size or number of rounds below one.
    """
    config = preset(model)
    if (config.padding, config.head) != ("zero", "mean"):
        raise ValueError(
            f"bench: model is {model!r}; expected zero padding and no "
            "-authors, for which the published graph is written; take "
            f"{model.partition('-periodic')[0].partition('-authors')[0]}"
        )
    for name, value in dict(
        batch=batch, size=size, repeats=repeats
    ).items():
        if value < 1:
            raise ValueError(
                f"bench: {name} is {value}; expected 1 or more"
            )
    data = measure(model, batch, size, repeats, device, memory)
    print(table(data))
    return data
