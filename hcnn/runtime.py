"""Seeds, devices, precision, ranks, whole files, the record of a machine."""

import ctypes
import datetime
import functools
import os
import platform
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import torch

PRECISIONS = ("auto", "bf16", "float32")
RECORDED = ("torch", "torchvision", "numpy", "safetensors")


def rng(seed: int, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator of its own, so that no draw depends on the ones before."""
    return torch.Generator(device).manual_seed(seed)


def best_device() -> torch.device:
    """The first CUDA GPU when there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(
    device: str | torch.device = "cpu", precision: str = "auto"
) -> torch.autocast:
    """A context that computes in the type that a device is faster with.

    Args:
        device: where the computation runs.
        precision: "bf16", "float32", or "auto": bf16 where it is at least
            1.2 times faster than float32. A CPU is asked once a process,
            by a convolution in either type (10 to 20 ms); of GPUs, those
            of CUDA capability 8 or more are.

    Returns:
        `torch.autocast`, for use in a `with`; arrays of float64 stay so.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(
            f"autocast: precision is {precision!r}; expected one of "
            f"{', '.join(map(repr, PRECISIONS))}"
        )
    device = torch.device(device)
    short = precision == "bf16"
    if precision == "auto":
        short = _bf16_is_faster(device)
    return torch.autocast(device.type, torch.bfloat16, enabled=short)


@contextmanager
def whole_float32(precision: str) -> Iterator[None]:
    """Products of a GPU that are float32's, and the same each time.

    Unless told not to, a GPU rounds what a convolution multiplies (TF32),
    and may choose its algorithm by a clock; if told to, it rounds what a
    product of matrices multiplies, too.

    Args:
        precision: what `autocast` was given; but for "float32" nothing is
            changed.
    """
    cudnn, wanted = torch.backends.cudnn, []
    if precision == "float32":
        wanted = [
            (cudnn.conv, "fp32_precision", "ieee"),
            (cudnn, "benchmark", False),
            (cudnn, "deterministic", True),
        ]
    with _whole_matrix_products(precision == "float32"):
        before = [getattr(*own[:2]) for own in wanted]
        try:
            for own in wanted:
                setattr(*own)
            yield
        finally:
            for (place, name, _), value in zip(wanted, before, strict=True):
                setattr(place, name, value)


@contextmanager
def _whole_matrix_products(wanted):
    """By the switch that set TF32: older and newer ones do not mix."""
    matmul = torch.backends.cuda.matmul
    if not wanted or matmul.fp32_precision != "tf32":
        yield
        return
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # it was the newer one
        before = None
        matmul.fp32_precision = "ieee"
    else:
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before is None:
            matmul.fp32_precision = "tf32"
        else:
            torch.set_float32_matmul_precision(before)


@functools.cache
def _bf16_is_faster(device: torch.device) -> bool:
    """Ask the device, once."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    best = {}
    with torch.inference_mode(), torch.autocast("cpu", enabled=False):
        for trial in range(4):
            for dtype in (torch.float32, torch.bfloat16):
                x = torch.ones(8, 64, 16, 16, dtype=dtype)
                x = x.contiguous(memory_format=torch.channels_last)
                weight = torch.ones(128, 64, 3, 3, dtype=dtype)
                start = time.perf_counter()
                torch.nn.functional.conv2d(x, weight, padding=1)
                seconds = time.perf_counter() - start
                if trial:  # the first warms up
                    best[dtype] = min(seconds, best.get(dtype, seconds))
    return best[torch.float32] >= 1.2 * best[torch.bfloat16]


def constants(make: Callable) -> Callable:
    """Keep the tensors that a function makes, as `functools.cache` does.

    They serve training too, whoever asks first; those that a tracer makes
    in place of real ones are not kept.
    """
    known = {}

    @functools.wraps(make)
    def get(*key):
        if key in known:
            return known[key]
        with torch.inference_mode(False):
            made = make(*key)
        several = made if isinstance(made, tuple) else (made,)
        if all(type(one) is torch.Tensor for one in several):
            known[key] = made
        return made

    get.cache_clear = known.clear
    return get


def keep_memory() -> bool:
    """Have this process keep the memory of arrays that are freed.

    glibc gives large arrays back to the system, and a training step that
    asks for them again pays for each page: a quarter of the time on some
    machines. The process then holds the most it ever needed.

    Returns:
        Whether there is a glibc that was told so.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    options = {
        -4: 0,  # M_MMAP_MAX: large arrays come from the heap, too
        -1: 2**31 - 1,  # M_TRIM_THRESHOLD: its end is not given back
        -2: 2**29,  # M_TOP_PAD: and grows by so many bytes
    }
    return all([mallopt(*option) for option in options.items()])


def kind_of_device(device: str | torch.device) -> str:
    """What decides how fast a type is, and the last digits of a sum.

    Args:
        device: a device of this machine.

    Returns:
        Such as "cuda, NVIDIA H100" or "cpu, AVX512, avx512_bf16".
    """
    device = torch.device(device)
    if device.type == "cuda":
        return f"cuda, {torch.cuda.get_device_name(device)}"
    if device.type != "cpu":
        return device.type
    features = filter(_supports, ("avx512_bf16", "amx_tile"))
    capability = torch.backends.cpu.get_cpu_capability()
    return ", ".join(("cpu", capability, *features))


def world_size() -> int:
    """How many processes train together: 1, or torch.distributed's."""
    group = torch.distributed
    if group.is_available() and group.is_initialized():
        return group.get_world_size()
    return 1


def rank_sum(x: torch.Tensor) -> torch.Tensor:
    """The sum of an array over all ranks; in one process the array itself.

    Args:
        x: of the same shape and type in every rank, and all must call.

    Returns:
        The same in every rank. Differentiable: the gradient of `x` is the
        sum of all ranks' gradients of the result.
    """
    return x if world_size() == 1 else _RankSum.apply(x)


class _RankSum(torch.autograd.Function):
    """A sum over ranks, whose gradient is the sum of all ranks' gradients."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        return _RankSum.apply(gradient)


def rank_mean(
    means: Sequence[torch.Tensor], count: int
) -> tuple[Sequence[torch.Tensor], int | torch.Tensor]:
    """Means over the values of all ranks, from each rank's own means.

    Args:
        means: arrays of any shapes, each a mean over `count` values.
        count: may differ from rank to rank.

    Returns:
        The means over all of them, and how many they are; in one process
        the arguments.
    """
    if world_size() == 1:
        return means, count
    flat = [x.flatten() for x in means]
    total = rank_sum(torch.cat([*flat, flat[0].new_ones(1)]) * count)
    *sums, count = total.split([*map(len, flat), 1])
    means = [
        (x / count).view(y.shape) for x, y in zip(sums, means, strict=True)
    ]
    return means, count.detach()


def write(
    path: str | Path, content: bytes, function: str = "write"
) -> None:
    """Write a file whole or not at all: beside, synced, then renamed.

    Args:
        path: of the file; its folder must exist.
        content: all that it will hold.
        function: the caller, named in the message.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the disk is full or the folder may not be written; what
            `path` was it still is, and nothing stays beside it.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"{function}: no folder {path.parent} for {path.name}; make "
            "it first"
        )
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def repository() -> Path | None:
    """The project's folder: around this package, or upwards from here.

    None where the package is installed elsewhere and the working folder
    lies in no copy of the project.
    """
    here = Path.cwd()
    for folder in (
        Path(__file__).resolve().parents[1],
        here,
        *here.parents,
    ):
        if (folder / "book/_toc.yml").is_file() and (
            folder / "hcnn/runtime.py"
        ).is_file():
            return folder
    return None


