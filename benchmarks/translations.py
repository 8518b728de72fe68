"""What chapter 10 measures of a trained network, for the ledger.

`python -m benchmarks.translations hcnn8-shapes10-periodic` makes the arrays
of all training images (kept in runs/arrays), asks them, and adds the entry
translate-NETWORK to results/. `python -m benchmarks.translations search`
measures the search alone, up to a million arrays. CIFAR is where HCNN_DATA
says.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import numpy
import torch
from safetensors.torch import save_file

from benchmarks.cells import ROOT
from hcnn import results, runs, runtime
from hcnn.axes import H_AXIS, W_AXIS
from hcnn.conv5d import layer_sizes
from hcnn.data import redraw
from hcnn.training import evaluate
from hcnn.translations import (
    AMOUNTS,
    DEPTHS,
    MOVES,
    PERIODS,
    POSITIONS,
    ArrayIndex,
    attribute_array,
    attribute_arrays,
    best_translations,
    image_properties,
    linear_probe,
    moved_arrays,
    network_digest,
    open_index,
    other_orders,
    permutation_test,
    property_change,
    quantile_labels,
    small_distance,
    smooth_attribute,
    store_arrays,
    translate_attribute,
    translated_neighbours,
    untrained_twin,
)

SHARES = (0.5, 0.9, 1.0)  # for what is called a small distance
PROBED = 20_000  # training images that a linear probe learns from
PICTURED = 3, 5, 7, 9, 11
SHOWN = {  # of whose images there are pictures, and of which classes
    "hcnn-cifar10-periodic": ("bird", "automobile", "horse"),
    "hcnn8-cifar10-periodic": ("bird", "automobile", "horse"),
    "hcnn8-shapes10-periodic": ("star", "ring", "heart"),
}
ENOUGH = 0.8  # accuracy, for pictures that nobody asked for


class Study:
    """A network, its data, and the arrays of both parts of the data.

    Args:
        network: trained, with periodic padding.
        train: images that are searched.
        test: images that are asked for.
        queries: number of images asked for, of either part, if there are
            so many.
        arrays: folder for arrays.
    """

    def __init__(self, network, train, test, queries, arrays):
        self.network, self.train, self.test = network, train, test
        twin = untrained_twin(network, train.images[:3200])
        self.networks = dict(trained=network, untrained=twin)
        self.n = min(queries, len(train), len(test))
        self.arrays = arrays
        # made once for each network and part of the data
        self.folder, self.pooled = cache(self.folder), cache(self.pooled)
        four = network.config.K == 8  # rows: a turned phase is translated
        self.moves = [
            how for how in MOVES if not (four and how == "phases")
        ]

    def folder(self, which, split):
        """The stored arrays of a network and a part of the data."""
        data = {"train": self.train, "test": self.test}[split]
        tell = Told(f"{which}, {data.name}, {split}")
        return store_arrays(
            self.networks[which], data, self.arrays, tell=tell
        )

    def queries(self, which, split, depth, smooth=2):
        """Arrays of the images that are asked for."""
        index = open_index(self.folder(which, split), depth, smooth)
        return index[torch.arange(self.n)]

    def found(self, which, split, depth, smooth, queries):
        """What is found for queries (n, tau, b, c), with distances."""
        base = open_index(self.folder(which, "train"), depth, smooth)
        n, taus = queries.shape[:2]
        exclude = (
            torch.arange(n) if split == "train" else torch.full((n,), -1)
        )
        found = base.search(
            queries.flatten(0, 1), exclude=exclude.repeat_interleave(taus)
        )
        return [own.view(n, taus) for own in found]

    def moved(self, which, split, depth, how):
        """What is found for all translations of one kind, 0 among them."""
        raw = self.queries(which, split, depth, smooth=1)
        taus = range(raw.shape[1])
        queries = torch.stack(
            [moved_arrays(raw, tau, how, seed=tau) for tau in taus], 1
        )
        return queries, *self.found(which, split, depth, 2, queries)

    def reordered(self, split, depth):
        """What is found where all images have the rows in one other order.

        It is drawn for each translation, 0 among them. Distances are in
        units of a small one among such arrays: how far a query has moved,
        and how far it is from what is found.
        """
        known, asked = (
            open_index(self.folder("trained", own), depth, 1)
            for own in ("train", split)
        )
        known = known[torch.arange(len(known))]
        asked = asked[torch.arange(self.n)]
        exclude = torch.arange(self.n) if split == "train" else None
        columns = []
        for tau in range(asked.shape[1]):
            rows = other_orders(1, asked.shape[1], tau, runtime.rng(tau))[0]
            index = ArrayIndex(known[:, rows])
            plain = smooth_attribute(asked[:, rows])
            queries = translate_attribute(plain, tau)
            found = index.search(queries, exclude=exclude)
            scale = small_distance(index)
            columns.append(
                (
                    (queries - plain).norm(dim=(1, 2)) / scale,
                    found.distances[:, 0] / scale,
                    found.indices[:, 0],
                )
            )
        return [torch.stack(own, 1) for own in zip(*columns, strict=True)]

    def claim(self):
        """By split, way and depth how often the class is the same."""
        claim = {}
        for split, data in (("train", self.train), ("test", self.test)):
            labels = data.labels[: self.n, None]
            ways = (*self.moves, "untrained")
            others = "nothing", "mean", "reordered"
            claim[split] = {how: {} for how in (*others, *ways)}
            for depth in DEPTHS:
                same = {}
                for how in ways:
                    which = how if how == "untrained" else "trained"
                    move = "translated" if how == "untrained" else how
                    _, _, found = self.moved(which, split, depth, move)
                    same[how] = self.train.labels[found] == labels
                rows = self.queries("trained", split, depth, 1).shape[1]
                alone = self.queries("trained", split, depth, rows)
                _, found = self.found(
                    "trained", split, depth, rows, alone[:, None]
                )
                same["mean"] = self.train.labels[found] == labels
                *_, found = self.reordered(split, depth)
                same["reordered"] = self.train.labels[found] == labels
                same["nothing"] = same["translated"][:, :1]
                for how, own in same.items():
                    claim[split][how][depth] = outcome(
                        own, same["translated"]
                    )
        return claim

    def near(self):
        """Of test images, by τ ≥ 1 how far is moved; what is near.

        In units of a small distance. `small` has [same class and near,
        near, all, standard error of the share of the first two], and of
        "nothing apart" that of the difference to translations: [right
        more often there, near, all, standard error], query by query.
        """
        labels = self.test.labels[: self.n, None]
        small = {str(share): {} for share in SHARES}
        moves = {}
        for depth in DEPTHS:
            base = open_index(self.folder("trained", "train"), depth)
            scale = {share: small_distance(base, share) for share in SHARES}
            plain = self.queries("trained", "test", depth)[:, None]
            moves[depth] = {}
            for how in self.moves:
                queries, distances, found = self.moved(
                    "trained", "test", depth, how
                )
                far = (queries - plain)[:, 1:].norm(dim=(2, 3))
                if how == "translated":
                    plainly = found[:, :1]
                again = found[:, 1:] == plainly
                moves[depth][how] = dict(
                    moved=medians(far / scale[0.9]),
                    found=medians(distances[:, 1:] / scale[0.9]),
                    same_image=again.double().mean(0).tolist(),
                )
                same = self.train.labels[found] == labels
                parts = {how: (same[:, 1:], distances[:, 1:])}
                if how == "translated":
                    parts["nothing"] = same[:, :1], distances[:, :1]
                    # what the queries whose translates are near find at 0
                    there = same[:, :1].expand_as(same[:, 1:])
                    parts["nothing there"] = there, distances[:, 1:]
                    apart = there.int() - same[:, 1:].int()
                    parts["nothing apart"] = apart, distances[:, 1:]
                for name, (right, far) in parts.items():
                    for share in SHARES:
                        close = far <= scale[share]
                        both = right * close
                        rows = small[str(share)].setdefault(name, {})
                        rows[depth] = [
                            int(both.sum()),
                            int(close.sum()),
                            close.numel(),
                            share_error(both, close),
                        ]
            moved, distances, _ = self.reordered("test", depth)
            moves[depth]["reordered"] = dict(
                moved=medians(moved[:, 1:]), found=medians(distances[:, 1:])
            )
        return dict(small=small, moves=moves)

    def probes(self):
        """Test accuracy by what is read, network, classifier and depth."""
        found = {}
        labels = self.train.labels[:PROBED]
        for position in (*POSITIONS, "layer"):
            found[position] = {}
            for which in ("trained", "untrained"):
                known, asked = (
                    self.read(which, split, position)
                    for split in ("train", "test")
                )
                rows = {
                    name: []
                    for name in (
                        "linear probe",
                        "gradient left",
                        "nearest neighbour",
                    )
                }
                for depth in DEPTHS:
                    own, queries = known(depth)[: len(labels)], asked(depth)
                    probe = linear_probe(
                        own, labels, queries, self.test.labels
                    )
                    rows["linear probe"].append(probe.accuracy)
                    rows["gradient left"].append(probe.gradient)
                    near = ArrayIndex(own, 1).search(queries).indices
                    right = labels[near[:, 0]] == self.test.labels
                    rows["nearest neighbour"].append(
                        right.double().mean().item()
                    )
                found[position][which] = rows
        return found

    def read(self, which, split, position):
        """What a probe reads, a function of the depth.

        The arrays at the centre or their mean over all positions; or that
        mean of the whole layer, v_(j-2) in place: (n, a * b, c).
        """

        def centre(depth):
            index = open_index(self.folder(which, split), depth, 1)
            return index[torch.arange(len(index))]

        def whole(depth):
            return self.pooled(which, split)[depth]

        def summed(depth):
            b = layer_sizes(**self.network.config.geometry)[depth].b
            return whole(depth).unflatten(1, (-1, b)).sum(1)

        return dict(centre=centre, mean=summed, layer=whole)[position]

    @torch.no_grad()
    def pooled(self, which, split):
        """By depth the mean of x_j over all positions."""
        network = self.networks[which]
        images = {
            "train": self.train.images[:PROBED],
            "test": self.test.images,
        }[split]
        found = {depth: [] for depth in DEPTHS}
        for own in images.split(250):
            x = network.layer(network.standardize(own), 2)
            for depth in DEPTHS:
                x = network.step(x, depth)
                mean = x.mean((H_AXIS, W_AXIS)).flatten(1, 2)
                found[depth].append(mean)
        return {depth: torch.cat(own) for depth, own in found.items()}

    def properties(self):
        """Of both parts: known factors, or what is measured."""
        if self.train.factors is not None:
            return [
                {k: v for k, v in own.factors.items() if k != "key"}
                for own in (self.train, self.test)
            ]
        test = self.test.images[: self.n]
        parts = [own.split(2000) for own in (self.train.images, test)]
        rows = [[image_properties(own) for own in part] for part in parts]
        return [
            {name: torch.cat([row[name] for row in own]) for name in own[0]}
            for own in rows
        ]

    def dependence(self, repeats):
        """Rows of mutual information, with their permutation tests."""
        there, here = self.properties()
        classes = self.train.labels, self.test.labels[: self.n]
        rows = []

        def add(depth, name, question, first, second):
            found = permutation_test(first, second, repeats)
            rows.append(
                dict(
                    depth=depth,
                    property=name,
                    question=question,
                    **found._asdict(),
                )
            )

        # as many images of each class, so that the columns are rectangles
        counts = classes[1].bincount()
        count = int(counts[counts > 0].min())
        grouped = torch.stack(
            [
                (classes[1] == label).nonzero()[:count, 0]
                for label in classes[1].unique()
            ]
        )
        for depth in DEPTHS:
            *_, indices = self.moved("trained", "test", depth, "translated")
            n, b = indices.shape
            # one translation for each image, so that pairs are independent
            one = indices[torch.arange(n), 1 + torch.arange(n) % (b - 1)]
            taus = torch.arange(b - 1).expand(n, -1)
            same = classes[0][indices[:, 1:]] == classes[1][:, None]
            add(depth, "class", "changed", taus, same.long())
            for name in here:
                before, after = here[name][:n], there[name]
                for question, found in (
                    ("nearest", indices[:, 0]),
                    ("kept", one),
                ):
                    pair = (
                        quantile_labels(own)[grouped]
                        for own in (before, after[found])
                    )
                    add(depth, name, question, *pair)
                change = property_change(
                    before[:, None],
                    after[indices[:, 1:]],
                    PERIODS.get(name),
                )
                change = quantile_labels(change)
                add(depth, name, "changed", taus, change)
                # 1 and -1 go equally far: what is left is the direction
                ends = [0, b - 2]
                add(depth, name, "turned", taus[:, ends], change[:, ends])
        if self.train.factors is None:
            return dict(dependence=rows)
        explained = {name: {} for name in AMOUNTS}
        plain = self.by_hand(None, 0)
        for name, amounts in AMOUNTS.items():
            moved = [self.by_hand(name, amount) for amount in amounts]
            for depth in DEPTHS:
                pairs = [
                    best_translations(plain[depth], own[depth])
                    for own in moved
                ]
                taus = torch.stack([taus for taus, _ in pairs], 1)
                change = torch.arange(len(amounts)).expand_as(taus)
                add(
                    depth,
                    "class" if name == "label" else name,
                    "by hand",
                    change,
                    taus,
                )
                explained[name][depth] = [own.tolist() for _, own in pairs]
        return dict(dependence=rows, explained=explained)

    def by_hand(self, name, amount):
        """Arrays of test images that were drawn with a factor changed."""
        which = torch.arange(self.n)
        changes = {}
        if name is not None:
            source = (
                self.test.labels
                if name == "label"
                else self.test.factors[name]
            )
            value = source[: self.n] + amount
            period = 10 if name == "label" else PERIODS.get(name)
            changes[name] = value if period is None else value % period
        drawn = redraw(self.test, which, **changes)
        found = {depth: [] for depth in DEPTHS}
        with torch.no_grad():
            for images in drawn.split(250):
                x = self.network.standardize(images)
                for depth, own in attribute_arrays(self.network, x).items():
                    found[depth].append(own)
        return {
            depth: smooth_attribute(torch.cat(own))
            for depth, own in found.items()
        }

    def pictures(self, classes):
        """The images of the paper's two figures, and what belongs to them.

        Args:
            classes: names: two images are of the first, one of each other.
        """
        names = self.test.class_names

        def first(name, count):
            label = names.index(name)
            return (self.test.labels == label).nonzero()[:count, 0]

        pair = first(classes[0], 2)
        inputs = torch.cat([first(name, 1) for name in classes[1:]])
        base = self.folder("trained", "train")
        with torch.no_grad():
            x = self.network.standardize(self.test.images[pair])
            arrays = attribute_array(self.network, x, 11)
        index = open_index(base, 11)
        near = translated_neighbours(index, arrays)
        which, scale = near.indices[:, :, 0], small_distance(index)
        pictures = self.train.images[which]
        pictures[:, 0] = self.test.images[pair]
        below = index[which.flatten()].unflatten(0, which.shape)
        below[:, 0] = arrays
        wanted = [
            translate_attribute(arrays, tau)
            for tau in range(arrays.shape[1])
        ]
        far = near.distances[:, :, 0] / scale
        rows, same, apart = [], [], []
        for depth in PICTURED:
            with torch.no_grad():
                x = self.network.standardize(self.test.images[inputs])
                arrays = attribute_array(self.network, x, depth)
            index = open_index(base, depth)
            taus = range(1, arrays.shape[1])
            found = translated_neighbours(index, arrays, taus)
            near = found.indices[:, :, 0]
            rows.append(self.train.images[near])
            same.append(
                self.train.labels[near] == self.test.labels[inputs, None]
            )
            apart.append(found.distances[:, :, 0] / small_distance(index))
        return {
            "pair.images": pictures,
            "pair.arrays": below,
            "pair.wanted": torch.stack(wanted, 1),
            "pair.distances": far,
            "depths.inputs": self.test.images[inputs],
            "depths.images": torch.stack(rows, 1),
            "depths.same": torch.stack(same, 1),
            "depths.distances": torch.stack(apart, 1),
            "depths.depths": torch.tensor(PICTURED),
        }

    def cost(self, rounds=5):
        """Rates of forward pass and arrays, and the time of a query."""
        images = self.test.subset(min(1000, len(self.test)))
        network, times = self.network, {"forward": [], "arrays": []}
        device = next(network.parameters()).device
        for _ in range(rounds + 1):
            begin = time.perf_counter()
            with torch.no_grad():
                for own in images.images.split(250):
                    network(network.standardize(own))
            times["forward"].append(time.perf_counter() - begin)
            with tempfile.TemporaryDirectory() as folder:
                begin = time.perf_counter()
                store_arrays(network, images, folder, device=device)
                times["arrays"].append(time.perf_counter() - begin)
        rates = {
            name: len(images) / statistics.median(own[1:])
            for name, own in times.items()
        }
        index = open_index(self.folder("trained", "train"), 7)
        asked = index[torch.arange(min(30, len(index)))]
        index.search(asked)
        milliseconds = []
        for array in asked.split(1):
            begin = time.perf_counter()
            index.search(array)
            milliseconds.append(1000 * (time.perf_counter() - begin))
        return dict(
            forward_images_per_second=rates["forward"],
            arrays_images_per_second=rates["arrays"],
            arrays_of_forward=rates["arrays"] / rates["forward"],
            query_milliseconds=statistics.median(milliseconds),
            clock="arrays with digests and writing; first round left out",
        )


class Told:
    """Says how far the arrays are, once a minute."""

    def __init__(self, what):
        self.what, self.last = what, time.monotonic()

    def __call__(self, done):
        if time.monotonic() > self.last + 60:
            self.last = time.monotonic()
            print(f"arrays: {self.what}: {done:,}", flush=True)


def mean(values):
    return values.double().mean().item()


def medians(values):
    """Over the queries, for each τ."""
    return values.median(0).values.tolist()


def share_error(some, of):
    """Standard error of sum(some) / sum(of); rows are independent.

    Of one row nothing is known: 1/2, the largest error of a share.
    """
    some, of = (own.double().sum(1) for own in (some, of))
    rows = int((of > 0).sum())
    if rows < 2:
        return 0.5 * rows
    apart = (some - some.sum() / of.sum() * of).norm() / of.sum()
    return (rows / (rows - 1)) ** 0.5 * apart.item()


def mean_over_taus(same):
    """For each query the mean over τ ≥ 1, or over all if there is one."""
    return same[:, min(1, same.shape[1] - 1) :].double().mean(1)


def by_parity(same):
    """For each query the means over odd and over even τ ≥ 1, if any."""
    parts = dict(odd=same[:, 1::2], even=same[:, 2::2])
    return {k: v.double().mean(1) for k, v in parts.items() if v.numel()}


def outcome(same, ours):
    """Counts [same class, all] by τ; mean and error over the queries.

    `odd` and `even` have mean and error over such τ ≥ 1, if there are any;
    `apart` those of the difference, ours minus these, by the parity of
    ours and then by that of these.
    """

    def both(values):
        return [mean(values), values.std().item() / len(values) ** 0.5]

    own = mean_over_taus(same)
    difference = both(mean_over_taus(ours) - own)
    parities = by_parity(same)
    return dict(
        counts=[[int(column.sum()), len(column)] for column in same.T],
        **dict(zip(("mean", "error"), both(own), strict=True)),
        difference=difference[0],
        difference_error=difference[1],
        **{name: both(values) for name, values in parities.items()},
        apart={
            first: {k: both(left - v) for k, v in parities.items()}
            for first, left in by_parity(ours).items()
        },
    )


def study(args, ledger):
    """Measure one network and record it."""
    name, data = runs.network_to_search(args.network, args.data)
    shown, only = SHOWN.get(Path(name).name), args.pictures
    if only and shown is None:
        raise SystemExit(
            f"translations: no images are chosen for pictures of {name}; "
            f"expected one of {', '.join(SHOWN)}; add it to SHOWN"
        )
    task = "pictures" if only else "translate"
    title = results.check_name("study", f"{task}-{Path(name).name}")
    network = runs.find_network(name)
    train, test = runs.datasets(data)
    if args.images:
        train = train.subset(min(args.images, len(train)))
        test = test.subset(min(args.images, len(test)))
    asked = Study(network, train, test, args.queries, args.arrays)
    found = dict(
        network=name,
        network_sha256=network_digest(network),
        accuracy=evaluate(network, test).accuracy,
        data=train.name,
        classes=len(train.class_names),
        images=len(train),
    )
    if not only:
        found |= measured(asked, args.repeats)
    found["command"] = shlex.join(
        ["python", "-m", "benchmarks.translations", *args.typed]
    )
    found["environment"] = runtime.environment()
    found = json.loads(json.dumps(found))
    with tempfile.TemporaryDirectory() as folder:
        files = []
        if shown and (only or found["accuracy"] >= ENOUGH):
            files = [Path(folder, "pictures.safetensors")]
            own = asked.pictures(shown)
            save_file({k: v.contiguous() for k, v in own.items()}, files[0])
        path = results.record(title, found, root=ledger, files=files)
    print(path)


def measured(asked, repeats):
    """All figures of a study."""
    found = dict(
        queries=asked.n,
        probed=min(PROBED, len(asked.train)),
        smooth=2,
        repeats=repeats,
        claim=asked.claim(),
    )
    counts = found["claim"]["test"]["translated"][3]["counts"]
    found["translations"] = len(counts) - 1
    found |= asked.near()
    found["probes"] = asked.probes()
    found |= asked.dependence(repeats)
    found["cost"] = asked.cost()
    return found


def search(ledger):
    """Time and memory of searches, by number of arrays."""
    rows = []
    for n in (50_000, 200_000, 1_000_000):
        rows.append(fresh_search(n))
        print(rows[-1], flush=True)
    found = dict(
        rows=rows,
        command="python -m benchmarks.translations search",
        environment=runtime.environment(),
    )
    print(results.record("translate-search", found, root=ledger))


def fresh_search(n, queries=32):
    """`search_random` in a process of its own.

    glibc gives arrays of a MiB or more back to the system when they are
    freed, so that the memory that is counted is in use.
    """
    code = (
        "from benchmarks.translations import search_random\n"
        f"search_random({n}, {queries})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=dict(os.environ, MALLOC_MMAP_THRESHOLD_=str(2**20)),
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


def search_random(n, queries=32, b=8, c=16):
    """Search n random arrays in a file, in this process; print JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "arrays.npy")
        file = numpy.lib.format.open_memmap(
            path, "w+", numpy.float32, (n, b, c)
        )
        generator = runtime.rng(0)
        for start in range(0, n, 10_000):
            stop = min(start + 10_000, n)
            file[start:stop] = torch.randn(
                stop - start, b, c, generator=generator
            ).numpy()
        file.flush()
        del file
        asked = torch.randn(queries, b, c, generator=generator)
        few = path.with_name("few.npy")  # what a search needs at all
        numpy.save(few, asked.numpy())
        ArrayIndex(few).search(asked)
        before = _peak(reset=True)
        index = ArrayIndex(path)
        index.search(asked[:1])
        milliseconds = []
        for array in asked.split(1):
            begin = time.perf_counter()
            index.search(array)
            milliseconds.append(1000 * (time.perf_counter() - begin))
        index.search(asked)
        found = dict(
            arrays=n,
            megabytes=path.stat().st_size / 1e6,
            peak_megabytes=_peak() - before,
            query_milliseconds=statistics.median(milliseconds),
        )
    print(json.dumps(found))


def _peak(reset=False):
    """Most memory that this process has held, or now holds, in MB."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (own for own in lines if own.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.translations", description=__doc__
    )
    parser.add_argument("network", help="shipped, a folder, or search")
    parser.add_argument("--data", help="by default that of the name")
    parser.add_argument("--images", type=int, help="fewer, for a trial")
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="only those of the paper's two figures, in an entry of their own",
    )
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=4999)
    parser.add_argument(
        "--arrays", type=Path, default=ROOT / "runs" / "arrays"
    )
    parser.add_argument(
        "--results",
        type=Path,
        help="the ledger; that of a trial with --images is in runs/trial",
    )
    chosen = parser.parse_args(arguments)
    chosen.typed = sys.argv[1:] if arguments is None else arguments
    ledger = chosen.results or ROOT / (
        "runs/trial" if chosen.images else "results"
    )
    if chosen.network == "search":
        search(ledger)
    else:
        study(chosen, ledger)
    return 0


if __name__ == "__main__":
    sys.exit(main())
