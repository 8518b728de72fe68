"""Arrays, their translations, exact search, files of arrays, statistics."""

import math
import operator
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from types import SimpleNamespace

import jaxtyping
import numpy
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.testing import assert_close

from benchmarks.translations import fresh_search
from hcnn import translations as own
from hcnn.data import FACTORS, redraw, shapes10
from hcnn.network import HCNN, load_pretrained, preset, pretrained
from hcnn.results import entries
from hcnn.runtime import rng


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


def network_of(name="hcnn8-shapes10-periodic", **changes):
    data = shapes10(64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = HCNN(
            preset(name, Q=3, **changes), mean=data.mean, std=data.std
        )
    with torch.no_grad():
        network.train()(network.standardize(data.images))
    return network.eval()


@pytest.fixture(scope="module")
def network():
    return network_of()


@pytest.fixture(scope="module")
def shapes():
    return shapes10(120)


@pytest.fixture
def unchecked():
    """Our errors come before those of the shape checks."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# arrays


@pytest.mark.parametrize(
    "engine", ["fused", "factorized", "lean", "folded"]
)
@pytest.mark.parametrize("padding", ["zero", "periodic"])
@pytest.mark.parametrize("output_norm", [False, True])
def test_arrays_are_the_formula_for_every_engine(
    engine, padding, output_norm
):
    plus = engine == "lean"
    network = network_of(
        padding=padding, output_norm=output_norm, plus=plus
    ).double()
    images = randn(3, 3, 18, 15)
    with torch.no_grad():
        expected = {}
        for j in own.DEPTHS:
            x_j = network.layer(images, j)
            h, w = x_j.shape[-2] // 2, x_j.shape[-1] // 2
            expected[j] = x_j[..., h, w].sum(1), x_j.sum(1).mean((-2, -1))
        if engine == "folded":
            network = network.fold()
        elif engine == "factorized":
            network.engine = "factorized"
        for index, position in enumerate(own.POSITIONS):
            found = own.attribute_arrays(network, images, position=position)
            assert list(found) == list(own.DEPTHS)
            for j, array in found.items():
                assert_close(array, expected[j][index])


def test_some_depths_are_those_of_all(network, shapes):
    x = network.standardize(shapes.images[:5])
    with torch.no_grad():
        every = own.attribute_arrays(network, x)
        some = own.attribute_arrays(network, x, [9, 4])
        assert set(some) == {4, 9}
        for j, array in some.items():
            assert_close(array, every[j])
            one = own.attribute_array(network, x, j, smooth=1)
            assert_close(one, every[j])


def test_arrays_have_gradients(network):
    x = randn(1, 3, 8, 8, dtype=torch.float32).requires_grad_()
    own.attribute_array(network, x, 5).square().sum().backward()
    assert x.grad.abs().max() > 0


@pytest.mark.parametrize("depth", [2, 12, 0, -3, 5.5])
def test_a_depth_without_three_attributes_is_refused(
    depth, network, unchecked
):
    with pytest.raises(ValueError, match="expected 3 to 11"):
        own.attribute_array(network, torch.zeros(1, 3, 8, 8), depth)


def test_a_network_in_training_is_refused():
    training = network_of().train()
    with pytest.raises(ValueError, match=r"call network\.eval"):
        own.attribute_arrays(training, torch.zeros(2, 3, 8, 8))


def test_zero_padding_warns_and_goes_on():
    network = network_of("hcnn8-shapes10")
    x = torch.zeros(1, 3, 8, 8)
    with pytest.warns(UserWarning, match="attributes have ends"):
        array = own.attribute_array(network, x, 5)
    assert array.shape == (1, 4, 8)
    with warnings.catch_warnings():  # the periodic one is silent
        warnings.simplefilter("error")
        own.attribute_array(network_of(), x, 5)


@pytest.mark.parametrize("tau", [-1, 4, 1.0, "1"])
def test_tau_out_of_range_is_refused(tau, unchecked):
    with pytest.raises(ValueError, match="expected 0 to 3"):
        own.translate_attribute(torch.zeros(1, 4, 8), tau)


@pytest.mark.parametrize("smooth", [0, 5, 2.0])
def test_an_average_of_too_many_is_refused(smooth, unchecked):
    with pytest.raises(ValueError, match="expected 1 to 4"):
        own.smooth_attribute(torch.zeros(1, 4, 8), smooth)


def test_translations_move_down_and_come_back():
    array = torch.arange(8.0).view(1, 4, 2)
    moved = own.translate_attribute(array, 1)
    assert torch.equal(moved[0, 1], array[0, 0])
    assert torch.equal(moved[0, 0], array[0, 3])
    assert torch.equal(own.translate_attribute(moved, 3), array)


# search


def brute(arrays, queries, k, smooth, exclude=None):
    arrays = own.smooth_attribute(arrays, smooth).double().flatten(1)
    apart = queries.double().flatten(1)[:, None] - arrays
    distances = apart.square().sum(2).sqrt()
    if exclude is not None:
        rows = (exclude >= 0).nonzero()[:, 0]
        distances[rows, exclude[rows]] = math.inf
    indices = distances.argsort(dim=1, stable=True)[:, :k]
    return distances.gather(1, indices), indices


@pytest.mark.parametrize("seed", range(40))
def test_search_is_brute_force_in_float64(
    seed, tmp_path, monkeypatch, unchecked
):
    generator = rng(seed)

    def draw(low, high):
        return int(torch.randint(low, high, (), generator=generator))

    n, b, c = draw(3, 200), draw(1, 7), draw(1, 7)
    smooth, k, scale = draw(1, b + 1), draw(1, 4), 10.0 ** draw(-4, 5)
    k = min(k, n - 1)
    arrays = torch.randn(n, b, c, generator=generator)
    if seed % 3 == 0:  # ties
        arrays = arrays.round()[torch.randint(n, (n,), generator=generator)]
    arrays = scale * (arrays + (seed % 2) * 30)
    exclude = torch.randint(-1, n, (17,), generator=generator)
    queries = own.smooth_attribute(arrays, smooth)[exclude]
    queries = queries + (seed % 4 == 1) * scale * torch.randn(
        queries.shape, generator=generator
    )
    # blocks, queries and pairs end anywhere
    monkeypatch.setattr(own, "_BLOCK", draw(1, n + 2))
    monkeypatch.setattr(own, "_QUERIES", draw(1, 20))
    monkeypatch.setattr(own, "_PAIRS", draw(1, 50))
    numpy.save(tmp_path / "a.npy", arrays.numpy())
    for out in (None, exclude):
        expected = brute(arrays, queries, k, smooth, out)
        for where in (arrays, tmp_path / "a.npy"):
            index = own.ArrayIndex(where, smooth)
            found = index.search(queries, k, out)
            assert_close(
                found.distances, expected[0], rtol=1e-12, atol=1e-12 * scale
            )
            if seed % 4 != 1 or seed % 3:  # rounding breaks no tie
                assert torch.equal(found.indices, expected[1])


def hard(kind):
    """Arrays whose distances drown in the rounding of the product."""
    arrays = torch.randn(400, 4, 8, generator=rng(0))
    if kind == "oscillation":  # smoothed away, but not from the product
        arrays = 1 + 1e-3 * arrays
        return arrays + 1e3 * torch.tensor([1.0, -1, 1, -1])[:, None]
    if kind == "copies":
        arrays = 100 + arrays
        return torch.cat([arrays, arrays * (1 + 2e-7)])
    return 1e-22 * arrays  # "tiny": squares below float32


@pytest.mark.parametrize("kind", ["oscillation", "copies", "tiny"])
def test_search_is_exact_where_the_product_is_not(kind, monkeypatch):
    arrays = hard(kind)
    queries = own.smooth_attribute(arrays)[:200]
    expected = brute(arrays, queries, 1, 2)[1]
    index = own.ArrayIndex(arrays)
    assert torch.equal(index.search(queries).indices, expected)
    monkeypatch.setattr(own, "_margin", lambda flat, *_: 0 * flat[:, 0])
    assert kind == "tiny" or not torch.equal(
        index.search(queries).indices, expected
    )


def test_the_margin_follows_arrays_before_smoothing():
    arrays = hard("oscillation")
    queries = own.smooth_attribute(arrays)[:200]
    index = own.ArrayIndex(arrays)
    index.largest = index.squares.max().sqrt().double()
    expected = brute(arrays, queries, 1, 2)[1]
    assert not torch.equal(index.search(queries).indices, expected)


def test_search_is_exact_where_factors_are_short(monkeypatch):
    arrays = 5 + torch.randn(2000, 4, 8, generator=rng(0))
    queries = own.smooth_attribute(arrays, 2)[:100]
    expected = brute(arrays, queries, 3, 2)[1]
    product = torch.addmm

    def short(squares, first, second, alpha):
        first, second = (v.bfloat16().float() for v in (first, second))
        return product(squares, first, second, alpha=alpha)

    monkeypatch.setattr(torch, "addmm", short)
    index = own.ArrayIndex(arrays)
    assert not torch.equal(index.search(queries, 3).indices, expected)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = index.search(queries, 3)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.indices, expected)

    def mixed():
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
    assert torch.equal(index.search(queries, 3).indices, expected)


def test_many_equal_arrays_are_taken_in_portions(monkeypatch):
    monkeypatch.setattr(own, "_PAIRS", 100)
    arrays = torch.ones(1000, 4, 8)
    found = own.ArrayIndex(arrays).search(arrays[:30], 2)
    assert found.indices.tolist() == [[0, 1]] * 30


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_arrays_are_searched_in_float64_too(dtype):
    arrays = (randn(500, 4, 5) + 5).to(dtype)
    queries = own.smooth_attribute(arrays[:50].float(), 2)
    queries = queries + 0.3 * randn(*queries.shape, seed=1).float()
    expected = brute(arrays.float(), queries, 3, 2)
    found = own.ArrayIndex(arrays, 2).search(queries, 3)
    assert torch.equal(found.indices, expected[1])
    assert_close(found.distances, expected[0], rtol=1e-9, atol=1e-12)


def test_ties_are_broken_by_index():
    array = torch.randn(1, 4, 8, generator=rng(0))
    arrays = array.repeat(50, 1, 1)
    query = own.smooth_attribute(array)
    index = own.ArrayIndex(arrays)
    assert index.search(query, 4).indices.tolist() == [[0, 1, 2, 3]]
    for out in (torch.tensor([1]), [1]):
        assert index.search(query, 3, out).indices.tolist() == [[0, 2, 3]]


def test_arrays_of_numpy_are_searched_like_others(unchecked):
    arrays = randn(5, 4, 8).float()
    queries = own.smooth_attribute(arrays, 2)[:2]
    expected = own.ArrayIndex(arrays).search(queries, 3)
    assert_close(
        own.ArrayIndex(arrays.numpy()).search(queries, 3), expected
    )


@pytest.mark.parametrize("b, tau", [(3, 1), (2, 1), (8, 8), (8, -1)])
def test_rows_that_have_no_other_order_are_refused(b, tau):
    with pytest.raises(ValueError, match=f"a step of {tau} among {b} rows"):
        own.other_orders(4, b, tau, rng(0))
    assert own.other_orders(4, b, 0, rng(0)).shape == (4, b)


def test_bad_queries_are_refused(unchecked):
    index = own.ArrayIndex(randn(5, 4, 8).float())
    for queries, options, message in (
        (torch.zeros(1, 4, 7), {}, r"have \(4, 8\)"),
        (torch.full((1, 4, 8), math.nan), {}, "NaN or infinite"),
        (torch.zeros(1, 4, 8), dict(k=6), "expected 1 to 5"),
        (
            torch.zeros(1, 4, 8),
            dict(k=5, exclude=torch.tensor([0])),
            "expected 1 to 4",
        ),
        (
            torch.zeros(2, 4, 8),
            dict(exclude=torch.tensor([0])),
            r"expected \(2,\)",
        ),
        (
            torch.zeros(1, 4, 8),
            dict(exclude=torch.tensor([5])),
            "another data set",
        ),
        (torch.zeros(0, 4, 8), {}, "at least one"),
        (torch.full((1, 4, 8), 1e19), {}, "too large for float32"),
    ):
        with pytest.raises(ValueError, match=message):
            index.search(queries, **options)
    for arrays, message in (
        (torch.zeros(0, 4, 8), "one array or more"),
        (torch.zeros(4, 8), "one array or more"),
        (torch.full((3, 4, 8), math.inf), "NaN or infinite"),
        (torch.full((3, 4, 8), 1e19), "too large for float32"),
    ):
        with pytest.raises(ValueError, match=message):
            own.ArrayIndex(arrays)
    with pytest.raises(ValueError, match="engine"):
        own.ArrayIndex(torch.zeros(3, 4, 8), engine="annoy")


def test_faiss_finds_the_same_and_chooses_exactly():
    pytest.importorskip(
        "faiss", reason="needs faiss: pip install faiss-cpu"
    )
    arrays = torch.randn(4000, 4, 8, generator=rng(0))
    exact = own.ArrayIndex(arrays)
    graph = own.ArrayIndex(arrays, engine="faiss")
    queries, out = exact[torch.arange(300)], torch.arange(300)
    expected = exact.search(queries, 2, out)
    found = graph.search(queries, 2, out)
    same = (found.indices == expected.indices).double().mean()
    assert same > 0.9, same
    equal = found.indices == expected.indices
    assert_close(found.distances[equal], expected.distances[equal])
    few = own.ArrayIndex(arrays[:3], engine="faiss")
    assert torch.equal(
        few.search(queries[:3], 2, out[:3]).indices,
        own.ArrayIndex(arrays[:3]).search(queries[:3], 2, out[:3]).indices,
    )


def test_where_the_graph_finds_too_few_the_exact_search_takes_over(
    monkeypatch,
):
    pytest.importorskip(
        "faiss", reason="needs faiss: pip install faiss-cpu"
    )

    class Lost:  # a graph that finds one array of many
        ntotal = 50

        def search(self, queries, k):
            found = numpy.full((len(queries), k), -1)
            found[:, 0] = 7
            return None, found

    arrays = randn(50, 4, 8)
    exact = own.ArrayIndex(arrays).search(arrays[:5], 2)
    monkeypatch.setattr(own, "_graph", lambda stored: Lost())
    lost = own.ArrayIndex(arrays, engine="faiss")
    found = lost.search(arrays[:5], 2)
    assert torch.equal(found.indices, exact.indices)
    assert_close(found.distances, exact.distances)
    assert (lost.search(arrays[:5]).indices == 7).all()  # enough for one


def test_each_array_leaves_out_its_own_image():
    arrays = randn(30, 4, 8)
    index, smooth = own.ArrayIndex(arrays), own.smooth_attribute(arrays)
    without = torch.tensor([3, -1, 5])
    found = own.translated_neighbours(
        index, smooth[[3, 4, 5]], [0, 2], exclude=without
    )
    assert found.indices.shape == (3, 2, 1)
    for row, (query, out) in enumerate(
        zip((3, 4, 5), (3, -1, 5), strict=True)
    ):
        for column, tau in enumerate((0, 2)):
            wanted = smooth[query].roll(tau, 0)
            far = (smooth - wanted).norm(dim=(1, 2))
            if out >= 0:
                far[out] = math.inf
            least, nearest = far.min(0)
            assert found.indices[row, column, 0] == nearest
            assert_close(found.distances[row, column, 0], least)
    assert found.indices[1, 0, 0] == 4 and found.indices[0, 0, 0] != 3


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda i: own.translated_neighbours(i, randn(1, 4, 8), []),
            "taus are none",
        ),
        (lambda i: own.small_distance(i, images=0), "of 0 images"),
        (lambda i: i.check(shapes10(3)), "is not the data set"),
    ],
    ids=["taus", "images", "digest"],
)
def test_bad_calls_say_what_was_expected(call, message):
    with pytest.raises(ValueError, match=message):
        call(own.ArrayIndex(randn(3, 4, 8)))


def test_properties_want_three_colours_and_three_pixels(unchecked):
    for shape in ((2, 1, 8, 8), (2, 3, 2, 8)):
        with pytest.raises(ValueError, match="three colours and at least"):
            own.image_properties(torch.zeros(shape, dtype=torch.uint8))
    with pytest.raises(
        TypeError, match=r"images are torch\.float32; expec"
    ):
        own.image_properties(torch.zeros(1, 3, 8, 8))


def test_a_probe_that_has_not_converged_warns():
    arrays, labels = randn(50, 2, 3), torch.arange(50) % 3
    with pytest.warns(UserWarning, match="is left after 1 steps"):
        own.linear_probe(arrays, labels, arrays, labels, steps=1)


def test_without_faiss_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"hcnn\[faiss\]"):
        own.ArrayIndex(torch.zeros(3, 4, 8), engine="faiss")


@pytest.mark.skipif(
    sys.platform != "linux", reason="the peak of memory is read from /proc"
)
def test_memory_of_a_search_does_not_grow_with_the_arrays():
    small, large = (fresh_search(n, 4) for n in (100_000, 400_000))
    assert large["megabytes"] > 3.9 * small["megabytes"]
    more, file = (
        large[key] - small[key] for key in ("peak_megabytes", "megabytes")
    )
    assert more < 0.4 * file, (small, large)


def test_a_small_distance_is_a_quantile(unchecked):
    arrays = torch.arange(50.0).square().view(50, 1, 1)
    index = own.ArrayIndex(arrays, 1)
    near = torch.cat([torch.tensor([1.0]), 2 * torch.arange(1.0, 50) - 1])
    for share in (0.0, 0.5, 0.9, 1.0):
        found = own.small_distance(index, share)
        assert_close(found, near.quantile(share).item())
    alone = [
        own.small_distance(index, 1.0, images=1, seed=seed)
        for seed in range(5)
    ]
    assert set(alone) <= set(near.tolist()) and len(set(alone)) > 1
    with pytest.raises(ValueError, match="expected 0 to 1"):
        own.small_distance(index, 1.5)
    with pytest.raises(ValueError, match="no neighbour"):
        own.small_distance(own.ArrayIndex(arrays[:1], 1))


# files of arrays


def test_arrays_are_stored_once_and_by_what_they_depend_on(
    network, shapes, tmp_path
):
    first = own.store_arrays(network, shapes, tmp_path, batch=50)
    time = (first / "about.json").stat().st_mtime_ns
    assert own.store_arrays(network, shapes, tmp_path, batch=7) == first
    assert (first / "about.json").stat().st_mtime_ns == time
    assert not list(tmp_path.glob(".*"))
    x = network.standardize(shapes.images)
    with torch.no_grad():
        expected = own.attribute_arrays(network, x)
    for depth, arrays in expected.items():
        found = own.open_index(first, depth, 1, shapes)
        assert_close(found[torch.arange(len(shapes))], arrays)
    other = network_of(support=(3, 5))
    moved = replace(shapes, labels=shapes.labels.roll(1))
    folders = {
        first,
        own.store_arrays(other, shapes, tmp_path),
        own.store_arrays(network, moved, tmp_path),
        own.store_arrays(network, shapes, tmp_path, position="mean"),
        own.store_arrays(network, shapes, tmp_path, precision="bf16"),
    }
    assert len(folders) == 5
    auto = own.store_arrays(network, shapes, tmp_path, precision="auto")
    assert auto in folders  # by what it is, not by what it was called


def test_another_data_set_is_refused(network, shapes, tmp_path):
    folder = own.store_arrays(network, shapes, tmp_path)
    with pytest.raises(ValueError, match="not the data set"):
        own.open_index(folder, 5, data=shapes10(120, seed=1))
    with pytest.raises(FileNotFoundError, match=r"x-06\.npy"):
        own.open_index(tmp_path, 6)


@pytest.mark.parametrize(
    "damage", ["short", "gone", "about", "garbage", "list"]
)
def test_damaged_arrays_are_computed_anew(
    damage, network, shapes, tmp_path
):
    folder = own.store_arrays(network, shapes, tmp_path)
    path, about = folder / "x-05.npy", folder / "about.json"
    before = path.read_bytes()
    if damage == "short":
        path.write_bytes(before[:-1])
    elif damage == "gone":
        path.unlink()
    elif damage == "about":
        about.unlink()
    else:
        about.write_text("{}" if damage == "garbage" else "[]")
    with pytest.raises((ValueError, OSError), match="store_arrays"):
        own.open_index(folder, 5)
    with pytest.warns(UserWarning, match="computed anew"):
        own.store_arrays(network, shapes, tmp_path)
    assert path.read_bytes() == before
    own.open_index(folder, 5)
    assert [child.name for child in tmp_path.iterdir()] == [folder.name]


def test_a_damaged_folder_that_vanishes_at_the_last_moment_is_no_error(
    network, shapes, tmp_path, monkeypatch
):
    folder = own.store_arrays(network, shapes, tmp_path)
    (folder / "x-05.npy").unlink()
    damage = own._damage

    def vanish(place, about):
        found = damage(place, about)
        if any(place.parent.glob(".*.partial")):  # all is written
            shutil.rmtree(place)
        return found

    monkeypatch.setattr(own, "_damage", vanish)
    with pytest.warns(UserWarning, match="computed anew"):
        own.store_arrays(network, shapes, tmp_path)
    monkeypatch.undo()
    own.open_index(folder, 5)
    assert [child.name for child in tmp_path.iterdir()] == [folder.name]


def test_arrays_of_another_position_are_refused(network, shapes, tmp_path):
    folder = own.store_arrays(network, shapes, tmp_path, position="mean")
    own.open_index(folder, 5, position="mean")
    with pytest.raises(
        ValueError, match=r"position 'mean'; expected 'cent"
    ):
        own.open_index(folder, 5, position="centre")


def test_a_probe_refuses_arrays_of_two_shapes(unchecked):
    labels = torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"of \(2, 3\) and .* of \(2, 4\)"):
        own.linear_probe(
            torch.zeros(2, 2, 3), labels, torch.zeros(2, 2, 4), labels
        )


def test_nothing_half_written_stays(network, shapes, tmp_path):
    def stop(done):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        own.store_arrays(network, shapes, tmp_path, batch=50, tell=stop)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_an_error_and_leaves_nothing(
    network, shapes, tmp_path
):
    network.save(tmp_path / "network.safetensors")
    code = """
import resource, signal, sys
from hcnn.data import shapes10
from hcnn.network import HCNN
from hcnn.translations import store_arrays
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
try:
    store_arrays(HCNN.load(sys.argv[1]), shapes10(120), sys.argv[2])
except OSError as error:
    print(error)
"""
    place = tmp_path / "arrays"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            tmp_path / "network.safetensors",
            place,
        ],
        capture_output=True,
        text=True,
    )
    assert "too large" in done.stdout, done.stderr  # 9 kB are not enough
    assert not list(place.iterdir())


def test_the_first_of_two_writers_stays(network, shapes, tmp_path):
    def meanwhile(done):
        if done == len(shapes):
            other.append(own.store_arrays(network, shapes, tmp_path))
            times.append((other[0] / "about.json").stat().st_mtime_ns)

    other, times = [], []
    folder = own.store_arrays(network, shapes, tmp_path, tell=meanwhile)
    assert other == [folder]
    assert (folder / "about.json").stat().st_mtime_ns == times[0]
    assert [child.name for child in tmp_path.iterdir()] == [folder.name]


def test_a_writer_that_is_late_by_a_moment_yields(
    network, shapes, tmp_path, monkeypatch
):
    """The other comes after the last look for it."""
    real, before = own.Path.chmod, []

    def chmod(path, mode):
        real(path, mode)
        if not before:
            before.append(path)
            before.append(own.store_arrays(network, shapes, tmp_path))

    monkeypatch.setattr(own.Path, "chmod", chmod)
    folder = own.store_arrays(network, shapes, tmp_path)
    assert before[1:] == [folder]
    assert [child.name for child in tmp_path.iterdir()] == [folder.name]


def test_no_image_and_no_batch_are_refused(network, shapes, tmp_path):
    none = dict(images=shapes.images[:0], labels=shapes.labels[:0])
    empty = replace(shapes, **none, factors=None)
    for data, batch in ((empty, 10), (shapes, 0)):
        with pytest.raises(ValueError, match="at least one of both"):
            own.store_arrays(network, data, tmp_path, batch=batch)


def test_images_of_another_size_have_arrays(network):
    large = torch.randint(
        256, (3, 3, 48, 40), dtype=torch.uint8, generator=rng(0)
    )
    with torch.no_grad():
        found = own.attribute_arrays(network, network.standardize(large))
    assert all(a.shape[:2] == (3, 4) for a in found.values())


# controls and statistics


@pytest.mark.parametrize("b", [4, 5, 8])
def test_a_shuffle_is_no_translation_and_loses_nothing(b, unchecked):
    arrays = randn(300, b, 5)
    for tau in range(1, b):
        found = own.moved_arrays(arrays, tau, "shuffled", 1, seed=tau)
        assert_close(found.sort(1).values, arrays.sort(1).values)
        rows = (found[:, :, None] == arrays[:, None]).all(-1)
        source = rows.double().argmax(2)  # where each row came from
        steps = (torch.arange(b) - source) % b
        assert not (steps == steps[:, :1]).all(1).any()
    for how, shape in (
        ("shuffled", (2, 3, 3)),
        ("step", (1, 4, 3)),
        ("phases", (2, 4, 3)),
    ):
        with pytest.raises(ValueError, match="expected two images"):
            own.moved_arrays(randn(*shape), 1, how)
    with pytest.raises(ValueError, match="translated"):
        own.moved_arrays(arrays, 1, "sideways")


def test_a_step_is_that_of_another_image(unchecked):
    """Each image gives its step to one other, whose class is any."""
    n, arrays = 500, randn(500, 4, 6)
    plain = own.smooth_attribute(arrays, 2)
    steps = own.translate_attribute(plain, 1) - plain
    found = own.moved_arrays(arrays, 1, "step", seed=3) - plain
    assert_close(found.norm(dim=(1, 2)), steps.norm(dim=(1, 2)))
    alike = F.normalize(found.flatten(1)) @ F.normalize(steps.flatten(1)).T
    whose = alike.argmax(1)
    assert_close(alike.max(1).values, torch.ones(n, dtype=torch.float64))
    assert whose.unique().numel() == n and (whose != torch.arange(n)).all()
    assert len(((whose - torch.arange(n)) % 10).unique()) == 10


@pytest.mark.parametrize("b", [5, 6, 8])
def test_phases_keep_the_spectrum_and_undo_nothing_else(b):
    arrays = randn(50, b, 5)
    for smooth in (1, 2):
        plain = own.smooth_attribute(arrays, smooth)
        found = own.moved_arrays(arrays, 1, "phases", smooth)
        assert_close(
            *(torch.fft.rfft(v, dim=1).abs() for v in (found, plain))
        )
        assert (found - plain).norm(dim=(1, 2)).min() > 0.01


def test_a_probe_finds_the_optimum_and_ignores_scale(unchecked):
    arrays, labels = randn(300, 2, 3), torch.arange(300) % 3
    arrays[torch.arange(300), 0, labels] += 2
    test, wanted = randn(200, 2, 3, seed=1), torch.arange(200) % 3
    test[torch.arange(200), 0, wanted] += 2
    found = own.linear_probe(arrays, labels, test, wanted)
    scaled = own.linear_probe(
        1e3 * arrays + 7, labels, 1e3 * test + 7, wanted
    )
    assert found.accuracy == scaled.accuracy and 0.7 < found.accuracy < 1
    assert 0 < found.gradient < 1e-3
    constant = arrays.clone()
    constant[:, 1] = 5
    own.linear_probe(constant, labels, test, wanted)
    loose, tight = (
        own.linear_probe(arrays, labels, arrays, labels, decay=decay)
        for decay in (1e-4, 1e4)
    )
    assert tight.accuracy < loose.accuracy
    with pytest.raises(ValueError, match="one label for each"):
        own.linear_probe(arrays, labels[:-1], test, wanted)


def test_information_is_that_of_the_formula():
    first = torch.tensor([[0, 0, 1, 1, 2, 2]])
    assert own.mutual_information(first, first) == pytest.approx(
        math.log2(3)
    )
    assert own.mutual_information(first, 0 * first) == 0
    half = torch.tensor([[0, 0, 1, 1, 0, 1]])
    assert own.mutual_information(first, half) == pytest.approx(2 / 3)
    assert own.mutual_information(half, first) == pytest.approx(2 / 3)


def test_a_permutation_stays_within_its_group():
    groups = torch.arange(4)[:, None].expand(4, 6)
    found = own.permutation_test(groups, groups, 9)
    assert found.bits == pytest.approx(2) and found.chance == found.bits
    assert found.p == 1  # within a group nothing depends
    found = own.permutation_test(
        groups.reshape(1, -1), groups.reshape(1, -1), 99
    )
    assert found.p == 0.01 and found.chance < 1


def test_labels_are_of_equal_groups_and_keep_ties():
    values = torch.tensor([0.0] * 50 + [1.0] * 50)
    assert own.quantile_labels(values).unique().numel() == 2
    many = own.quantile_labels(randn(8000))
    assert many.bincount().tolist() == [1000] * 8


def test_properties_of_drawn_shapes_follow_their_factors():
    data = shapes10(40)
    which = torch.arange(40)
    quiet = redraw(data, which, noise=[0.0] * 40)
    turned = redraw(
        data,
        which,
        noise=[0.0] * 40,
        hue=((data.factors["hue"] + 0.5) % 1).tolist(),
        background=((data.factors["background"] + 0.5) % 1).tolist(),
    )
    before, after = map(own.image_properties, (quiet, turned))
    apart = own.property_change(before["hue"], after["hue"], 1.0)
    assert (apart.abs() > 0.4).all()  # half a turn of all colours
    bright = own.image_properties((quiet // 2).contiguous())
    assert (bright["brightness"] < before["brightness"]).all()
    assert (bright["contrast"] < before["contrast"]).all()
    pure = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    for channel in range(3):
        pure[channel, channel] = 200
    pure[3, :, :16] = 200
    found = own.image_properties(pure)
    weights = 200 / 255 * torch.tensor([0.299, 0.587, 0.114, 0.5])
    assert_close(found["brightness"].float(), weights, rtol=1e-3, atol=1e-3)
    assert found["contrast"][3].item() == pytest.approx(100 / 255, rel=1e-3)


def test_an_untrained_twin_leaves_the_network_alone(network, shapes):
    before = own.network_digest(network)
    state = torch.random.get_rng_state()
    twin = own.untrained_twin(network, shapes.images)
    second = own.untrained_twin(network, shapes.images, seed=1)
    assert own.network_digest(second) != own.network_digest(twin)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert own.network_digest(network) == before
    assert own.network_digest(twin) != before
    assert twin.config == network.config and not twin.training
    again = own.untrained_twin(network, shapes.images)
    assert own.network_digest(again) == own.network_digest(twin)
    fresh = HCNN(network.config, **network.about)
    running = [
        (name, given, fresh.state_dict()[name])
        for name, given in twin.state_dict().items()
        if name.rpartition(".")[2] in ("running_mean", "running_var")
    ]
    assert len(running) >= 20  # of every layer
    for name, given, begun in running:
        assert (given - begun).abs().max() > 1e-3, name


def test_an_index_knows_its_network_and_zero_padding_is_told(
    network, shapes, tmp_path
):
    folder = own.store_arrays(network, shapes, tmp_path)
    own.open_index(folder, 7, network=network)
    twin = own.untrained_twin(network, shapes.images)
    with pytest.raises(ValueError, match="of another network"):
        own.open_index(folder, 7, network=twin)
    zero = load_pretrained("hcnn8-shapes10")
    for _ in range(2):  # where they are there already, too
        with pytest.warns(UserWarning, match="store_arrays: .* pads with"):
            own.store_arrays(zero, shapes.subset(5), tmp_path)


def test_a_study_asks_what_it_says_of_the_properties(
    network, tmp_path, monkeypatch
):
    """Both columns of each question, from neighbours that are known."""
    from benchmarks import translations as study

    train, test = shapes10(60, 0), shapes10(40, 0, "test")
    asked = study.Study(network, train, test, 40, tmp_path)
    near = torch.randint(60, (40, 4), generator=rng(0))
    monkeypatch.setattr(asked, "moved", lambda *_: (None, None, near))
    columns = []

    def keep(first, second, repeats):
        columns.append((first, second))
        return own.Dependence(0.0, 0.0, 1.0)

    monkeypatch.setattr(study, "permutation_test", keep)
    plain, changed = asked.by_hand(None, 0), []
    found = asked.dependence(1)
    rows = zip(found["dependence"], columns, strict=True)
    asks = {
        (row["property"], row["question"]): two
        for row, two in rows
        if row["depth"] == 5
    }

    few = int(test.labels.bincount().min())
    order = torch.stack(
        [(test.labels == k).nonzero()[:few, 0] for k in range(10)]
    )
    one = near[torch.arange(40), 1 + torch.arange(40) % 3]
    there, here = train.factors, test.factors
    period = dict(hue=1, background=1, orientation=360)
    for name in ("hue", "orientation", "w"):
        groups = own.quantile_labels(here[name])[order]
        for question, images in (("nearest", near[:, 0]), ("kept", one)):
            first, second = asks[name, question]
            assert torch.equal(first, groups)  # rows are classes
            after = own.quantile_labels(there[name][images])[order]
            assert torch.equal(second, after)
        change = there[name][near[:, 1:]] - here[name][:, None]
        if name in period:
            half = period[name] / 2
            change = (change + half) % period[name] - half
        change = own.quantile_labels(change)
        taus, second = asks[name, "changed"]
        assert torch.equal(second, change)
        assert taus.tolist() == [[0, 1, 2]] * 40
        taus, second = asks[name, "turned"]
        assert torch.equal(second, change[:, [0, 2]])
        assert taus.tolist() == [[0, 2]] * 40

    for amount in own.AMOUNTS["w"]:
        drawn = redraw(test, torch.arange(40), w=here["w"] + amount)
        standard = network.standardize(drawn)
        with torch.no_grad():
            changed.append(own.attribute_array(network, standard, 5))
        mine = asked.by_hand("w", amount)[5]
        assert (mine - changed[-1]).abs().max() < 1e-5
        assert (mine - plain[5]).abs().max() > 1e-2
    pairs = [own.best_translations(plain[5], image) for image in changed]
    amounts, taus = asks["w", "by hand"]
    assert amounts.tolist() == [[0, 1, 2, 3, 4, 5]] * 40
    agree = (taus == torch.stack([best for best, _ in pairs], 1)).double()
    assert agree.mean() > 0.99  # rounding may decide between equal ones
    kept = torch.tensor(found["explained"]["w"][5])
    assert (
        kept - torch.stack([own for _, own in pairs])
    ).abs().max() < 1e-4


@pytest.mark.parametrize("only", [False, True])
@pytest.mark.parametrize("accuracy", [0.79, 0.81])
def test_a_study_of_photographs_keeps_the_pictures_of_the_paper(
    tmp_path, monkeypatch, accuracy, only
):
    """K = 16, no known factors; of a poor network only where it is asked.

    The network is named by its folder, and no query is of one class.
    """
    from benchmarks import translations as study
    from hcnn import results

    name = "hcnn-cifar10-periodic"
    names = load_pretrained("hcnn8-shapes10").class_names
    names = tuple(dict.fromkeys(("bird", "automobile", "horse", *names)))

    def photographs(n, split):
        data = shapes10(n, 0, split)
        images = data.images[..., ::4, ::4].contiguous()
        labels = data.labels
        if split == "test":
            labels = labels.where(labels != 7, 8)
        return replace(
            data,
            images=images,
            labels=labels,
            factors=None,
            class_names=names[:10],
        )

    parts = photographs(40, "train"), photographs(30, "test")
    config = preset("hcnn-cifar10-periodic", Q=3)
    network = HCNN(
        config,
        mean=parts[0].mean,
        std=parts[0].std,
        class_names=names[:10],
    ).eval()
    monkeypatch.setattr(study.runs, "datasets", lambda data: parts)
    monkeypatch.setattr(study.runs, "find_network", lambda name: network)
    monkeypatch.setattr(
        study.runs, "network_to_search", lambda *own: (own[0], "cifar10")
    )
    monkeypatch.setattr(
        study, "evaluate", lambda *_: SimpleNamespace(accuracy=accuracy)
    )
    monkeypatch.setattr(study.Study, "probes", lambda self: {})
    study.main(
        [
            f"runs/{name}",
            *("--queries", "20", "--repeats", "9"),
            *("--results", str(tmp_path), "--arrays", str(tmp_path / "a")),
            *(["--pictures"] * only),
        ]
    )
    (entry,) = results.entries(root=tmp_path)
    assert entry.name == f"{'pictures' if only else 'translate'}-{name}"
    assert entry.data["accuracy"] == accuracy
    assert ("claim" in entry.data) != only
    if not only:
        assert entry.data["translations"] == 7
        claim = entry.data["claim"]["test"]
        assert set(claim) > {"phases", "shuffled"}
        assert len(claim["phases"]["3"]["counts"]) == 8
        for rows in entry.data["moves"].values():
            assert len(rows["phases"]["moved"]) == 7
        properties = {row["property"] for row in entry.data["dependence"]}
        assert properties == {
            "class", "brightness", "contrast", "hue", "edges",
        }  # fmt: skip
    path = entry.path / "pictures.safetensors"
    assert path.exists() == (only or accuracy >= 0.8)
    if path.exists():
        kept = load_file(path)
        assert {name: tuple(own.shape) for name, own in kept.items()} == {
            "pair.images": (2, 8, 3, 8, 8),
            "pair.arrays": (2, 8, 8, 10),
            "pair.wanted": (2, 8, 8, 10),
            "pair.distances": (2, 8),
            "depths.inputs": (2, 3, 8, 8),
            "depths.images": (2, 5, 7, 3, 8, 8),
            "depths.same": (2, 5, 7),
            "depths.distances": (2, 5, 7),
            "depths.depths": (5,),
        }
        assert (kept["depths.distances"] > 0).all()
        train, test = parts

        def arrays_of(images, depth):
            with torch.no_grad():
                x = network.standardize(images)
                return own.attribute_array(network, x, depth)

        def expect_nearest(images, wanted, depth):
            """Are these the images of training nearest to the arrays?"""
            known = arrays_of(train.images, depth)
            far = (known - wanted[:, None]).norm(dim=(2, 3))
            far, apart = far.min(1)
            assert torch.equal(images, train.images[apart])
            pairs = (known - known[:, None]).norm(dim=(2, 3))
            pairs = pairs.fill_diagonal_(math.inf).min(1).values
            small = pairs.double().quantile(0.9)
            return apart, (far.double() / small).float()

        labels = [names.index(word) for word in study.SHOWN[name]]
        first = [(test.labels == label).nonzero()[:, 0] for label in labels]
        for image, here in enumerate(first[0][:2]):
            pictures, below, wanted, distances = (
                kept[f"pair.{k}"][image]
                for k in ("images", "arrays", "wanted", "distances")
            )
            assert torch.equal(pictures[0], test.images[here])
            (array,) = arrays_of(test.images[here, None], 11)
            expected = [
                own.translate_attribute(array[None], tau)[0]
                for tau in range(8)
            ]
            assert_close(wanted, torch.stack(expected))
            assert_close(below[0], array)
            apart, far = expect_nearest(pictures[1:], wanted[1:], 11)
            assert_close(distances[1:].float(), far, rtol=1e-3, atol=1e-4)
            assert_close(below[1:], arrays_of(train.images, 11)[apart])
        for image, here in enumerate(rows[0] for rows in first[1:]):
            assert torch.equal(
                kept["depths.inputs"][image], test.images[here]
            )
            for row, depth in enumerate(study.PICTURED):
                array = arrays_of(test.images[here, None], depth)
                wanted = [
                    own.translate_attribute(array, tau)[0]
                    for tau in range(1, 8)
                ]
                apart, far = expect_nearest(
                    kept["depths.images"][image, row],
                    torch.stack(wanted),
                    depth,
                )
                assert_close(
                    kept["depths.distances"][image, row].float(),
                    far,
                    rtol=1e-3,
                    atol=1e-4,
                )
                assert torch.equal(
                    kept["depths.same"][image, row],
                    train.labels[apart] == test.labels[here],
                )


def test_the_error_of_a_share_counts_a_query_once():
    from benchmarks.translations import share_error

    one = torch.tensor([[True], [False], [True], [False]])
    every = torch.ones(4, 1, dtype=torch.bool)
    assert share_error(one, every) == pytest.approx(0.25 * (4 / 3) ** 0.5)
    again = one.expand(4, 9), every.expand(4, 9)
    assert share_error(*again) == pytest.approx(share_error(one, every))
    assert share_error(one[:1], every[:1]) == 0.5  # of one query
    none = ~every  # of nothing
    assert share_error(every, every) == share_error(none, none) == 0


def test_what_a_probe_reads(tmp_path):
    """The stored arrays, those of all positions, and whole layers."""
    from benchmarks.translations import Study

    parts = shapes10(60), shapes10(20, 0, "test")
    network = load_pretrained("hcnn8-shapes10-periodic")
    asked = Study(network, *parts, 20, tmp_path)
    for which, split in (("trained", "train"), ("untrained", "test")):
        reads = {
            what: asked.read(which, split, what)
            for what in (*own.POSITIONS, "layer")
        }
        data = parts[split == "test"]
        x = network.standardize(data.images)
        for position in own.POSITIONS:
            arrays = own.attribute_arrays(
                asked.networks[which], x, position=position
            )
            for depth in own.DEPTHS:
                assert_close(reads[position](depth), arrays[depth])
        for depth in own.DEPTHS:
            layer = reads["layer"](depth).unflatten(1, (-1, 4))
            assert layer.shape[1] == 2
            assert_close(layer.sum(1), arrays[depth])


@pytest.mark.parametrize(
    "name", ["hcnn8-shapes10-periodic", "hcnn-cifar10-periodic"]
)
def test_what_a_study_finds_is_brute_force(name, tmp_path, monkeypatch):
    """Every way of moving, the mean alone, what is near, and probes."""
    from benchmarks import translations as study

    def small(n, split):
        data = shapes10(n, 0, split)
        images = data.images[..., ::4, ::4].contiguous()
        return replace(data, images=images, factors=None)

    train, test = small(60, "train"), small(25, "test")
    network = network_of(name).float()
    monkeypatch.setattr(study, "DEPTHS", (3, 7))
    asked = study.Study(network, train, test, 20, tmp_path)
    claim, near = asked.claim(), asked.near()

    def raw(images, depth, which="trained"):
        net = asked.networks[which]
        with torch.no_grad():
            x = net.standardize(images)
            return own.attribute_arrays(net, x, [depth])[depth].double()

    def nearest(queries, known, split):
        far = (known - queries[:, None]).norm(dim=(2, 3))
        if split == "train":
            far[torch.arange(20), torch.arange(20)] = math.inf
        return far.min(1)

    for split, data in (("train", train), ("test", test)):
        for depth in (3, 7):
            plain = {
                which: (
                    raw(data.images[:20], depth, which),
                    own.smooth_attribute(raw(train.images, depth, which)),
                )
                for which in ("trained", "untrained")
            }
            labels, same = data.labels[:20], {}
            b = plain["trained"][0].shape[1]
            taus = range(1, b)
            for how in (*asked.moves, "untrained"):
                which = how if how == "untrained" else "trained"
                move = "translated" if how == "untrained" else how
                arrays, known = plain[which]
                moved = [
                    own.moved_arrays(arrays.float(), tau, move, seed=tau)
                    for tau in taus
                ]
                found = [
                    nearest(own.double(), known, split) for own in moved
                ]
                same[how] = [
                    int((train.labels[which] == labels).sum())
                    for _, which in found
                ]
                counts = claim[split][how][depth]["counts"][1:]
                assert [k for k, _ in counts] == same[how], how
                if split == "train" or how == "untrained":
                    continue
                kept = near["moves"][depth][how]
                pairs = (known - known[:, None]).norm(dim=(2, 3))
                pairs = pairs.fill_diagonal_(math.inf).min(1).values
                small_ones = {p: pairs.quantile(p) for p in study.SHARES}
                far = torch.stack([own for own, _ in found], 1)
                went = torch.stack(moved, 1).double()
                went = went - own.smooth_attribute(arrays)[:, None]
                went = went.norm(dim=(2, 3))
                for values, told in ((went, "moved"), (far, "found")):
                    middle = values.median(0).values / small_ones[0.9]
                    assert kept[told] == pytest.approx(
                        middle.tolist(), rel=1e-3
                    )
                _, first = nearest(
                    own.smooth_attribute(arrays), known, split
                )
                share = [
                    (which == first).double().mean().item()
                    for _, which in found
                ]
                assert kept["same_image"] == pytest.approx(share)
                for p, theta in small_ones.items():
                    right, close, every, _ = near["small"][str(p)][how][
                        depth
                    ]
                    inside = far <= theta
                    hits = torch.stack(
                        [
                            train.labels[which] == labels
                            for _, which in found
                        ],
                        1,
                    )
                    assert close == int(inside.sum())
                    assert right == int((inside & hits).sum())
                    assert every == inside.numel()
            if b > 4:  # the ways are not one and the same
                assert len({tuple(counts) for counts in same.values()}) > 3
            arrays, known = plain["trained"]
            alone, known = arrays.mean(1), raw(train.images, depth).mean(1)
            alone, known = (v[:, None] for v in (alone, known))
            _, which = nearest(alone, known, split)
            (count,) = claim[split]["mean"][depth]["counts"]
            assert count == [int((train.labels[which] == labels).sum()), 20]

    probes = asked.probes()
    for which in ("trained", "untrained"):
        for place, depth in enumerate((3, 7)):
            known, queries = (
                raw(data.images, depth, which) for data in (train, test)
            )
            near = (known - queries[:, None]).norm(dim=(2, 3)).argmin(1)
            right = train.labels[near] == test.labels
            rows = probes["centre"][which]
            assert rows["nearest neighbour"][place] == pytest.approx(
                right.double().mean().item()
            )
            probe = own.linear_probe(
                known, train.labels, queries, test.labels
            )
            assert abs(rows["linear probe"][place] - probe.accuracy) < 0.05


@pytest.mark.parametrize("split", ["train", "test"])
def test_rows_in_their_own_order_are_translated(
    split, tmp_path, monkeypatch
):
    from benchmarks import translations as study

    parts = shapes10(60), shapes10(20, 0, "test")
    network = load_pretrained("hcnn8-shapes10-periodic")
    asked = study.Study(network, *parts, 20, tmp_path)
    moved, distances, found = asked.reordered(split, 7)
    assert moved.shape == distances.shape == found.shape == (20, 4)
    again = asked.moved("trained", split, 7, "translated")
    assert (moved[:, 0] == 0).all() and not torch.equal(found, again[2])
    monkeypatch.setattr(
        study, "other_orders", lambda n, b, *_: torch.arange(b)[None]
    )
    moved, distances, found = asked.reordered(split, 7)
    queries, expected, indices = again
    index = own.open_index(asked.folder("trained", "train"), 7)
    scale = own.small_distance(index)
    far = (queries - queries[:, :1]).norm(dim=(2, 3))
    assert_close(moved, far / scale, check_dtype=False)
    assert_close(distances, expected / scale)
    assert torch.equal(found, indices)


def test_a_study_is_of_the_network_that_ships():
    """Else a page's cells and its figures would be of two networks."""
    studied = 0
    for name in pretrained():
        for entry in entries(f"translate-{name}")[-1:]:
            known = own.network_digest(load_pretrained(name))
            assert entry.data["network_sha256"] == known, name
            studied += 1
    assert studied


def test_a_study_measures_all_that_the_chapter_reads(tmp_path, monkeypatch):
    from benchmarks import translations as study
    from hcnn import results

    parts = shapes10(300), shapes10(80, 0, "test")
    monkeypatch.setattr(study.runs, "datasets", lambda data: parts)

    study.main(
        [
            "hcnn8-shapes10-periodic",
            *("--queries", "60", "--repeats", "9"),
            *("--results", str(tmp_path), "--arrays", str(tmp_path / "a")),
        ]
    )
    found = results.newest("translate-hcnn8-shapes10-periodic", tmp_path)
    assert found["translations"] == 3 and found["images"] == 300
    for split in ("train", "test"):
        claim = found["claim"][split]
        controls = {"untrained", "mean", "nothing", "reordered"}
        assert set(claim) == {*own.MOVES, *controls} - {"phases"}
        for how, rows in claim.items():
            assert set(rows) == {str(depth) for depth in own.DEPTHS}
            for row in rows.values():
                counts = row["counts"]
                assert len(counts) == (
                    1 if how in ("mean", "nothing") else 4
                )
                assert all(0 <= k <= n == 60 for k, n in counts)
                later = counts[1:] or counts
                assert row["mean"] == pytest.approx(
                    sum(k for k, _ in later) / 60 / len(later)
                )
        # the query itself is no answer, or its class were always found
        assert claim["translated"]["3"]["counts"][0][0] < 50
        for depth, ours in claim["translated"].items():
            for how in claim:
                row = claim[how][depth]
                assert row["difference"] == pytest.approx(
                    ours["mean"] - row["mean"]
                )
        deep = {how: claim[how]["11"]["counts"][0][0] for how in claim}
        assert deep["translated"] > deep["untrained"] + 10
        assert (
            deep["translated"]
            == deep["step"]
            == deep["shuffled"]
            == deep["nothing"]
        )
        for ours in claim["translated"].values():
            one, two, three = (k / 60 for k, _ in ours["counts"][1:])
            assert ours["odd"][0] == pytest.approx((one + three) / 2)
            assert ours["even"][0] == pytest.approx(two)
            spread = (60 / 59 * two * (1 - two) / 60) ** 0.5
            assert ours["even"][1] == pytest.approx(spread)
        for depth, ours in claim["translated"].items():
            other = claim["shuffled"][depth]
            for first in ("odd", "even"):
                for second in ("odd", "even"):
                    middle, error = other["apart"][first][second]
                    assert middle == pytest.approx(
                        ours[first][0] - other[second][0]
                    )
                    assert 0 <= error < 0.1
                assert ours["apart"][first][first] == [0, 0]
            assert claim["mean"][depth]["apart"]["odd"] == {}
    for ways in found["small"].values():
        for how, rows in ways.items():
            for same, close, every, error in rows.values():
                assert abs(same) <= close <= every
                assert every == (60 if how == "nothing" else 180)
                assert error > 0 or not 0 < same < close
                assert same >= 0 or how == "nothing apart"
        for depth, (more, *_) in ways["nothing apart"].items():
            both = (ways[k][depth] for k in ("nothing there", "translated"))
            assert more == operator.sub(*(own[0] for own in both))
        plainly, ours = ways["nothing there"], ways["translated"]
        for depth, (_, close, _, _) in plainly.items():
            assert close == ours[depth][1]
        assert plainly != ours  # it is of what is found at τ = 0
    for rows in found["moves"].values():
        assert set(rows) == {*own.MOVES, "reordered"} - {"phases"}
        for how, kept in rows.items():
            assert len(kept["moved"]) == len(kept["found"]) == 3
            assert all(0 < far for far in kept["moved"])
            if how != "reordered":
                assert all(0 <= share <= 1 for share in kept["same_image"])
        # an even translation goes farther, a step as far as its own
        one, two, three = rows["translated"]["moved"]
        assert one == pytest.approx(three) and two > 1.3 * one
    questions = {row["question"] for row in found["dependence"]}
    assert questions == {"nearest", "kept", "changed", "turned", "by hand"}
    properties = {row["property"] for row in found["dependence"]}
    assert properties == {*FACTORS, "class"}
    assert all(0.1 <= row["p"] <= 1 for row in found["dependence"])
    assert set(found["explained"]) == set(own.AMOUNTS)
    for name, amounts in own.AMOUNTS.items():
        for shares in found["explained"][name].values():
            assert len(shares) == len(amounts)
            for first, *others in shares:
                assert first == 0 and len(others) == 3 and max(others) <= 1
    assert set(found["probes"]) == {"centre", "mean", "layer"}
    for read in ("mean", "layer"):
        deep = found["probes"][read]["trained"]["linear probe"]
        assert len(deep) == 9 and deep[-1] > deep[0]


# on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("offset", [0, 1000])
def test_search_on_a_gpu_is_brute_force_in_float64(offset, tmp_path):
    arrays = (randn(300, 4, 5) + offset).float()
    numpy.save(tmp_path / "a.npy", arrays.numpy())
    exclude = torch.arange(40)
    queries = own.smooth_attribute(arrays, 2)[:40]
    expected = brute(arrays, queries, 3, 2, exclude)
    for where in (arrays, arrays.cuda(), tmp_path / "a.npy"):
        index = own.ArrayIndex(where, 2, device="cuda")
        found = index.search(queries.cuda(), 3, exclude)
        assert_close(found.distances, expected[0], rtol=1e-9, atol=1e-12)
        assert torch.equal(found.indices, expected[1])
        assert_close(index[exclude].cpu(), queries)


@pytest.mark.gpu
def test_arrays_from_a_gpu_are_those_of_the_cpu(network, shapes, tmp_path):
    here, there = (
        own.store_arrays(network, shapes, tmp_path / name, device=name)
        for name in ("cpu", "cuda")
    )
    assert network.W1.weight.device.type == "cpu"
    for depth in own.DEPTHS:
        pair = [numpy.load(f / own._file(depth)) for f in (here, there)]
        assert_close(pair[1], pair[0], rtol=1e-4, atol=1e-4)
    index = own.open_index(there, 7, data=shapes, device="cuda")
    itself = torch.arange(len(shapes))
    found = own.translated_neighbours(index, index[itself], [0])
    assert torch.equal(found.indices.reshape(-1), itself)


def test_information_of_labels_of_few_bits_is_whole():
    labels = torch.arange(100).repeat(3).byte()
    found = own.mutual_information(labels, labels)
    assert found == pytest.approx(math.log2(100))
