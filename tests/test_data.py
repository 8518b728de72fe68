"""Data sets, drawn shapes, augmentation, standardization."""

import hashlib
import http.client
import io
import math
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy
import pytest
import torch
from PIL import Image, ImageOps

from hcnn import data as data_module
from hcnn.data import (
    FACTORS,
    SHAPES,
    Augment,
    Dataset,
    draw_shapes,
    load_dataset,
    redraw,
    shapes10,
    signed_distance,
    standardize,
)
from hcnn.groups import translate
from hcnn.runtime import rng
from hcnn.vision import torchvision

PADDINGS = ("zero", "periodic", "reflect")


@pytest.fixture(scope="module")
def shapes():
    return shapes10(600)


@pytest.fixture(scope="module")
def many():
    return shapes10(5_000)


@pytest.fixture
def no_data(monkeypatch):
    monkeypatch.delenv("HCNN_DATA", raising=False)
    data_module._announce_shapes.cache_clear()  # a new process, so to say


def random_images(*shape, seed=0):
    return torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=rng(seed)
    )


def small(**changes):
    images = random_images(6, 3, 5, 7)
    fields = dict(
        images=images,
        labels=torch.arange(6) % 3,
        class_names=("a", "b", "c"),
        name="small",
        split="train",
    )
    return Dataset(**fields | changes)


# the form of a data set


def test_mean_and_std_are_those_of_the_values():
    data = small()
    values = data.images.double() / 255
    expected = values.mean((0, 2, 3)), values.std((0, 2, 3), correction=0)
    torch.testing.assert_close(data.mean.double(), expected[0])
    torch.testing.assert_close(data.std.double(), expected[1])
    assert data.mean is data.mean  # computed once


def test_a_constant_channel_has_deviation_1():
    images = random_images(4, 3, 5, 5)
    images[:, 1] = 77
    data = small(images=images, labels=torch.zeros(4, dtype=torch.int64))
    assert data.std[1] == 1 and (data.std[[0, 2]] < 0.5).all()
    numbers = standardize(data.images, data.mean, data.std)
    assert numbers[:, 1].abs().max() < 1e-6


def test_a_subset_takes_the_first_images_or_those_named(shapes):
    first, some = shapes.subset(7), shapes.subset([3, 400, 3])
    assert len(first) == 7 and len(some) == 3
    assert torch.equal(first.images, shapes.images[:7])
    assert torch.equal(some.images, shapes.images[[3, 400, 3]])
    assert torch.equal(some.labels, shapes.labels[[3, 400, 3]])
    assert torch.equal(redraw(some, 1), shapes.images[400:401])
    mask = shapes.labels == 2
    assert (shapes.subset(mask).labels == 2).all()
    assert some.class_names == SHAPES and some.name == "shapes10"


@pytest.mark.parametrize("kind", [torch.uint8, torch.int16])
def test_small_integers_are_indices_and_no_mask(shapes, kind):
    few = shapes.subset(3)
    found = few.subset(torch.tensor([0, 1, 2], dtype=kind))
    assert torch.equal(found.images, few.images)


def test_data_are_on_the_cpu_whatever_the_default_device(shapes):
    with torch.device("meta"):
        drawn = shapes10(10)
        mean = drawn.mean
        some = drawn.subset([1, 0])
    assert torch.equal(some.images, shapes.images[[1, 0]])
    assert torch.equal(mean, shapes10(10).mean)


def test_a_data_set_moves_as_a_whole(shapes):
    moved = shapes.subset(2).to("meta")
    columns = [moved.images, moved.labels, *moved.factors.values()]
    assert {column.device.type for column in columns} == {"meta"}
    assert shapes.images.device.type == "cpu"


def test_a_data_set_describes_itself_in_one_line(shapes):
    assert repr(shapes) == (
        "Dataset(shapes10, train: 600 images of 32 x 32, 10 classes, on cpu)"
    )


@pytest.mark.parametrize(
    "change, error, words",
    [
        (
            dict(labels=torch.zeros(3, dtype=torch.long)),
            ValueError,
            "2 images and 3 values of labels; expected one for each",
        ),
        (
            dict(factors=dict(key=torch.zeros(1))),
            ValueError,
            "2 images and 1 values of key",
        ),
        (
            dict(images=torch.zeros(2, 3, 4, 4)),
            TypeError,
            "images are torch.float32; expected bytes",
        ),
        (
            dict(images=torch.zeros(2, 4, 4, dtype=torch.uint8)),
            ValueError,
            "images has 3 axes",
        ),
    ],
)
def test_a_data_set_refuses_what_does_not_fit(
    change, error, words, no_shape_checks
):
    fitting = dict(
        images=torch.zeros(2, 3, 4, 4, dtype=torch.uint8),
        labels=torch.zeros(2, dtype=torch.long),
    )
    names = dict(class_names=("a", "b"), name="x", split="test")
    Dataset(**fitting, **names)
    with pytest.raises(error, match=re.escape(words)):
        Dataset(**fitting | change, **names)


def test_a_data_set_cannot_be_changed_in_place(shapes):
    with pytest.raises(AttributeError):
        shapes.labels = None


@pytest.mark.parametrize("which", [0, -1, 601])
def test_a_subset_larger_than_the_set_is_refused(shapes, which):
    with pytest.raises(
        ValueError,
        match=rf"^subset: which is {which}; "
        r"expected 1 to 600, .* list of indices$",
    ):
        shapes.subset(which)


@pytest.mark.parametrize("n", [numpy.int64(5), numpy.uint8(5)])
def test_an_integer_of_numpy_counts_like_any_other(
    shapes, n, no_shape_checks
):
    assert torch.equal(shapes.subset(n).images, shapes.images[:5])


def test_a_subset_of_one_index_is_a_batch_of_one(shapes):
    for index in (7, -593):
        one = shapes.subset(torch.tensor(index))
        assert torch.equal(one.images, shapes.images[7:8])
        assert one.labels.tolist() == [7]
        assert one.factors["key"].shape == (1,)


