"""What was tried for the fast engine, beside what was kept.

`python -m benchmarks.tried` takes one layer of the network at K = 16, from
marginal to marginal, forward and backward. Each variant is compared with
the layer in float64 before it is timed.
"""

import argparse
import functools
import itertools
import json
import math
import os
import random
import statistics
import subprocess
import sys
import time
from string import Formatter
from typing import NamedTuple
from unittest import mock

import torch
import torch.nn.functional as F

from benchmarks.cells import ROOT
from hcnn import bench, fused, results
from hcnn.conv5d import layer_sizes
from hcnn.fused import band, banded_conv2d, patch_moments
from hcnn.runtime import rng

CPU = torch.device("cpu")
PLANES = (32, 16, 8)
CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
TOLERANCES = {torch.float64: 1e-11, torch.float32: 1e-4}  # bf16: 0.1
CLOCK = (
    "one layer, b = 8, c = 16, d = 16, support 7 × 11, batch 8, stride 1, "
    "marginal to marginal, forward and backward, unless the finding says "
    "otherwise. All calls in turn, each round in another order, each once "
    "before the clock starts and then for at least 0.05 s. ms and least: "
    "median and minimum of the rounds; against: least over that of the "
    "group's first, which is what was kept (its blocks are measured again "
    "under their own name: so far does the clock differ); errors: norm over "
    "norm, against float64"
)


class Case(NamedTuple):
    """Arguments of a layer, and the gradient that comes back to it."""

    inputs: tuple
    d_out: torch.Tensor


class Trial(NamedTuple):
    """What to time, and what is known of it beforehand."""

    call: object
    about: dict