def environment() -> dict:
    """What a measurement must say about its machine; all of it JSON.

    Returns:
        date (UTC), hardware (the processor's name), system, cores (those
        this process may use), threads (those torch uses), capability (of
        the processor, as torch uses it), amx and avx512_bf16 (None where
        torch cannot tell), onednn_max_cpu_isa (if set), gpu (names, None
        without), cuda and cudnn (versions, None without), python,
        packages (versions, None if missing), commit and dirty (of the
        project but for runs/ and new entries of results/; None outside of
        its repository, where HCNN_COMMIT may name the commit of a copy).
    """
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--short", "--", ".", ":!runs")
    return dict(
        date=datetime.datetime.now(datetime.UTC).isoformat(" ", "seconds"),
        hardware=_processor(),
        system=platform.platform(),
        cores=(
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count()
        ),
        threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        amx=_supports("amx_tile"),
        avx512_bf16=_supports("avx512_bf16"),
        onednn_max_cpu_isa=os.environ.get("ONEDNN_MAX_CPU_ISA"),
        gpu=[
            torch.cuda.get_device_name(index)
            for index in range(torch.cuda.device_count())
        ]
        or None,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        python=platform.python_version(),
        packages={name: version(name) for name in RECORDED}
        | dict(torch=str(torch.__version__)),  # with its build
        commit=commit or os.environ.get("HCNN_COMMIT"),
        dirty=(
            None
            if changed is None
            else any(
                not line.startswith("?? results/")
                for line in changed.splitlines()
            )
        ),
    )


def _supports(feature):
    """Ask torch about the processor, where this torch knows how."""
    ask = getattr(torch.cpu, f"_is_{feature}_supported", None)
    return bool(ask()) if ask else None


def _processor():
    """The processor's name, as its system writes it."""
    try:
        if sys.platform == "darwin":
            command = "sysctl", "-n", "machdep.cpu.brand_string"
            return subprocess.check_output(command, text=True).strip()
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        (name, *_) = (
            line for line in lines if line.startswith("model name")
        )
        return name.partition(":")[2].strip()
    except (OSError, ValueError, subprocess.SubprocessError):
        return platform.processor() or platform.machine()


def version(package: str) -> str | None:
    """Of an installed package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments):
    """What git says about the project, None where it says nothing."""
    root = repository()
    if root is None or not (root / ".git").exists():
        return None
    # while others commit: its index is not rewritten, nor locked
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # no git here
        return None
    return None if done.returncode else done.stdout.strip()