@pytest.mark.parametrize(
    "which, fault",
    [
        ([3, 600], "index 600 is out of bounds"),
        ([-601], "index -601 is out of bounds"),
        (torch.tensor(600), "index 600 is out of bounds"),
        (torch.tensor([True, False]), "mask"),
        ([0.5], "tensors used as indices must be"),
    ],
)
def test_indices_of_no_image_are_refused(
    shapes, which, fault, no_shape_checks
):
    with pytest.raises(
        ValueError,
        match=rf"^subset: .*{fault}.*; expected indices of 600 images, -600 to 599, or a mask of all of them$",
    ):
        shapes.subset(which)


@pytest.mark.parametrize("channels", [1, 4])
def test_images_may_have_any_number_of_channels(channels):
    data = small(images=random_images(6, channels, 5, 7))
    assert data.mean.shape == data.std.shape == (channels,)
    numbers = standardize(data.images, data.mean, data.std)
    assert numbers.shape == data.images.shape


# drawn shapes


def test_shapes_have_the_layout_of_every_data_set(shapes):
    assert shapes.images.shape == (600, 3, 32, 32)
    assert shapes.images.dtype == torch.uint8
    assert shapes.labels.dtype == torch.int64
    assert (shapes.labels.bincount() == 60).all()
    assert shapes.class_names == SHAPES and len(set(SHAPES)) == 10
    assert set(shapes.factors) == {*FACTORS, "key"}
    assert all(len(column) == 600 for column in shapes.factors.values())


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("seed", [0, 1, 2**30 - 1])
def test_an_image_depends_on_seed_split_and_number_only(seed, split):
    long = shapes10(501, seed, split)  # drawn in blocks of 500
    short = shapes10(13, seed, split)
    assert torch.equal(long.images[:13], short.images)
    for name in short.factors:
        assert torch.equal(long.factors[name][:13], short.factors[name])
    last = draw_shapes(
        long.labels[-1:], {k: v[-1:] for k, v in long.factors.items()}
    )
    assert torch.equal(last, long.images[-1:])


def test_seeds_and_splits_share_no_image():
    keys, images = set(), set()
    for seed in (0, 1, 5):
        for split in ("train", "test"):
            data = shapes10(100, seed, split)
            keys |= set(data.factors["key"].tolist())
            images |= {x.numpy().tobytes() for x in data.images}
    assert len(keys) == len(images) == 600


def test_the_numbers_are_those_of_the_published_generator():
    # splitmix64 from state 0; its published first outputs
    known = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    words = data_module._random_words(numpy.zeros(1, int), 3)
    assert words[0].tolist() == known  # stir(0) is 0
    later = data_module._random_words(numpy.zeros(1, int), 1, 2)
    assert later[0].tolist() == known[2:]


def test_the_first_images_are_these(shapes):
    # `shapes10(10).images[:, :, 16, 14]`: other values would mean that every
    # result on the shapes changes
    known = [
        [252, 68, 188],
        [47, 91, 140],
        [135, 197, 51],
        [228, 67, 220],
        [245, 135, 64],
        [144, 206, 86],
        [255, 93, 62],
        [76, 186, 231],
        [237, 87, 174],
        [198, 247, 55],
    ]
    error = shapes.images[:10, :, 16, 14].int() - torch.tensor(known)
    assert error.abs().max() <= 1
    factors = {name: v[:3] for name, v in shapes.factors.items()}
    larger = draw_shapes(shapes.labels[:3], factors, 64)[:, :, 32, 29]
    known = [[235, 64, 191], [44, 61, 161], [156, 253, 38]]
    assert (larger.int() - torch.tensor(known)).abs().max() <= 1


@pytest.mark.parametrize("size", [1, 3, 16, 33, 64])
def test_images_of_any_size_show_the_same(shapes, size):
    labels = shapes.labels[:20]
    factors = {name: v[:20].clone() for name, v in shapes.factors.items()}
    images = draw_shapes(labels, factors, size)
    assert images.shape == (20, 3, size, size)
    assert torch.equal(images, draw_shapes(labels, factors, size))
    factors["noise"][:] = 0
    images = draw_shapes(labels, factors, size).int()
    whole = draw_shapes(labels, factors, size + 2).int()  # same centre
    assert (images - whole[:, :, 1:-1, 1:-1]).abs().max() <= 1


