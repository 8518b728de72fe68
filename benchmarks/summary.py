"""From measured cells to an entry of the ledger and its figure."""

from collections.abc import Iterable

import numpy as np

from benchmarks.cells import SIZES, Cell
from hcnn import figures
from hcnn.bench import TYPES, floor_seconds
from hcnn.conv5d import layer_cost
from hcnn.figures import BLUE, GREY, INK

# least values on two cores; "most" for the share of the published memory
TARGETS = {
    "K8.float32.speedup": 15,
    "K8.bf16.speedup": 18,
    "K16.float32.floor_percent": 40,
    "K16plus.bf16.speedup_same_type": 2,
    "memory.float32.share": 0.1,
    "memory.bf16.share": 0.1,
}
WITH_AMX = {
    "K16.float32.speedup": 12,
    "K16.bf16.speedup": 40,
    "K16.bf16.speedup_same_type": 20,
    "K16.bf16.floor_percent": 20,
}
WITHOUT_AMX = {
    "K16.float32.speedup": 8,
    "K16.bf16.speedup": 13,
    "K16.bf16.speedup_same_type": 7,
    "K16.bf16.floor_percent": 33,
}
ON_GPU = {"gpu.best_images_per_second": 20_000}


def targets(kind: str, device) -> dict[str, float]:
    """The targets that hold on this machine, by name of the figure."""
    if device.type == "cuda":
        return ON_GPU
    return TARGETS | (WITH_AMX if kind == "amx" else WITHOUT_AMX)


def nested(flat: dict) -> dict:
    """{"a.b": 1} as {"a": {"b": 1}}, numbers with four digits."""
    tree = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        branch = tree
        for step in path:
            branch = branch.setdefault(step, {})
        if isinstance(value, float):
            value = float(f"{value:.4g}")
        branch[last] = nested(value) if isinstance(value, dict) else value
    return tree


def summary(measured: dict[Cell, dict], kind: str, device) -> dict:
    """What the ledger keeps: times in ms an image, memory in MiB, rates in
    G multiply-adds a second."""
    groups = {cell.group: {} for cell in measured}
    for cell, entries in measured.items():
        groups[cell.group][cell] = entries
    found = must_show(groups)
    for name, target in targets(kind, device).items():
        if name in found:
            least = not name.endswith("share")
            met = found[name] >= target if least else found[name] <= target
            found |= {f"{name}_target": target, f"{name}_met": met}
    data = {"must_show": nested(found)}
    if "grid" in groups:
        data["grid"] = nested(grid(groups["grid"]))
        data["growth"] = nested(growth(groups["grid"]))
    if "memory" in groups:
        data["memory"] = nested(
            {
                f"K{cell.K}.{name}": mebibytes(entry)
                for cell, entries in groups["memory"].items()
                for name, entry in entries.items()
            }
        )
    return data


def mebibytes(entry: dict) -> dict:
    if "skipped" in entry:
        return dict(skipped=entry["skipped"])
    return dict(mib=entry["bytes"] / 2**20)


def must_show(groups: dict) -> dict:
    """The figures that were promised, under flat names."""
    found = {}
    for cell, entries in groups.get("must_show", {}).items():
        found |= promised_times(cell, entries)
    for cell, entries in groups.get("must_show_memory", {}).items():
        found["memory.batch"] = cell.batch
        for precision in TYPES:
            here = f"memory.{precision}"
            for name in cell.names:
                entry = mebibytes(entries[f"{name}.{precision}"])
                for key, value in entry.items():
                    found[f"{here}.{name}_{key}"] = value
            if f"{here}.published_mib" in found:
                found[f"{here}.share"] = (
                    found[f"{here}.ours_mib"]
                    / found[f"{here}.published_mib"]
                )
    for name in ("published", "ours"):
        speeds = {
            cell.batch: cell.batch / entries[key]["seconds"]
            for cell, entries in groups.get("gpu", {}).items()
            if "least" in entries[key := f"{name}.bf16.training"]
        }
        for batch, speed in speeds.items():
            found[f"gpu.{name}.batch{batch}_images_per_second"] = speed
        if speeds and name == "ours":
            found["gpu.best_batch"] = max(speeds, key=speeds.get)
            found["gpu.best_images_per_second"] = max(speeds.values())
    return found