def randn(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def case(plane, dtype, n=8, b=8, c=16, d=16, support=(7, 11)) -> Case:
    """Attributes last in memory, as the engine passes them on."""
    b2, c2 = -(-b // 2), -(-c // 2)
    mean = F.elu(randn(n, plane, plane, b, c, seed=1)).to(dtype)
    kernel = randn(d, *support, 3, 3, seed=2)
    kernel *= (0.4 * kernel[0].numel()) ** -0.5
    wide = torch.promote_types(dtype, torch.float32)
    weights = kernel.to(wide), randn(b2, c2, d, seed=3).to(wide)
    d_out = randn(n, plane, plane, c2, d, seed=4).to(dtype)
    return Case((planes_last(mean), *weights), planes_last(d_out))


def planes_last(x):
    """(n h w b c) as (n b c h w)."""
    return x.movedim((1, 2), (-2, -1))


def planes_first(x):
    return x.movedim((-2, -1), (1, 2))


def step(function, case):
    """A call that gives the output and the gradients."""
    leaves = [x.detach().requires_grad_() for x in case.inputs]

    def call():
        out = function(*leaves)
        return out.detach(), *torch.autograd.grad(out, leaves, case.d_out)

    return call


def errors(found, exact, dtype) -> dict[str, float]:
    """Of the output and the first gradients; refused if they are large."""
    names = "error", "input_gradient_error", "kernel_gradient_error"
    worst = TOLERANCES.get(dtype, 0.1)
    about = {}
    for name, x, y in zip(names, found, exact, strict=False):
        about[name] = ((x.double() - y).norm() / y.norm()).item()
        assert about[name] < worst, f"{name} {about[name]:.2g} in {dtype}"
    return about


def trials(functions, exact, case) -> dict[str, Trial]:
    """Steps of functions that agree with `exact` in float64."""
    double = Case([x.double() for x in case.inputs], case.d_out.double())
    expected, made = step(exact, double)(), {}
    for name, function in functions.items():
        call = step(function, case)
        about = errors(call(), expected, case.inputs[0].dtype)
        made[name] = Trial(call, about)
    return made


# blocks of several sizes, the whole band -------------------------------------


def kept(mean, kernel, bias_map, padding="zero"):
    return banded_conv2d(
        mean, kernel, bias_map, padding=padding, elu_mean=True
    )


def blocks_of(windows):
    """The engine with so many windows along c in a block."""

    def function(mean, kernel, bias_map):
        outputs = {mean.dtype: windows * len(kernel)}
        with mock.patch.dict(fused._OUTPUTS, outputs):
            return kept(mean, kernel, bias_map)

    return function


BLOCKS = {"rows": 8, "halves": 4, "pairs": 2, "singles": 1}


def dense(mean, kernel, bias_map):
    weight = band(kernel.flatten(3).to(mean.dtype), *mean.shape[1:3])
    weight = weight.flatten(4).flatten(0, 2).unflatten(1, (3, 3))
    x, weight = mean.flatten(1, 2), weight.permute(0, 3, 1, 2)
    bias = bias_map.flatten().to(mean.dtype)
    z = F.elu_(F.conv2d(x, weight, bias, padding=1))
    return z.unflatten(1, bias_map.shape).mean(1)


def layer(case) -> dict[str, Trial]:
    functions = {
        "kept": kept,
        "dense": dense,
        **{name: blocks_of(windows) for name, windows in BLOCKS.items()},
        "winograd_2": winograd(2),
        "winograd_4": winograd(4),
        "fourier_zero": fourier_zero,
    }
    return trials(functions, kept, case)


# Winograd in the plane: F(2 × 2, 3 × 3) and F(4 × 4, 3 × 3) ------------------


def winograd_matrices(m):
    """B, G, A of F(m, 3): m results of 3 taps by m + 2 products.

    A polynomial is known by its values at 0, 1, -1, … and infinity, where
    products are products. B is scaled to whole entries.
    """
    points = torch.tensor([[0], [1], [-1], [2], [-2]])[: m + 1].double()

    def values(size):
        infinity = F.pad(points.new_ones(1, 1), (size - 1, 0))
        return torch.cat((points ** torch.arange(size), infinity))

    B = torch.linalg.inv(values(m + 2)).T
    leading = F.pad(B[:-1, -2:-1], (0, 0, 0, 1), value=1)
    return B / leading, values(3) * leading, values(m).T


@functools.cache
def plane_matrices(m, dtype):
    return [torch.kron(x, x).to(dtype) for x in winograd_matrices(m)]


def winograd(m):
    """Blocks by b' again, each as a batch of matrix products."""

    def function(mean, kernel, bias_map):
        n, b, c, h, w = mean.shape
        c2 = bias_map.shape[1]
        rows = fused._parts(b, kernel.shape[1], "zero", 1)
        (column,) = fused._parts(c, kernel.shape[2], "zero", c2)
        strip = fused._side_by_side(kernel.flatten(3), c2)
        G = plane_matrices(m, kernel.dtype)[1]
        spectra = torch.einsum("et,gdtsl->eslgd", G, strip).to(mean.dtype)
        B, _, A = plane_matrices(m, mean.dtype)
        x = mix(B, Tiles.apply(planes_first(mean).flatten(3), m))
        total = 0
        for row, bias in zip(rows, bias_map.to(x.dtype), strict=True):
            low, high = (c * sample for sample in row.samples)
            part = spectra[:, row.taps, column.taps]
            part = part.flatten(1, 2).flatten(2)
            z = mix(A, torch.bmm(x[:, :, low:high], part)) + bias.flatten()
            total = total + F.elu_(z)
        total = (total / len(rows)).view(
            m, m, n, -(-h // m), -(-w // m), -1
        )
        total = total.permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)
        return planes_last(total[:, :h, :w].unflatten(3, (c2, -1)))

    return function


def mix(matrix, x):
    return (matrix @ x.flatten(1)).unflatten(1, x.shape[1:])


class Tiles(torch.autograd.Function):
    """Overlapping tiles of x (n h w k), one for m × m results:
    (tile, which, k)."""

    @staticmethod
    def forward(ctx, x, m):
        ctx.about = m, *x.shape
        t, (_, h, w, k) = m + 2, x.shape
        x = F.pad(x, (0, 0, 1, 1 + -w % m, 1, 1 + -h % m))
        x = x.unfold(1, t, m).unfold(2, t, m).permute(4, 5, 0, 1, 2, 3)
        return x.reshape(t * t, -1, k)

    @staticmethod
    def backward(ctx, d_tiles):
        m, n, h, w, k = ctx.about
        high, wide, t = -(-h // m), -(-w // m), m + 2
        d_tiles = d_tiles.view(t, t, n, high, wide, k)
        d_x = d_tiles.new_zeros(n, high * m + 2, wide * m + 2, k)
        for i, j in itertools.product(range(t), repeat=2):
            part = d_x[:, i : i + high * m : m, j : j + wide * m : m]
            part += d_tiles[i, j]
        return d_x[:, 1 : h + 1, 1 : w + 1], None


# Winograd along w alone: four 3 × 1 products for two columns -----------------


def line(case) -> dict[str, Trial]:
    """The convolutions alone, of a block as large as one that was kept."""
    x = case.inputs[0][:, :6, :12].flatten(1, 2)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = randn(fused._OUTPUTS.get(x.dtype, 64), x.shape[1], 3, 3).to(x)
    weight /= x.shape[1] ** 0.5
    whole = convolutions([x], [weight], (1, 1))
    products = convolutions(*line_operands(x, weight), (1, 0))
    found = line_result(products()[0], x.shape[3])
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    about = errors([found], [exact], x.dtype)
    return {"kept": Trial(whole, {}), "products": Trial(products, about)}


def line_operands(x, weight):
    """Four images of half the width, four filters of one column."""
    B, G, _ = (matrix.to(x) for matrix in winograd_matrices(2))
    x = F.pad(x, (1, 1 + x.shape[3] % 2)).unfold(3, 4, 2)
    images = torch.einsum("et,nkhwt->enhwk", B, x).contiguous()
    filters = torch.einsum("es,okrs->eokr", G, weight)[..., None]
    return images.permute(0, 1, 4, 2, 3), filters


def line_result(products, width):
    A, products = winograd_matrices(2)[2], torch.stack(products)
    out = torch.einsum("ye,enohw->nohwy", A.to(products), products)
    return out.flatten(3)[..., :width]


def convolutions(images, filters, padding):
    """A call that gives the results and all gradients."""
    leaves = [x.detach().requires_grad_() for x in (*images, *filters)]
    pairs = list(zip(leaves, leaves[len(images) :], strict=False))

    def call():
        outs = [F.conv2d(x, weight, padding=padding) for x, weight in pairs]
        done = [out.detach() for out in outs]
        return done, torch.autograd.grad(outs, leaves, done)

    return call


# a Fourier transform along b and c -------------------------------------------


def periodic(case) -> dict[str, Trial]:
    """What was kept with periodic padding, beside blocks."""
    around = functools.partial(kept, padding="periodic")
    functions = {"kept": around, "blocks": periodic_blocks}
    return trials(functions, periodic_blocks, case)


def periodic_blocks(mean, kernel, bias_map):
    x = fused._wrap(planes_first(mean), 1)
    out = fused._in_blocks(x, kernel.flatten(3), bias_map, 1, 0, True)
    return planes_last(out)


def fourier_zero(mean, kernel, bias_map):
    """With zero padding: zeros so many that no tap goes around."""
    (b2, c2, _), (s1, s2) = bias_map.shape, kernel.shape[1:3]
    more = [s // 2 + s // 2 % 2 for s in (s1, s2)]
    x = F.pad(planes_first(mean), (0, more[1], 0, more[0]))
    wide = F.pad(bias_map, (0, 0, 0, more[1] // 2, 0, more[0] // 2))
    z = fused._by_frequency(x, kernel.flatten(3), wide, 1, 1, False)
    return planes_last(F.elu_(z[..., :b2, :c2, :]).mean(3))


# moments ---------------------------------------------------------------------


def moments(case) -> dict[str, Trial]:
    """The moments of the patches alone: closed form, nine shifted copies."""
    functions = {"kept": closed_form, "copies": nine_copies}
    wide = case.inputs[1].dtype
    own = Case(case.inputs[:1], randn(90, seed=5).to(wide))
    return trials(functions, nine_copies, own)


def closed_form(mean):
    return torch.cat([x.flatten() for x in patch_moments(mean)])


def nine_copies(mean):
    m = planes_first(mean).flatten(3)
    wide = torch.promote_types(m.dtype, torch.float32)
    both = fused._StridedMoments.apply(m, wide, "zero", 1)
    return torch.cat([x.flatten() for x in both])


# pointwise work --------------------------------------------------------------


def blocks_before_elu(case):
    """Four blocks, one for each b', with all of c' and d."""
    n, c2, d, h, w = case.d_out.shape
    blocks = randn(4, n, h, w, c2 * d, seed=6).to(case.d_out)
    return list(blocks.permute(0, 1, 4, 2, 3))


def elu(case) -> dict[str, Trial]:
    """The ELU of the blocks in place, forward alone."""
    made = {}
    for name, function in ELUS.items():
        blocks = blocks_before_elu(case)
        spare, exact = torch.empty_like(blocks[0]), blocks[0].double()
        exact = torch.where(exact > 0, exact, exact.expm1())
        function(blocks[0], spare)
        about = errors(blocks, [exact], spare.dtype)
        apart = (blocks[0] - exact)[exact != 0] / exact[exact != 0]
        about["worst_error"] = apart.abs().max().item()

        def call(function=function, blocks=blocks, spare=spare):
            for z in blocks:
                function(z, spare)

        made[name] = Trial(call, about)
    return made


def elu_exp(z, spare):
    torch.clamp(z, max=0, out=spare).exp_().sub_(1)
    torch.maximum(z, spare, out=z)


def elu_sigmoid(z, spare):
    """By exp(z) = 1 / (1 - sigmoid(z)) - 1."""
    torch.clamp(z, max=0, out=spare).sigmoid_()
    spare.neg_().add_(1).reciprocal_().sub_(2)
    torch.maximum(z, spare, out=z)


ELUS = {
    "kept": lambda z, spare: F.elu_(z),
    "exp": elu_exp,
    "sigmoid": elu_sigmoid,
}


def compiled(case) -> dict[str, Trial]:
    """ELU, mean over the blocks, and gradients, by `torch.compile`."""
    eager = pointwise(case, elu_and_mean, elu_and_mean_backward)
    if not compiler():
        return {"kept": Trial(eager, {})}
    from torch._inductor.utils import fresh_cache

    pair = torch.compile(elu_and_mean), torch.compile(elu_and_mean_backward)
    torch.compiler.reset()
    fast = pointwise(case, *pair)
    with fresh_cache():
        start = time.perf_counter()
        found = fast()
        spent = time.perf_counter() - start
    double = Case(case.inputs, case.d_out.double())
    exact = pointwise(double, elu_and_mean, elu_and_mean_backward)()
    about = errors(found[:2], exact, case.d_out.dtype)
    about["compile_seconds"] = spent
    return {"kept": Trial(eager, {}), "compiled": Trial(fast, about)}


def pointwise(case, forward, backward):
    blocks = blocks_before_elu(case)
    d_out = case.d_out.flatten(1, 2) / len(blocks)

    def call():
        return forward(blocks), *backward(d_out, blocks)

    return call


def elu_and_mean(blocks):
    """As the engine does it."""
    total = F.elu_(blocks[0]) / len(blocks)
    for z in blocks[1:]:
        total.add_(F.elu_(z), alpha=1 / len(blocks))
    return total


def elu_and_mean_backward(d_out, blocks):
    backward = torch.ops.aten.elu_backward
    return [backward(d_out, 1, 1, 1, True, z) for z in blocks]


def compiler() -> bool:
    """Whether `torch.compile` finds a C++ compiler."""
    from torch._inductor import cpp_builder, exc

    try:
        return bool(cpp_builder.get_cpp_compiler())
    except exc.InvalidCxxCompiler:
        return False


# the process: memory, and what oneDNN keeps ready ------------------------------

SETTINGS = {
    "kept": {},
    "malloc": {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1),
    },
    "cache": {CAPACITY: "1024"},
}


def processes(repeats=3) -> dict[str, list[float]]:
    """Seconds of a round in fresh processes of these settings, in turn."""
    command = [sys.executable, "-m", "benchmarks.tried", "--round"]
    found = {name: [] for name in SETTINGS}
    for _ in range(repeats):
        for name, setting in SETTINGS.items():
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | setting,
                stdout=subprocess.PIPE,
                check=True,
            )
            found[name] += json.loads(done.stdout)
    return found


def rounds(repeats=3) -> list[float]:
    """Seconds of all blocks in all sizes and types, once each in turn."""
    calls = [
        step(blocks_of(windows), case(plane, dtype))
        for windows in BLOCKS.values()
        for plane in PLANES
        for dtype in bench.TYPES.values()
    ]
    times = [
        sum(bench.seconds(call, CPU) for call in calls)
        for _ in range(1 + repeats)
    ]
    return times[1:]


# the clock -------------------------------------------------------------------


def timings(calls, repeats) -> dict[tuple, list[float]]:
    """Seconds of each call, a mean for each round.

    A fixed order would give each call the memory and caches that the same
    other one leaves behind: 20 % for a small plane after a large one.
    """
    warm = {key: bench.warm_up(call, CPU) for key, call in calls.items()}
    found = {key: [] for key in calls}
    for number in range(repeats):
        for key in random.Random(number).sample(list(calls), len(calls)):
            calls[key]()
            count = math.ceil(0.05 / warm[key])
            found[key].append(bench.seconds(calls[key], CPU, count))
    return found


# a choice by measuring -------------------------------------------------------


def choice(times, precision) -> dict:
    """Half of the rounds choose blocks for each plane; the other half tell
    what that gains, over the layers of stride 1 of the network."""
    kept_seconds = chosen_seconds = 0
    found = {}
    for plane in PLANES:
        seconds = {
            name: times["layer", name, precision, plane]
            for name in ("kept", "dense", *BLOCKS)
        }
        best = min(seconds, key=lambda name: min(seconds[name][::2]))
        layers = sum(
            row.h == plane and row.stride == 1
            for row in layer_sizes()[3:12]
        )
        kept_seconds += layers * min(seconds["kept"][1::2])
        chosen_seconds += layers * min(seconds[best][1::2])
        found[f"plane{plane}"] = best
    return found | {"against": chosen_seconds / kept_seconds}


# what the ledger keeps -------------------------------------------------------

GROUPS = {
    layer: PLANES,
    line: PLANES,
    periodic: PLANES,
    moments: PLANES,
    elu: PLANES[:1],
    compiled: PLANES[:1],
}
TIMES = "takes {against} times as long"
FINDINGS = {
    "layer.dense": f"The whole band as one convolution {TIMES} as the "
    "blocks kept.",
    "layer.rows": f"A block for each b' {TIMES}.",
    "layer.halves": f"A block for each b' and half of c' {TIMES}.",
    "layer.pairs": f"A block for each b' and two c' {TIMES}.",
    "layer.singles": f"A block for each b' and c' {TIMES}.",
    "layer.winograd_2": "Winograd's F(2 × 2, 3 × 3) as matrix products "
    f"{TIMES}; its output is off by {{error}}.",
    "layer.winograd_4": "Winograd's F(4 × 4, 3 × 3) as matrix products "
    f"{TIMES}; its output is off by {{error}}, the gradient of its input "
    "by {input_gradient_error}.",
    "layer.fourier_zero": "A Fourier transform along attributes with zeros "
    f"around them {TIMES}.",
    "line.products": "Winograd along w alone, four 3 × 1 convolutions with "
    "two thirds of the multiply-adds of the 3 × 3 one, "
    f"{TIMES} before any transform.",
    "periodic.kept": "With periodic padding the output of the product by "
    "frequency is off by {error}.",
    "periodic.blocks": f"The product by blocks {TIMES} as that; its output "
    "is off by {error}.",
    "moments.copies": "Taking the moments from nine shifted copies "
    f"{TIMES} as the closed form.",
    "elu.exp": f"The ELU as exp(z) - 1, forward, {TIMES}; a value is off by "
    "up to {worst_error}.",
    "elu.sigmoid": f"The ELU by a sigmoid, forward, {TIMES}; a value is off "
    "by up to {worst_error}.",
    "compiled.compiled": f"torch.compile for ELU, mean and gradients {TIMES}"
    ", {of_layer} of the layer's time; compiling took {compile_seconds} "
    "seconds.",
    "process.malloc": "With memory kept for the process, a round over all "
    f"blocks, planes and types {TIMES}.",
    "process.cache": "With the 1,024 primitives that oneDNN keeps ready by "
    f"itself, a round over all blocks, planes and types {TIMES}.",
    "choice": "A choice of the blocks for each plane, measured before, "
    f"{TIMES} as the fixed rule.",
}


def rows(times, trials) -> dict:
    """data[group][name][precision][plane], a row of figures."""
    data = {}
    for key, seconds in times.items():
        group, name, precision, plane = key
        least = {k: min(v) for k, v in times.items() if k[2:] == key[2:]}
        first = next(k for k in least if k[0] == group)
        row = dict(
            ms=1e3 * statistics.median(seconds),
            least=1e3 * least[key],
            against=least[key] / least[first],
            **trials[key].about,
        )
        if group in ("moments", "elu", "compiled"):
            whole = least["layer", "kept", precision, plane]
            row["of_layer"] = least[key] / whole
        by_name = data.setdefault(group, {}).setdefault(name, {})
        by_name.setdefault(precision, {})[f"plane{plane}"] = row
    return data


def spans(entry: dict, key: str) -> str:
    """The range of a figure over the planes, for each type."""
    if key in entry:
        return figure(entry[key], key)
    parts = []
    for precision in filter(entry.get, bench.TYPES):
        values = [row[key] for row in entry[precision].values()]
        ends = [figure(f(values), key) for f in (min, max)]
        parts.append(f"{' to '.join(dict.fromkeys(ends))} ({precision})")
    return " and ".join(parts)


def figure(value, key):
    share = key.endswith("error") or key.startswith("of_")
    if share and value > 1e-4:
        return f"{float(f'{100 * value:.2g}'):g} %"
    return f"{float(f'{value:.2g}'):g}"


def add_findings(data) -> None:
    """A sentence for each variant that was measured."""
    for path, text in FINDINGS.items():
        entry = data
        for step in path.split("."):
            entry = entry.get(step, {})
        keys = {key for _, key, *_ in Formatter().parse(text) if key}
        if entry:
            found = {key: spans(entry, key) for key in keys}
            entry["finding"] = text.format(**found)


def entry(times, trials, seconds) -> dict:
    """All figures, and a finding for each variant."""
    data = rows(times, trials)
    data["process"] = {
        name: dict(
            ms=1e3 * statistics.median(values),
            least=1e3 * min(values),
            against=min(values) / min(seconds["kept"]),
        )
        for name, values in seconds.items()
    }
    data["choice"] = {
        precision: dict(layers=choice(times, precision))
        for precision in bench.TYPES
    }
    add_findings(data)
    if "compiled" not in data["compiled"]:
        skipped = "torch.compile: skipped, no C++ compiler on this machine."
        data["compiled"]["compiled"] = dict(finding=skipped)
    return data


def findings(data: dict) -> list[str]:
    """All findings, however deep they stand."""
    found = []
    for value in data.values():
        if isinstance(value, dict):
            found += findings(value)
    return [*found, *([data["finding"]] if "finding" in data else [])]


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.tried", description=__doc__
    )
    parser.add_argument("--repeats", type=int, default=8, help="rounds")
    parser.add_argument(
        "--round", action="store_true", help=argparse.SUPPRESS
    )
    chosen = parser.parse_args()
    # oneDNN reads it at the first convolution; more shapes alternate here
    # than the 1,024 that it keeps ready by itself
    os.environ.setdefault(CAPACITY, "10000")
    if chosen.round:
        print(json.dumps(rounds()))
        return
    kind, words = bench.machine(CPU)
    print(words, flush=True)
    trials = {
        (group.__name__, name, precision, plane): trial
        for group, planes in GROUPS.items()
        for precision, dtype in bench.TYPES.items()
        for plane in planes
        for name, trial in group(case(plane, dtype)).items()
    }
    calls = {key: trial.call for key, trial in trials.items()}
    times = timings(calls, chosen.repeats)
    data = entry(times, trials, processes())
    print("\n".join(findings(data)))
    data = dict(
        command="python -m benchmarks.tried",
        machine=words,
        repeats=chosen.repeats,
        clock=CLOCK,
        **data,
    )
    print(results.record(f"tried-{kind}", data))


if __name__ == "__main__":
    main()