def test_the_noise_of_an_odd_size_is_the_beginning_of_all_the_noise():
    # the last word has noise for two pixels, and one is drawn
    labels = torch.zeros(1, dtype=torch.int64)
    flat = dict.fromkeys(FACTORS, 0.3) | dict(size=1e-3, noise=0.1)
    factors = {name: torch.tensor([v]) for name, v in flat.items()}
    factors["key"] = torch.tensor([11])
    noisy = draw_shapes(labels, factors, 33).flatten(2).double() / 255
    plain = data_module._colours(numpy.array([0.3]), 0.5, 0.45)
    words = data_module._random_words(numpy.array([11]), 1634, len(FACTORS))
    noise = data_module._byte_sums(words)[0, : 3 * 33**2].reshape(3, -1)
    expected = plain[0, :, 0] + 0.1 * (noise - 510.0) / 147.8
    error = abs(noisy[0].numpy() - expected.clip(0, 1))
    error[:, 33**2 // 2] = 0  # the dot that is left of the shape
    assert error.max() < 0.51 / 255


@pytest.mark.parametrize("name", FACTORS)
def test_factors_are_uniform_and_independent(many, name):
    low, high = FACTORS[name]
    share = (many.factors[name].double() - low) / (high - low)
    assert 0 <= share.min() and share.max() <= 1
    count = torch.histc(share, 20, 0, 1)
    assert (count - 250).abs().max() < 5 * 250**0.5
    others = [n for n in FACTORS if n != name]
    columns = [many.factors[n].double() for n in others]
    both = torch.stack([share, many.labels.double(), *columns])
    assert both.corrcoef()[0, 1:].abs().max() < 5 / 5_000**0.5


def test_noise_has_its_deviation_and_no_memory():
    data = shapes10(200)
    flat = dict(size=1e-3, background=0.3)
    still = redraw(data, range(200), **flat, noise=0).double() / 255
    noisy = redraw(data, range(200), **flat, noise=0.05).double() / 255
    noise = (noisy - still)[..., 1:, 1:]
    noise[..., 14:17, 14:17] = 0  # the dot that is left of the shape
    assert abs(noise.std() - 0.05) < 0.001 and noise.mean().abs() < 1e-3
    for axis in (0, 1, 2, 3):
        product = (noise * noise.roll(1, axis)).mean() / 0.05**2
        assert product.abs() < 0.01, axis


def test_redrawing_with_no_change_gives_the_same_bytes(shapes):
    assert torch.equal(redraw(shapes, range(600)), shapes.images)
    for index in (0, 17, 599, -1):
        assert torch.equal(redraw(shapes, index)[0], shapes.images[index])
    same = {k: v[5] for k, v in shapes.factors.items()}
    assert torch.equal(redraw(shapes, 5, **same), shapes.images[5:6])


@pytest.mark.parametrize("name", ["label", "key", *FACTORS])
def test_redrawing_changes_one_factor_and_keeps_the_noise(shapes, name):
    index = 6  # a crescent: every factor shows
    low, high = FACTORS.get(name, (0, 4))
    values = (low, 0.7 * high)  # the whole way round would change nothing
    if name in ("label", "key"):
        values = (1, 4)
    changed = redraw(shapes, index, **{name: values})
    assert changed.shape == (2, 3, 32, 32)
    assert not torch.equal(changed[0], changed[1])
    corner = changed[:, :, :3, :3]
    if name in ("label", "hue", "orientation"):
        assert torch.equal(corner[0], shapes.images[index, :, :3, :3])
        assert torch.equal(corner[1], corner[0])


def test_redrawing_pairs_images_with_values(shapes):
    both = redraw(shapes, [3, 8], hue=[0.1, 0.6])
    assert torch.equal(both[:1], redraw(shapes, 3, hue=0.1))
    assert torch.equal(both[1:], redraw(shapes, 8, hue=0.6))


def test_hue_and_orientation_are_circles(shapes):
    for name, period in (
        ("hue", 1),
        ("background", 1),
        ("orientation", 360),
    ):
        ends = redraw(shapes, 6, noise=0, **{name: [0.0, period]}).int()
        assert (ends[0] - ends[1]).abs().max() <= 1, name


def test_position_is_a_translation(shapes):
    still = dict(noise=0, size=8, h=-1, w=0.5)
    before = redraw(shapes, range(100), **still)
    after = redraw(shapes, range(100), **still | dict(h=2, w=-2.5))
    moved = translate(before, h=3, w=-3)
    assert (after.int() - moved.int()).abs().max() <= 1


def test_orientation_is_counter_clockwise(shapes):
    still = dict(noise=0, h=0, w=0)
    before = redraw(shapes, range(100), **still, orientation=20)
    after = redraw(shapes, range(100), **still, orientation=110)
    turned = before.rot90(1, (2, 3))
    assert (after.int() - turned.int()).abs().max() <= 1
    assert (after.int() - before.int()).abs().max() > 50


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_is_its_own_mirror_image(shape):
    x, y = numpy.random.default_rng(0).uniform(-2, 2, (2, 1000))
    error = signed_distance(shape, x, y) - signed_distance(shape, -x, y)
    assert abs(error).max() < 1e-12


@pytest.mark.parametrize("shape", SHAPES)
def test_a_distance_changes_no_faster_than_the_position(shape):
    x, y, dx, dy = numpy.random.default_rng(1).normal(size=(4, 5000))
    step = signed_distance(shape, x + dx / 9, y + dy / 9)
    change = abs(step - signed_distance(shape, x, y))
    assert (change <= numpy.hypot(dx, dy) / 9 + 1e-12).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_fits_into_its_radius(shape):
    angle = numpy.linspace(0, 2 * math.pi, 721)
    x, y = 1.24 * numpy.cos(angle), 1.24 * numpy.sin(angle)
    assert (signed_distance(shape, x, y) > 0).all()
    assert signed_distance(shape, 0.6 * x, 0.6 * y).min() < 0


def test_byte_sums_are_sums_of_four_bytes():
    words = numpy.random.default_rng(2).integers(
        2**64, size=(5, 7), dtype=numpy.uint64
    )
    four = words.astype("<u8").view(numpy.uint8).reshape(5, 14, 4)
    sums = data_module._byte_sums(words).astype(int)
    assert (numpy.sort(sums) == numpy.sort(four.sum(-1, dtype=int))).all()


def test_50_000_shapes_are_drawn_in_seconds():
    start = time.process_time()
    shapes10(5_000)
    assert time.process_time() - start < 1  # a tenth of them


def test_shapes_refuse_what_they_cannot_draw(shapes, no_shape_checks):
    with pytest.raises(ValueError, match=r"^shapes10: n is 0; expected at"):
        shapes10(0)
    with pytest.raises(
        ValueError, match=r"^shapes10: seed is -1; expected"
    ):
        shapes10(5, seed=-1)
    with pytest.raises(
        ValueError, match=r"^shapes10: seed is 1073741824; "
    ):
        shapes10(5, seed=2**30)
    with pytest.raises(ValueError, match=r"^shapes10: split is 'val'; exp"):
        shapes10(5, split="val")
    with pytest.raises(
        ValueError, match=r"^signed_distance: shape is 'egg'"
    ):
        signed_distance("egg", numpy.zeros(1), numpy.zeros(1))
    with pytest.raises(
        ValueError, match=r"labels run from 10 to 10; expected 0 to 9"
    ):
        redraw(shapes, 0, label=10)
    with pytest.raises(
        ValueError, match=r"the smallest size is 0; expected"
    ):
        redraw(shapes, 0, size=[5, 0])
    with pytest.raises(
        ValueError,
        match=r"^draw_shapes: images of 0 x 0 pixels; expected at least 1 x 1",
    ):
        draw_shapes(shapes.labels, shapes.factors, 0)


def test_redrawing_refuses_what_it_does_not_know(shapes):
    with pytest.raises(
        ValueError,
        match=r"^redraw: small has no factors; expected a data set made by shapes10$",
    ):
        redraw(small(), 0, hue=0.5)
    with pytest.raises(
        ValueError,
        match=r"^redraw: a factor is 'colour'; expected one of 'label', 'hue'",
    ):
        redraw(shapes, 0, colour=0.5)
    with pytest.raises(
        ValueError,
        match=r"^redraw: 3 images and changes of lengths \[2\]; expected equal",
    ):
        redraw(shapes, [1, 2, 3], hue=[0.1, 0.2])


# which data set


def test_the_drawn_default_is_announced_in_one_line(no_data, capsys):
    data = load_dataset(split="test")
    assert (data.name, data.split, len(data)) == (
        "shapes10",
        "test",
        10_000,
    )
    assert torch.equal(data.images[:9], shapes10(9, split="test").images)
    assert capsys.readouterr().out == (
        "no data named (HCNN_DATA is not set): using shapes10, drawn images\n"
    )
    load_dataset(split="test")  # once a process is enough
    assert capsys.readouterr().out == ""


def test_drawn_images_asked_for_are_not_announced(no_data, capsys):
    load_dataset("shapes10", "test")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", ["cifar11", "./nowhere/flowers"])
def test_an_unknown_name_or_folder_is_refused(name):
    with pytest.raises(
        FileNotFoundError,
        match=rf"^load_dataset: '{name}' is no data set and no folder; expected 'cifar10'",
    ):
        load_dataset(name)


def test_an_unknown_split_is_refused():
    with pytest.raises(
        ValueError,
        match=r"^load_dataset: split is 'valid'; expected one of 'train', 'test'$",
    ):
        load_dataset("shapes10", "valid")


def test_a_size_is_for_folders_only():
    with pytest.raises(
        ValueError,
        match=r"^load_dataset: size is 64 with shapes10, whose images are 32 x 32; leave",
    ):
        load_dataset("shapes10", size=64)


# CIFAR's files, imitated


@pytest.fixture
def imitation(monkeypatch, tmp_path, no_data):
    """A small archive in CIFAR-10's form, known to torchvision as such."""
    kind = torchvision().datasets.CIFAR10
    source = tmp_path / "source" / kind.base_folder
    source.mkdir(parents=True)

    def store(file, content):
        content = pickle.dumps(content)
        (source / file).write_bytes(content)
        return hashlib.md5(content).hexdigest()

    def batch(seed):
        pixels = random_images(4, 3 * 32 * 32, seed=seed).numpy()
        return {"data": pixels, "labels": [0, 1, 1, 0]}

    files = {
        "train_list": [[f, store(f, batch(i))] for i, f in enumerate("ab")],
        "test_list": [["t", store("t", batch(9))]],
        "meta": {
            "filename": "m",
            "key": "names",
            "md5": store("m", {"names": ["cat", "dog"]}),
        },
    }
    archive = tmp_path / "archive.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, kind.base_folder)
    digest = hashlib.md5(archive.read_bytes()).hexdigest()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), partial(Quiet, directory=tmp_path)
    )
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("no_proxy", "*")
    url = f"http://127.0.0.1:{server.server_port}/{archive.name}"
    for name, value in (files | dict(tgz_md5=digest, url=url)).items():
        monkeypatch.setattr(kind, name, value)
    yield kind, tmp_path / "source", archive
    server.shutdown()
    server.server_close()