def promised_times(cell: Cell, entries: dict) -> dict:
    """Times of a training step against the published graph in float32 and
    in the same type, rates of the same run, and the share of the floor."""
    about = f"K{cell.K}plus" if cell.plus else f"K{cell.K}"
    found = {
        f"{about}.batch": cell.batch,
        # far above 1 where something else ran on the machine
        f"{about}.spread": max(
            e["most"] / e["least"] for e in entries.values()
        ),
    }
    ms = {
        (name, precision): entries[f"{name}.{precision}.training"][
            "seconds"
        ]
        / cell.batch
        * 1e3
        for name in cell.names
        for precision in TYPES
    }
    for precision in TYPES:
        here, own = f"{about}.{precision}", ms["ours", precision]
        rates = {
            kind: entries[f"rate.{kind}.{precision}"]["rate"]
            for kind in ("matmul", "conv2d")
        }
        found |= {
            f"{here}.published_ms": ms["published", precision],
            f"{here}.ours_ms": own,
            f"{here}.speedup": ms["published", "float32"] / own,
            f"{here}.speedup_same_type": ms["published", precision] / own,
            **{f"{here}.{k}_rate": r / 1e9 for k, r in rates.items()},
        }
        if not cell.plus:
            floor = 1e3 * floor_seconds(
                cell.config, cell.size, max(rates.values())
            )
            found[f"{here}.floor_ms"] = floor
            found[f"{here}.floor_percent"] = 100 * floor / own
    return found


def grid(cells: dict) -> dict:
    """ms an image (median, least, most) of every cell, or why it has none."""
    return {
        f"{cell.key.removeprefix('grid.')}.{name}": (
            {"skipped": entry["skipped"]}
            if "skipped" in entry
            else {
                key: entry[stored] / cell.batch * 1e3
                for key, stored in (
                    ("ms", "seconds"),
                    ("least", "least"),
                    ("most", "most"),
                )
            }
        )
        for cell, entries in cells.items()
        for name, entry in entries.items()
    }


# growth ---------------------------------------------------------------------

# what stays fixed while one axis varies
AXES = {
    "batch": dict(K=16, Q=32, size=16),
    "K": dict(Q=32, size=16, batch=8),
    "Q": dict(K=16, size=16, batch=8),
    "size": dict(K=16, Q=32, batch=8),
}
WORK = {"published": "factor_multiply_adds", "ours": "multiply_adds"}


def exponent(x: Iterable[float], y: Iterable[float]) -> float:
    """The slope of log y against log x, by least squares."""
    slope = np.polyfit(np.log(list(x)), np.log(list(y)), 1)[0]
    return round(float(slope), 3)


def growth(cells: dict) -> dict:
    """For each axis the exponent of the time of a training step, and that
    of its multiply-adds over the same points."""
    found = {}
    for axis, fixed in AXES.items():
        matching = sorted(
            (
                cell
                for cell in cells
                if all(getattr(cell, k) == v for k, v in fixed.items())
            ),
            key=lambda cell: getattr(cell, axis),
        )
        for name, work in WORK.items():
            for precision in TYPES:
                key = f"{name}.{precision}.training"
                kept = [
                    cell
                    for cell in matching
                    if all(
                        "least"
                        in cells[cell][f"{who}.{precision}.training"]
                        for who in WORK
                    )
                ]
                if len(kept) < 3:
                    continue
                x = [getattr(cell, axis) for cell in kept]
                times = [cells[cell][key]["seconds"] for cell in kept]
                costs = [
                    cell.batch
                    * sum(
                        getattr(row, work)
                        for row in layer_cost(
                            cell.size, **cell.config.geometry, Q=cell.Q
                        )
                    )
                    for cell in kept
                ]
                found[f"{axis}.{name}.{precision}"] = dict(
                    values=x,
                    measured=exponent(x, times),
                    predicted=exponent(x, costs),
                )
    return found