def test_cifar_is_read_in_order_from_its_files(imitation):
    _, root, _ = imitation
    data = load_dataset("cifar10", root=root)
    expected = torch.cat([random_images(4, 3072, seed=s) for s in (0, 1)])
    assert torch.equal(data.images, expected.view(8, 3, 32, 32))
    assert data.labels.tolist() == [0, 1, 1, 0] * 2
    assert data.class_names == ("cat", "dog")
    assert (data.name, data.split) == ("cifar10", "train")
    assert data.images.is_contiguous() and data.factors is None
    assert len(load_dataset("cifar10", "test", root)) == 4


def test_the_folder_may_come_from_the_environment(
    imitation, monkeypatch, capsys
):
    monkeypatch.setenv("HCNN_DATA", str(imitation[1]))
    assert load_dataset().name == "cifar10"
    assert capsys.readouterr().out == ""


def test_a_download_ends_in_place_and_leaves_nothing_else(
    imitation, tmp_path
):
    kind, source, _ = imitation
    root = tmp_path / "new" / "data"
    data = load_dataset("cifar10", root=root, download=True)
    assert torch.equal(
        data.images, load_dataset("cifar10", root=source).images
    )
    assert [p.name for p in root.iterdir()] == [kind.base_folder]
    test = load_dataset("cifar10", "test", tmp_path / "2", download=True)
    assert (test.split, len(test)) == ("test", 4)


def test_a_half_finished_download_is_completed(imitation, tmp_path):
    kind, source, _ = imitation
    root, folder = tmp_path / "half", tmp_path / "half" / kind.base_folder
    folder.mkdir(parents=True)
    whole = (source / kind.base_folder / "a").read_bytes()
    (folder / "a").write_bytes(whole[:1000])
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(
        ValueError, match=r"a is cut short or changed \(its MD5"
    ):
        load_dataset("cifar10", root=root)
    load_dataset("cifar10", root=root, download=True)
    assert (folder / "a").read_bytes() == whole
    assert (folder / "mine.txt").read_text() == "kept"


def test_what_is_there_is_not_downloaded_again(imitation, monkeypatch):
    kind, source, archive = imitation
    archive.unlink()
    load_dataset("cifar10", root=source, download=True)


@pytest.mark.parametrize(
    "fault", ["unreachable", "cut short", "connection lost"]
)
@pytest.mark.parametrize("there", [True, False])
def test_a_failed_download_leaves_nothing(
    imitation, tmp_path, monkeypatch, fault, there
):
    kind, source, archive = imitation
    root = tmp_path / "new" / "data"
    if there:
        root.mkdir(parents=True)
    if fault == "unreachable":
        monkeypatch.setattr(kind, "url", "http://127.0.0.1:9/x.tar.gz")
    elif fault == "connection lost":

        def lost(self):
            raise http.client.IncompleteRead(b"half")

        monkeypatch.setattr(kind, "download", lost)
    else:
        archive.write_bytes(archive.read_bytes()[:-50])
    with pytest.raises(
        OSError,
        match=r"^load_dataset: cifar10 could not be downloaded \(.*nothing was kept",
    ) as caught:
        load_dataset("cifar10", root=root, download=True)
    assert "\n" not in str(caught.value)
    if there:
        assert list(root.iterdir()) == []
    else:
        assert not (tmp_path / "new").exists()


def test_an_interrupted_download_leaves_nothing(
    imitation, tmp_path, monkeypatch
):
    kind, source, archive = imitation

    def interrupted(self):
        assert Path(self.root).parent == tmp_path / "new"  # one disk
        Path(self.root, "archive.tar.gz").write_bytes(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(kind, "download", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("cifar10", root=tmp_path / "new", download=True)
    assert not (tmp_path / "new").exists()


def test_no_folder_named_is_refused(no_data):
    with pytest.raises(
        ValueError,
        match=r"^load_dataset: cifar100 needs a folder, and neither HCNN_DATA nor root names one; set HCNN_DATA",
    ):
        load_dataset("cifar100")


def fault_of(root):
    with pytest.raises((FileNotFoundError, ValueError)) as caught:
        load_dataset("cifar10", root=root)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(
        f"load_dataset('cifar10', root={str(root)!r}, download=True) "
        "fetches them"
    )
    return caught.type, message


def test_missing_folders_and_files_are_named(imitation, tmp_path):
    kind, source, _ = imitation
    kinds = FileNotFoundError, ValueError
    nowhere, empty = tmp_path / "nowhere", tmp_path / "empty"
    empty.mkdir()
    for root, missing in (
        (nowhere, nowhere),
        (empty, empty / kind.base_folder),
    ):
        error, message = fault_of(root)
        assert (
            error is kinds[0]
            and f"there is no folder {missing};" in message
        )
    for file in ("b", "t", "m"):
        path = source / kind.base_folder / file
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        error, message = fault_of(source)
        assert error is kinds[1] and f"{path} is cut short" in message
        path.unlink()
        error, message = fault_of(source)
        assert error is kinds[0] and f"{path} is missing;" in message
        path.write_bytes(whole)


def test_a_failed_load_leaves_no_folder(tmp_path, no_data):
    with pytest.raises(FileNotFoundError):
        load_dataset("cifar100", root=tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


# CIFAR's own files


@pytest.mark.cifar
@pytest.mark.parametrize(
    "split, n, known",
    [
        (
            "train",
            50_000,
            (0.49140, 0.48216, 0.44653, 0.24703, 0.24349, 0.26159),
        ),
        (
            "test",
            10_000,
            (0.49421, 0.48513, 0.45041, 0.24665, 0.24289, 0.26159),
        ),
    ],
)
def test_cifar10_is_complete(split, n, known):
    data = load_dataset("cifar10", split)
    assert data.images.shape == (n, 3, 32, 32)
    assert data.images.dtype == torch.uint8
    assert (data.labels.bincount() == n // 10).all()
    assert data.class_names[0] == "airplane" and len(data.class_names) == 10
    computed = torch.cat([data.mean, data.std])
    assert (computed - torch.tensor(known)).abs().max() < 5.1e-6


@pytest.mark.cifar
def test_cifar100_is_complete_where_it_is_there():
    try:
        data = load_dataset("cifar100", "test")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    assert (data.labels.bincount() == 100).all()
    assert len(data.class_names) == 100
    known = torch.tensor([0.50880, 0.48739, 0.44194])
    assert (data.mean - known).abs().max() < 5.1e-6


@pytest.mark.cifar
def test_the_second_load_takes_less_than_two_seconds():
    load_dataset("cifar10")
    start = time.process_time()
    load_dataset("cifar10")
    assert time.process_time() - start < 2


# a folder of one's own


def picture(seed=0, h=32, w=32, mode="RGB"):
    pixels = random_images(h, w, 3, seed=seed).numpy()
    return Image.fromarray(pixels).convert(mode)


@pytest.fixture
def folder(tmp_path, shapes):
    """Two classes of ten images each."""
    for i in range(20):
        place = tmp_path / "own" / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        array = shapes.images[i].permute(1, 2, 0).numpy()
        Image.fromarray(array).save(place / f"{i}.png")
    return tmp_path / "own"


def as_set(*sets):
    return {
        (x.numpy().tobytes(), y.item())
        for data in sets
        for x, y in zip(data.images, data.labels, strict=True)
    }


def test_a_folder_is_loaded_and_a_fifth_set_aside(folder, shapes):
    train, test = load_dataset(folder), load_dataset(str(folder), "test")
    assert (len(train), len(test)) == (16, 4)
    assert test.labels.bincount().tolist() == [2, 2]
    expected = {
        (x.numpy().tobytes(), i % 2)
        for i, x in enumerate(shapes.images[:20])
    }
    assert as_set(train) | as_set(test) == expected
    assert train.class_names == ("cat", "dog") and train.name == "own"
    assert (test.split, test.factors) == ("test", None)
    assert 0 < train.labels[:8].sum() < 8  # the classes are mixed


def test_the_same_images_are_set_aside_everywhere(folder, tmp_path):
    before = load_dataset(folder, "test")
    moved = folder.rename(tmp_path / "elsewhere")
    (moved / "dog" / "notes.txt").write_text("passed over")
    after = load_dataset(moved, "test")
    assert torch.equal(before.images, after.images)


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_own_splits_are_respected(folder, tmp_path, held_out):
    whole = as_set(load_dataset(folder), load_dataset(folder, "test"))
    root = tmp_path / "split"
    for split in ("train", held_out):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
    for number, path in enumerate(sorted(folder.rglob("*.png"))):
        split = held_out if number % 4 == 0 else "train"
        path.rename(root / split / path.parent.name / path.name)
    train, test = load_dataset(root), load_dataset(root, "test")
    assert (len(train), len(test)) == (15, 5)
    assert as_set(train) | as_set(test) == whole
    (root / "train" / "cow").mkdir()
    with pytest.raises(
        ValueError,
        match=r"has the classes \['cat', 'cow', 'dog'\] and .* has \['cat', 'dog'\]; expected the same in both",
    ):
        load_dataset(root)


def test_images_are_cut_to_the_middle_square_and_resized(folder):
    image = Image.new("RGB", (90, 30), "red")
    image.paste("blue", (30, 0, 60, 30))
    image.save(folder / "cat" / "wide.png")
    image.resize((90, 30)).rotate(90, expand=True).save(
        folder / "cat" / "tall.png"
    )
    for size in (16, 48):
        train = load_dataset(folder, size=size)
        test = load_dataset(folder, "test", size=size)
        images = torch.cat([train.images, test.images])
        assert images.shape == (22, 3, size, size)
        inner = images[:, :, 2:-2, 2:-2]
        blue = (inner[:, 2] == 255) & (inner[:, 0] == 0)
        assert (blue.flatten(1).all(1)).sum() == 2


def read(path, size=32):
    return data_module.read_image(str(path), size)


def test_an_image_of_the_right_size_keeps_its_bytes(tmp_path):
    picture().save(tmp_path / "x.png")
    expected = random_images(32, 32, 3).permute(2, 0, 1)
    assert torch.equal(read(tmp_path / "x.png"), expected)


def test_grey_becomes_three_equal_channels(tmp_path):
    picture(mode="L").save(tmp_path / "x.png")
    image = read(tmp_path / "x.png")
    assert torch.equal(image[0], image[1]) and torch.equal(
        image[1], image[2]
    )
    assert torch.equal(
        image[0], torch.tensor(numpy.array(picture(mode="L")))
    )


def test_sixteen_bits_become_eight(tmp_path):
    eight = random_images(32, 32).numpy()
    Image.fromarray(eight.astype(numpy.uint16) * 257).save(
        tmp_path / "x.png"
    )
    assert torch.equal(read(tmp_path / "x.png")[2], torch.from_numpy(eight))


@pytest.mark.parametrize("top", [1023, 65535])
def test_grey_maps_of_more_than_eight_bits_become_eight(top, tmp_path):
    eight = random_images(32, 32).numpy()
    levels = (eight.astype(float) * top / 255).round().astype(">u2")
    head = f"P5 32 32 {top} ".encode()
    (tmp_path / "x.pgm").write_bytes(head + levels.tobytes())
    found = read(tmp_path / "x.pgm")[2]
    assert torch.equal(found, torch.from_numpy(eight))


@pytest.mark.parametrize("bits, photometric", [(12, 1), (16, 0), (16, 1)])
def test_grey_tiffs_are_read_by_their_tags(bits, photometric, tmp_path):
    """Their number of bits, and whether zero is white (0) or black (1)."""
    eight = random_images(32, 32).numpy()
    levels = eight if photometric else 255 - eight
    levels = (levels.astype(float) * (2**bits - 1) / 255).round()
    rows = levels.astype("<u2")
    if bits == 12:  # two values in three bytes, the highest bits first
        a, b = rows.reshape(-1, 2).astype(int).T
        rows = numpy.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], 1)
        rows = rows.astype(numpy.uint8)
    tags = {
        256: 32, 257: 32, 258: bits, 259: 1, 262: photometric, 273: 8,
        277: 1, 278: 32, 279: rows.nbytes,
    }  # fmt: skip
    words = [struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in tags]
    (tmp_path / "x.tif").write_bytes(
        struct.pack("<2sHI", b"II", 42, 8 + rows.nbytes)
        + rows.tobytes()
        + struct.pack("<H", len(tags))
        + b"".join(words)
        + bytes(4)
    )
    found = read(tmp_path / "x.tif")[2]
    assert torch.equal(found, torch.from_numpy(eight))


def test_what_is_transparent_is_laid_on_white(tmp_path):
    image = picture(mode="RGBA")
    image.putalpha(Image.new("L", (32, 32), 0))
    image.putpixel((3, 5), (10, 20, 30, 255))
    image.save(tmp_path / "x.png")
    read_back = read(tmp_path / "x.png")
    assert read_back[:, 5, 3].tolist() == [10, 20, 30]
    assert read_back.float().mean() > 254


def test_a_transparent_grey_of_sixteen_bits_is_laid_on_white(tmp_path):
    eight = random_images(32, 32).numpy()
    sixteen = eight.astype(numpy.uint16) * 257
    gone = int(sixteen[3, 5])
    name = tmp_path / "x.png"
    Image.fromarray(sixteen).save(name, transparency=gone)
    eight[sixteen == gone] = 255
    assert torch.equal(read(name)[0], torch.from_numpy(eight))


@pytest.mark.parametrize("transparency", [None, 0, b"\x00\xff\x80"])
def test_palettes_are_looked_up(tmp_path, transparency):
    image = Image.new("P", (32, 32), 1)
    image.putpalette([0, 0, 0, 200, 100, 50, 9, 9, 9])
    image.putpixel((0, 0), 0)
    options = (
        {} if transparency is None else dict(transparency=transparency)
    )
    image.save(tmp_path / "x.png", **options)
    read_back = read(tmp_path / "x.png")
    assert read_back[:, 9, 9].tolist() == [200, 100, 50]
    corner = 0 if transparency is None else 255
    assert read_back[:, 0, 0].tolist() == [corner] * 3


@pytest.mark.parametrize(
    "mode, ending",
    [
        ("LA", "png"),
        ("1", "png"),
        ("CMYK", "jpg"),
        ("L", "webp"),
        ("P", "bmp"),
        ("RGB", "tif"),
    ],
)
def test_other_kinds_are_read(tmp_path, mode, ending):
    path = tmp_path / f"x.{ending}"
    picture(h=40, w=50, mode=mode).save(path)
    image = read(path)
    assert image.shape == (3, 32, 32) and image.float().std() > 20
    plain = Image.open(path).convert("RGB")
    fitted = ImageOps.fit(plain, (32, 32), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(numpy.array(fitted)).permute(2, 0, 1)
    assert torch.equal(image, expected)


def test_the_camera_says_which_way_is_up(tmp_path):
    image = Image.new("RGB", (32, 32), "white")
    image.paste("black", (0, 0, 32, 16))
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    image.save(tmp_path / "x.png", exif=exif)
    upright = read(tmp_path / "x.png")
    assert upright[:, :16].min() == 255 and upright[:, 16:].max() == 0


def encoded(mode, ending):
    buffer = io.BytesIO()
    picture(h=64, w=64, mode=mode).save(buffer, ending)
    return buffer.getvalue()


@pytest.mark.parametrize("ending", ["png", "jpeg", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("fault", ["half", "text", "empty"])
def test_a_broken_file_is_named(folder, ending, fault):
    whole = encoded("RGB", ending)
    path = folder / "cat" / f"broken.{ending}"
    path.write_bytes(
        {"half": whole[: len(whole) // 2], "text": b"hello", "empty": b""}[
            fault
        ]
    )
    messages = []
    for split in ("train", "test"):
        try:
            load_dataset(folder, split)
        except ValueError as error:
            messages.append(str(error))
    (message,) = messages
    assert re.fullmatch(
        rf"read_image: {path} cannot be read as an image \(\w+\(.+\)\); "
        "expected a whole image of 8 or 16 bits a channel; replace or "
        "remove it",
        message,
    )


def test_why_a_file_cannot_be_read_is_said(tmp_path, monkeypatch):
    with pytest.raises(
        IsADirectoryError, match=r"cannot be opened \(IsADir"
    ):
        read(tmp_path)
    for cause, error, words in (
        (
            PermissionError("no right"),
            PermissionError,
            "opened (Permission",
        ),
        (MemoryError, ValueError, "read as an image (MemoryError())"),
    ):

        def refuse(_, cause=cause):
            raise cause

        monkeypatch.setattr(Image, "open", refuse)
        with pytest.raises(error, match=re.escape(words)):
            read(tmp_path / "x.png")


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_size_of_no_pixels_is_refused(tmp_path, size, no_shape_checks):
    picture().save(tmp_path / "x.png")
    with pytest.raises(
        ValueError, match=r"size is .*; expected a positive"
    ):
        data_module.read_image(tmp_path / "x.png", size)


def test_a_name_of_no_file_is_not_called_a_bad_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*phto"):
        read(tmp_path / "phto.png")


def test_one_image_alone_is_told_how_to_become_a_batch(no_shape_checks):
    image, number = torch.zeros(3, 32, 32, dtype=torch.uint8), torch.ones(3)
    for call in (
        lambda: Augment()(image),
        lambda: standardize(image, number, number),
    ):
        with pytest.raises(ValueError, match=r"3 axes.*give image\[None\]"):
            call()


def test_numbers_without_a_range_are_no_image(tmp_path):
    Image.new("F", (32, 32), 0.5).save(tmp_path / "x.tif")
    with pytest.raises(ValueError, match=r"cannot be read as an image"):
        read(tmp_path / "x.tif")


def test_folders_without_classes_or_images_are_refused(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(
        ValueError,
        match=rf"^load_dataset: {empty} has 0 class folders \[\]; expected at least two",
    ):
        load_dataset(empty)
    picture().save(empty / "loose.png")
    (empty / "train").mkdir()
    with pytest.raises(
        ValueError, match=r"has 1 class folders \['train'\]; "
    ):
        load_dataset(empty)
    (folder / "cow").mkdir()
    (folder / "cow" / "notes.txt").write_text("no image")
    with pytest.raises(
        ValueError,
        match=rf"^load_dataset: the class folder {folder / 'cow'} holds no image; expected .jpg",
    ):
        load_dataset(folder)
    picture().save(folder / "cow" / "one.png")
    with pytest.raises(
        ValueError,
        match=rf"^load_dataset: the class folder {folder / 'cow'} holds one image; expected at least two",
    ):
        load_dataset(folder)


@pytest.mark.parametrize("beside", [[], ["valid"], ["valid", "extra"]])
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_folder_train_wants_its_counterpart(
    folder, tmp_path, split, beside
):
    root = tmp_path / "flowers"
    for name in ("train", *beside):
        shutil.copytree(folder, root / name)
    names = re.escape(repr(sorted(["train", *beside])))
    with pytest.raises(
        ValueError,
        match=rf"^load_dataset: {root} has a folder train and none named test or val among {names}; expected both; rename or add one$",
    ):
        load_dataset(root, split)
    shutil.copytree(folder, root / "val")
    assert load_dataset(root, split).class_names == ("cat", "dog")


def test_a_class_may_be_named_train(folder):
    (folder / "dog").rename(folder / "train")  # as one of CIFAR-100's
    assert load_dataset(folder).class_names == ("cat", "train")


def test_what_is_hidden_is_passed_over(folder):
    before = load_dataset(folder)
    for place in (folder, folder / "cat"):
        (place / ".ipynb_checkpoints").mkdir()
        picture().save(place / ".ipynb_checkpoints" / "0-checkpoint.png")
    (folder / ".cache").mkdir()
    (folder / "dog" / "._1.png").write_bytes(b"no image")
    after = load_dataset(folder)
    assert after.class_names == ("cat", "dog")
    assert torch.equal(after.images, before.images)
    assert torch.equal(after.labels, before.labels)
    load_dataset(folder.rename(folder.parent / ".own"))  # only inside it


@pytest.mark.parametrize("size", [0, -3])
def test_images_without_pixels_are_refused(folder, size):
    with pytest.raises(
        ValueError,
        match=rf"^load_dataset: images of {size} x {size} pixels; expected at least 1 x 1; give a larger size$",
    ):
        load_dataset(folder, size=size)


def test_a_file_is_no_folder(folder):
    with pytest.raises(
        FileNotFoundError, match=r"is no data set and no folder"
    ):
        load_dataset(folder / "cat" / "0.png")


# augmentation


def by_hand(image, down, right, mirror, padding):
    """One image, pixel by pixel."""
    if mirror:
        image = image.flip(-1)
    h, w = image.shape[1:]
    result = torch.zeros_like(image)

    def inside(position, size):
        if padding == "periodic":
            return position % size
        if padding == "reflect" and position < 0:
            return -position
        if padding == "reflect" and position >= size:
            return 2 * (size - 1) - position
        return position if 0 <= position < size else None

    for row in range(h):
        for column in range(w):
            r, c = inside(row - down, h), inside(column - right, w)
            if r is not None and c is not None:
                result[:, row, column] = image[:, r, c]
    return result


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(
    "max_shift, h, w", [(6, 7, 9), (2, 5, 3), (0, 4, 4)]
)
def test_augmentation_agrees_with_loops(padding, flip, max_shift, h, w):
    images = random_images(40, 3, h, w)
    augment = Augment(max_shift, flip, padding)
    result = augment(images, rng(5))
    down, right, mirror = augment._draw(40, "cpu", rng(5))
    assert mirror.any() == flip
    for i in range(40):
        draw = down[i].item(), right[i].item(), mirror[i].item()
        expected = by_hand(images[i], *draw, padding)
        assert torch.equal(result[i], expected), draw


def test_shifts_and_flips_are_uniform():
    down, right, mirror = Augment(6)._draw(130_000, "cpu", rng(0))
    for shift in (down, right):
        count = (shift + 6).flatten().bincount()
        assert len(count) == 13
        assert (count - 10_000).abs().max() < 5 * 100
    assert abs(mirror.double().mean() - 0.5) < 5 / (2 * 130_000**0.5)
    both = torch.cat([down, right, mirror], 1).double().T.corrcoef()
    assert (both - torch.eye(3)).abs().max() < 5 / 130_000**0.5


def test_augmentation_is_reproducible_and_leaves_its_input():
    images = random_images(50, 3, 32, 32)
    before, augment = images.clone(), Augment()
    once = augment(images, rng(1))
    assert torch.equal(once, augment(images, rng(1)))
    assert not torch.equal(once, augment(images, rng(2)))
    assert torch.equal(images, before)
    assert once.dtype == torch.uint8 and once.shape == images.shape
    torch.manual_seed(3)
    by_default = augment(images)
    torch.manual_seed(3)
    assert torch.equal(by_default, augment(images))


def test_no_shift_and_no_flip_is_the_identity():
    images = random_images(5, 3, 8, 8)
    assert torch.equal(Augment(0, flip=False)(images, rng(0)), images)


@pytest.mark.gpu
def test_augmentation_and_standardization_agree_on_the_gpu(shapes):
    there = shapes.to("cuda")
    result = Augment()(there.images, rng(0))
    assert result.is_cuda
    assert torch.equal(result.cpu(), Augment()(shapes.images, rng(0)))
    torch.testing.assert_close(there.mean.cpu(), shapes.mean)
    numbers = standardize(there.images, shapes.mean, shapes.std)
    expected = standardize(shapes.images, shapes.mean, shapes.std)
    torch.testing.assert_close(numbers.cpu(), expected)


def test_augmentation_refuses_what_it_cannot_do(no_shape_checks):
    with pytest.raises(
        ValueError,
        match=r"^Augment: padding is 'same'; expected one of 'zero', 'periodic', 'reflect'$",
    ):
        Augment(padding="same")
    with pytest.raises(
        ValueError, match=r"^Augment: max_shift is -1; expected"
    ):
        Augment(-1)
    with pytest.raises(
        ValueError,
        match=r"^Augment: images of 6 x 32 pixels and max_shift 6; expected a shift below 6$",
    ):
        Augment()(random_images(1, 3, 6, 32))
    with pytest.raises(
        ValueError,
        match=r"^Augment: images has 3 axes, shape \(3, 32, 32\); expected 4",
    ):
        Augment()(random_images(3, 32, 32))
    with pytest.raises(
        TypeError, match=r"^Augment: images is a ndarray; expected"
    ):
        Augment()(numpy.zeros((1, 3, 32, 32)))


# standardization


def test_standardized_images_have_mean_0_and_deviation_1(shapes):
    numbers = standardize(shapes.images, shapes.mean, shapes.std)
    assert numbers.dtype == torch.float32
    numbers = numbers.double()
    # 255 levels in float32: relative rounding 6e-8, of values up to 4
    assert numbers.mean((0, 2, 3)).abs().max() < 1e-6
    deviation = numbers.std((0, 2, 3), correction=0)
    assert (deviation - 1).abs().max() < 1e-6


def test_standardization_is_the_formula():
    images = random_images(2, 3, 4, 5)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([1.0, 2.0, 4.0])
    numbers = standardize(images, mean, std)
    for c in range(3):
        expected = (images[:, c].double() / 255 - mean[c]) / std[c]
        assert (numbers[:, c] - expected).abs().max() < 1e-6


def test_standardization_commutes_with_translations():
    images = random_images(2, 3, 8, 8)
    mean, std = torch.full((3,), 0.5), torch.full((3,), 0.25)
    shifted = standardize(translate(images, h=2, w=-3), mean, std)
    expected = translate(standardize(images, mean, std), h=2, w=-3)
    assert torch.equal(shifted, expected)


def test_standardization_refuses_what_is_not_bytes(no_shape_checks):
    one = torch.ones(3)
    with pytest.raises(
        TypeError,
        match=r"^standardize: images are torch.float32; expected bytes, torch.uint8 from 0 to 255; standardize an image once$",
    ):
        standardize(torch.zeros(1, 3, 8, 8), one, one)
    with pytest.raises(
        ValueError, match=r"^standardize: images has 3 axes"
    ):
        standardize(random_images(3, 8, 8), one, one)
    with pytest.raises(
        ValueError, match=r"^standardize: mean has 0 axes, .* \(c\)"
    ):
        standardize(random_images(1, 3, 8, 8), torch.tensor(0.5), one)


@pytest.mark.parametrize(
    "channels, means, deviations",
    [(1, 3, 3), (4, 3, 3), (3, 1, 1), (3, 3, 1), (3, 1, 3)],
)
def test_standardization_wants_a_mean_and_a_deviation_a_channel(
    channels, means, deviations, no_shape_checks
):
    images = random_images(2, channels, 16, 16)
    with pytest.raises(
        ValueError,
        match=rf"^standardize: images of {channels} channels, {means} means and {deviations} deviations; expected one for each channel; give those of images like these$",
    ):
        standardize(images, torch.zeros(means), torch.ones(deviations))


# the module


def test_importing_is_silent_quick_and_leaves_torchvision_alone():
    program = (
        "import sys, time, torch, numpy; start = time.process_time()\n"
        "import hcnn.data\n"
        "assert time.process_time() - start < 0.5\n"
        "late = {'torchvision', 'matplotlib', 'PIL'} & set(sys.modules)\n"
        "assert not late, late"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