# the figure -----------------------------------------------------------------

TITLES = {
    "ours": "hcnn",
    "published": "published graph",
    "channels_last": "… channels last",
    "conv3d_loop": "loop of conv3d",
    "unstructured": "plain Conv2d",
}


def picture(data: dict):
    """Times of a training step, and memory, as far as they were measured."""
    shown = data["must_show"]
    times = {
        f"{about}, {precision}": [
            shown[about][precision].get(key)
            for key in ("ours_ms", "published_ms", "floor_ms")
        ]
        for about in ("K16", "K8", "K16plus")
        if about in shown
        for precision in TYPES
    }
    peaks = {
        precision: [
            shown["memory"][precision].get(f"{name}_mib")
            for name in ("ours", "published")
        ]
        for precision in TYPES
        if "memory" in shown
    }
    rows = 1 + ("grid" in data)
    with figures.canvas(rows, 2, size=(9, 3.4 * rows)) as (figure, axes):
        first, *more = np.reshape(axes, (rows, 2))
        pairs(first[0], times, "training step, ms an image")
        pairs(first[1], peaks, "training step, peak MiB, K16")
        first[0].set_title("blue: hcnn, grey: published, bar: floor")
        for row in more:
            lines(row[0], data["grid"], "batch", "K", 16)
            lines(row[1], data["grid"], "K", "batch", 8)
    return figure


def decades(values) -> tuple[float, float]:
    """Limits of an axis at powers of ten around the values."""
    logs = np.log10(list(values) or [1, 10])
    return 0.9 * 10 ** np.floor(logs.min()), 1.1 * 10 ** np.ceil(logs.max())


def pairs(axes, rows: dict, xlabel: str):
    """For each row two dots, ours and the published graph, with the ratio
    between them, and a bar at the floor."""
    shown = []
    for place, (own, other, *floor) in enumerate(rows.values()):
        if None in (own, other):
            continue
        shown += [own, other, *filter(None, floor)]
        axes.plot([own, other], [place] * 2, color=GREY, zorder=1)
        axes.plot(other, place, "o", color=GREY)
        axes.plot(own, place, "o", color=BLUE)
        if any(floor):
            axes.plot(floor, [place], "|", color=INK, markersize=12)
        axes.annotate(
            f"{other / own:.1f}×",
            ((own * other) ** 0.5, place),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    axes.set(
        xscale="log",
        xlim=decades(shown),
        xlabel=xlabel,
        yticks=range(len(rows)),
        yticklabels=rows,
        ylim=(max(len(rows), 1) - 0.5, -0.5),
    )


def lines(axes, grid: dict, axis: str, other: str, fixed: int):
    """Time of a training step along one axis, on the largest images."""
    colors = (
        figures.BLUE,
        figures.GREY,
        figures.GREEN,
        figures.RED,
        figures.ORANGE,
    )
    size, ticks, shown = f"size{max(SIZES)}", set(), []
    for color, (name, title) in zip(colors, TITLES.items(), strict=True):
        for precision, style in zip(TYPES, ("-o", "--o"), strict=True):
            points = {}
            for K, tree in grid.items():
                for batch, row in tree["Q32"].get(size, {}).items():
                    at = dict(K=int(K[1:]), batch=int(batch[5:]))
                    entry = row.get(name, {}).get(precision, {})
                    if at[other] == fixed and "ms" in entry["training"]:
                        points[at[axis]] = entry["training"]["ms"]
            ticks |= points.keys()
            shown += points.values()
            axes.plot(
                points.keys(),
                points.values(),
                style,
                color=color,
                markersize=3,
                label=title if precision == "float32" else None,
            )
    axes.set(
        xscale="log",
        yscale="log",
        ylim=decades(shown),
        xlabel=axis,
        ylabel="training step, ms an image",
        title=f"{other} = {fixed}, {size[4:]} × {size[4:]}; dashed: bf16",
    )
    axes.set_xticks(sorted(ticks), sorted(ticks))
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="y", which="minor", labelleft=False)
    axes.legend(fontsize=8)
