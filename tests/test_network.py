"""The network: counts, parts, invariance, folding, files."""

import dataclasses
import json
import os
import re

import pytest
import torch
from torch.testing import assert_close

from hcnn.axes import axis
from hcnn.conv5d import layer_cost, layer_sizes
from hcnn.factorized import EPS
from hcnn.groups import invariance_error
from hcnn.network import (
    HCNN,
    HCNNConfig,
    OutputNorm,
    invariant_shifts,
    preset,
)
from hcnn.runtime import rng

PLAIN = {
    "zero": {},
    "periodic": dict(padding="periodic"),
    "output_norm": dict(output_norm=True),
    "dense": dict(head="dense"),
    "authors": dict(output_norm=True, head="dense", spatial_strides=(4, 8)),
    "grey": dict(channels=1, classes=3),
}
KINDS = PLAIN | {"plus": dict(plus=True)}


def network(seed=0, dtype=torch.float64, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return HCNN(preset("hcnn8-cifar10", Q=3, **changes)).to(dtype)


def images(own, n=2, size=(8, 8), seed=1):
    shape = (n, own.config.channels, *size)
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def trained(own, steps=3):
    optimizer = torch.optim.SGD(own.parameters(), 0.05)
    x = images(own, 6, seed=2)
    for _ in range(steps):
        optimizer.zero_grad()
        own.train()(x)[:, 0].mean().backward()
        optimizer.step()
    return own.eval()


def test_the_four_counts_of_the_paper():
    for name, folded, factors in [
        ("hcnn-cifar10", 97_650, 344_640),
        ("hcnn-plus-cifar10", 344_640, 344_640),
        ("hcnn-cifar100", 250_308, 887_424),
        ("hcnn-plus-cifar100", 887_424, 887_424),
    ]:
        own = HCNN(preset(name))
        assert own.parameter_count() == folded
        assert own.parameter_count(folded=False) == factors


def test_a_dense_head_is_counted_with_its_bias():
    mean, dense = network(), network(head="dense")
    last = 9 * 3 * 7  # a filter of W_11
    more = (8 - 10) * last + 8 * 10 + 10
    assert dense.parameter_count() - mean.parameter_count() == more


@pytest.mark.parametrize("kind", KINDS)
def test_parts_make_the_whole(kind):
    own = trained(network(**KINDS[kind]))
    x = images(own)
    rows = layer_sizes(8, **own.config.geometry)
    with torch.no_grad():
        for j in range(13):
            x_j = own.layer(x, j)
            assert torch.equal(own.from_layer(x_j, j), own(x)), j
            row = rows[j]
            if 0 < j < 12:
                assert x_j.shape[-2:] == (row.h, row.w)
                assert x_j[0].numel() == row.values
                large = own.step(1e3 * own.layer(x, j - 1), j)
                assert large.min() >= -1, f"no ELU at {j}"
    assert own(x).shape == (2, own.config.classes)
    mean = own.layer(x, 11).mean((1, 2, 4, 5))
    assert_close(own(x), own.W12(mean) if hasattr(own, "W12") else mean)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 16)])
def test_any_image_size_is_taken(size):
    for padding in ("zero", "periodic"):
        own = network(padding=padding)
        assert own(images(own, 2, size)).isfinite().all()


@pytest.mark.parametrize("padding", ["zero", "periodic"])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("j", range(12))
def test_just_the_shifts_of_the_proposition_leave_the_scores(
    j, padding, steps
):
    own = trained(network(padding=padding), steps)
    with torch.no_grad():
        x_j = own.layer(images(own, size=(16, 16)), j)
        for letter in "abch"[-(x_j.ndim - 2) :]:
            if letter == "c" and j in (0, 11):
                continue  # colours and classes are no attributes
            size = x_j.shape[axis(letter, x_j.ndim)]
            shifts = invariant_shifts(own.config, j)
            assert shifts.get("w") == shifts.get("h")
            assert set(shifts) <= set("abchw"[-(x_j.ndim - 1) :])
            step = shifts.get(letter)
            for shift in range(1, size):
                error = invariance_error(
                    lambda y: own.from_layer(y, j), x_j, [{letter: shift}]
                ).error
                exact = bool(step) and shift % step == 0
                assert (error < 1e-10) == exact, (letter, shift, error)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_folded_network_gives_the_same_scores(kind):
    own = trained(network(**PLAIN[kind]))
    x, folded = images(own), own.fold()
    with torch.no_grad():
        assert_close(folded(x), own(x), rtol=1e-10, atol=1e-12)
        assert_close(folded.layer(x, 7), own.layer(x, 7))
    assert not any(p.requires_grad for p in folded.parameters())
    with pytest.raises(ValueError, match="cannot be trained"):
        folded.train()
    assert not any(m.training for m in folded.modules())
    assert not folded(x).requires_grad
    # the network stays as it was
    assert all(p.requires_grad for p in own.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_activations_keep_their_scale(kind):
    own = network(**KINDS[kind]).train()
    x = images(own, 8, (16, 16))
    scales = [own.layer(x, j).std().item() for j in range(1, 12)]
    assert 1 / 4 < min(scales) <= max(scales) < 2, scales


@pytest.mark.parametrize("normalized", [True, False])
def test_a_layer_has_a_bias_unless_it_is_normalized(normalized):
    kept = network(output_norm=normalized).state_dict()
    assert sum(f"W{j}.bias" in kept for j in range(1, 12)) == (
        0 if normalized else 11
    )


@pytest.mark.parametrize("channels", [1, 3, 12])
def test_first_filters_start_with_the_scale_of_their_inputs(channels):
    own = network(K=16, support=(7, 11), channels=channels)
    for weight, inputs in (
        (own.W1.weight, 9 * channels),
        (own.W2.weight, 9 * 11),
    ):
        assert 0.8 < weight.std() * inputs**0.5 < 1.2


def test_a_normalized_output_has_the_shift_and_scale_it_was_given():
    norm = OutputNorm(3).double()
    x = torch.randn(4, 2, 3, 5, 6, generator=rng(0), dtype=torch.float64)
    shift, scale = torch.tensor([[1.0, -2, 0], [2, 0.5, 3]]).double()
    norm.load_state_dict(dict(shift=shift, scale=scale), strict=False)
    out = norm(3 * x + 1)
    over = (0, 1, 3, 4)
    assert_close(out.mean(over), shift)
    assert_close(out.std(over, correction=0), scale, rtol=1e-5, atol=0)
    kept = norm.state_dict()
    mean, var = kept["running_mean"], kept["running_var"]
    expected = (x - mean[:, None, None]) / (var[:, None, None] + EPS).sqrt()
    expected = expected * scale[:, None, None] + shift[:, None, None]
    assert_close(norm.eval()(x), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_network_is_the_same_network(kind, dtype, tmp_path):
    own = trained(network(**KINDS[kind])).to(dtype)
    names = [f"class {k}" for k in range(own.config.classes)]
    count = own.config.channels
    kept = HCNN(
        own.config, mean=[0.4] * count, std=[0.2] * count, class_names=names
    )
    kept.to(dtype).load_state_dict(own.state_dict())
    kept.save(tmp_path / "a.safetensors")
    again = HCNN.load(tmp_path / "a.safetensors")
    assert again.config == own.config and not again.training
    assert again.class_names == tuple(names)
    assert again.mean == (0.4,) * count and again.std == (0.2,) * count
    x = images(own).to(dtype)
    with torch.no_grad():
        assert torch.equal(again(x), own(x))
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_folded_network_keeps_names_and_statistics_and_moves_whole():
    kept = dict(mean=[0.5] * 3, std=[0.25] * 3, class_names=range(10))
    folded = HCNN(preset("hcnn8-cifar10", Q=3), **kept).fold()
    assert folded.mean == (0.5,) * 3 and folded.std == (0.25,) * 3
    assert folded.class_names == tuple("0123456789")
    x = images(folded)
    assert folded.double()(x).dtype == x.dtype
    assert folded.W3.bias_map.dtype == x.dtype


def test_images_are_standardized_with_the_kept_statistics():
    own = HCNN(preset("hcnn8-cifar10"), mean=[0.5] * 3, std=[0.25] * 3)
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert_close(own.standardize(white), torch.full((1, 3, 2, 2), 2.0))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_standardized_images_have_the_type_of_the_network(dtype):
    own = HCNN(preset("hcnn8-cifar10", Q=3), mean=[0.5] * 3, std=[0.25] * 3)
    white = torch.full((2, 3, 8, 8), 255, dtype=torch.uint8)
    assert own.to(dtype)(own.standardize(white)).dtype == dtype


def test_a_network_folds_in_full_precision_under_autocast():
    own = trained(network(dtype=torch.float64)).float()
    with torch.autocast("cpu", torch.bfloat16):
        folded = own.fold()
    kinds = {value.dtype for value in folded.state_dict().values()}
    assert kinds == {torch.float32}
    x = images(own).float()
    with torch.no_grad():
        assert_close(folded(x), own(x), rtol=1e-4, atol=1e-5)


def test_a_configuration_from_lists_is_the_same(no_shape_checks):
    lists = HCNNConfig(support=[3, 7], spatial_strides=[4])
    tuples = HCNNConfig(support=(3, 7), spatial_strides=(4,))
    assert lists == tuples and hash(lists) == hash(tuples)


def test_nothing_half_written_stays_behind(tmp_path, monkeypatch):
    own, path = network(), tmp_path / "a.safetensors"
    own.save(path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        network(seed=1).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_file_is_whole_on_the_disk_before_it_gets_its_name(
    tmp_path, monkeypatch
):
    own, path, synced = network(), tmp_path / "a.safetensors", []

    def fsync(number):
        assert not path.exists()
        synced.append(os.fstat(number).st_size)

    def rename(old, new):
        assert synced == [old.stat().st_size]
        assert old.parent == new.parent and new == path
        replace(old, new)
        synced.append("renamed")

    replace = os.replace
    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr("os.replace", rename)
    own.save(path)
    assert synced == [path.stat().st_size, "renamed"]


def test_a_network_in_channels_last_memory_is_saved_too(tmp_path):
    own, path = network().eval(), tmp_path / "a.safetensors"
    own.to(memory_format=torch.channels_last).save(path)
    x, again = images(own), HCNN.load(path, engine="factorized")
    assert_close(again(x), own(x))
    assert again.engine == "factorized"


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_refused(share, tmp_path):
    path = tmp_path / "a.safetensors"
    network().save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        ValueError, match="no whole safetensors file"
    ) as caught:
        HCNN.load(path)
    assert "\n" not in str(caught.value)


def rewritten(
    path, change_tensors=None, change_config=None, change_about=None
):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["hcnn"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}
    (change_tensors or (lambda t: None))(tensors)
    (change_config or (lambda c: None))(about["config"])
    (change_about or (lambda a: None))(about)
    save_file(tensors, path, {"hcnn": json.dumps(about)})


@pytest.mark.parametrize(
    "change, words",
    [
        (
            dict(change_tensors=lambda t: t.pop("W5.spatial")),
            "nothing for W5.spatial; its own configuration expects (3, 3, 3)",
        ),
        (
            dict(change_tensors=lambda t: t.update(x=torch.ones(2))),
            "(2,) for x; its own configuration expects nothing",
        ),
        (
            dict(change_config=lambda c: c.update(Q=4)),
            "for W10.attribute; its own configuration expects (8, 4, 3, 7)",
        ),
        (
            dict(change_config=lambda c: c.update(K=9)),
            "K is 9; expected a positive multiple of 4",
        ),
        (
            dict(change_config=lambda c: c.update(colour=1)),
            "unexpected keyword argument 'colour'",
        ),
        (
            dict(change_about=lambda a: a.update(config=3)),
            "is not that of a network",
        ),
        (
            dict(change_about=lambda a: a.update(mean="abc")),
            "the metadata in",
        ),
        (
            dict(change_about=lambda a: a.update(class_names=["one"])),
            "class_names has 1 values; the configuration expects 10",
        ),
    ],
)
def test_tensors_must_fit_the_configuration_in_the_file(
    change, words, tmp_path
):
    path = tmp_path / "a.safetensors"
    network().save(path)
    rewritten(path, **change)
    with pytest.raises(ValueError) as caught:
        HCNN.load(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_of_something_else_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="holds no configuration"):
        HCNN.load(tmp_path / "a.safetensors")
    for metadata in ({"hcnn": "{}"}, {"hcnn": "{"}, {"hcnn": "[]"}):
        save_file(
            {"x": torch.ones(2)}, tmp_path / "a.safetensors", metadata
        )
        with pytest.raises(ValueError, match="holds no configuration"):
            HCNN.load(tmp_path / "a.safetensors")
    for path in (tmp_path / "b.safetensors", tmp_path):
        with pytest.raises(
            FileNotFoundError, match=r"no file .*; expected"
        ):
            HCNN.load(path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        network().save(tmp_path / "none" / "a.safetensors")


PRESETS = [
    f"{base}{suffix}"
    for base in (
        "hcnn-cifar10",
        "hcnn-plus-cifar10",
        "hcnn-cifar100",
        "hcnn-plus-cifar100",
        "hcnn8-cifar10",
        "hcnn8-plus-cifar10",
        "hcnn8-cifar100",
        "hcnn8-plus-cifar100",
        "hcnn8-shapes10",
    )
    for suffix in ("", "-periodic", "-authors")
]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_their_names_say(name):
    config = preset(name)
    assert config.K == (8 if "hcnn8" in name else 16)
    assert config.Q == 32
    assert config.classes == (100 if "cifar100" in name else 10)
    assert config.plus == ("-plus" in name)
    assert config.padding == ("periodic" if "periodic" in name else "zero")
    assert config.output_norm == ("authors" in name)
    assert config.head == ("dense" if "authors" in name else "mean")
    strides = (4, 8) if "authors" in name else (5, 9)
    assert config.spatial_strides == strides
    support = (3, 7) if "hcnn8" in name else (7, 11)
    if name.startswith(("hcnn-cifar100", "hcnn-plus-cifar100")):
        support = (11, 11)
    assert config.support == support
    assert preset(name, Q=9) == dataclasses.replace(config, Q=9)


def test_the_summary_adds_up():
    own = HCNN(preset("hcnn-cifar10"))
    rows = own.summary().splitlines()[1:-1]
    assert max(map(len, own.summary().splitlines())) <= 80
    filters = [
        int(re.split(r"\s{2,}", row)[-3].replace(",", "")) for row in rows
    ]
    assert sum(filters) == own.parameter_count() == 97_650
    assert "97,650" in own.summary() and "344,640" in own.summary()


@pytest.mark.parametrize("plus", [False, True])
def test_the_summary_tells_the_cost_of_its_own_configuration(plus):
    own = network(padding="periodic", plus=plus)
    costs = layer_cost(12, **own.config.geometry, Q=3, padding="periodic")
    rows = own.summary(12).splitlines()[1:-1]
    for row, cost in zip(rows, costs[1:-1], strict=True):
        work = cost.multiply_adds
        if plus and cost.j > 2:
            work = cost.factor_multiply_adds
        factors = cost.factor_parameters
        assert row.split()[-2:] == [f"{factors:,d}", f"{work:,d}"]


@pytest.mark.parametrize(
    "error, call, words",
    [
        (
            ValueError,
            lambda: preset("resnet"),
            "unknown name 'resnet'; expected one of hcnn-cifar10",
        ),
        (ValueError, lambda: preset("hcnn-shapes10"), "unknown name"),
        (
            TypeError,
            lambda: preset("hcnn-cifar10", colour=1),
            "no field 'colour'; expected one of classes, K",
        ),
        (
            ValueError,
            lambda: HCNNConfig(K=6),
            "K is 6; expected a positive multiple of 4",
        ),
        (
            ValueError,
            lambda: HCNNConfig(Q=0),
            "Q is 0; expected a positive integer",
        ),
        (ValueError, lambda: HCNNConfig(classes=0), "classes is 0"),
        (ValueError, lambda: HCNNConfig(channels=0), "channels is 0"),
        (ValueError, lambda: HCNNConfig(Q=2.5), "Q is 2.5; expected"),
        (
            ValueError,
            lambda: HCNNConfig(support=(-1, 7)),
            "along b is -1; expected an odd number, so that a window has a centre; take 1 or",
        ),
        (
            ValueError,
            lambda: HCNNConfig(spatial_strides=(5, 12)),
            "spatial_strides are (5, 12); expected different depths",
        ),
        (
            ValueError,
            lambda: HCNN(HCNNConfig(), std=[0.5]),
            "std has 1 values; the configuration expects 3",
        ),
        (
            ValueError,
            lambda: HCNN(HCNNConfig(), mean=[0.5] * 3).standardize(
                torch.zeros(1, 3, 2, 2).byte()
            ),
            "this network has no mean and std",
        ),
        (
            ValueError,
            lambda: network().from_layer(torch.zeros(1, 3, 8, 8), 0.0),
            "from_layer: depth 0.0; expected an integer",
        ),
        (
            ValueError,
            lambda: network(head="dense").from_layer(torch.zeros(1, 8), 12),
            "x_12 of this network has (n, 10)",
        ),
        (
            ValueError,
            lambda: HCNNConfig(support=(7, 10)),
            "the support along c is 10; expected an odd",
        ),
        (
            ValueError,
            lambda: HCNNConfig(support=(7,)),
            "support is (7,); expected two odd integers",
        ),
        (
            ValueError,
            lambda: HCNNConfig(K=4, support=(7, 7), padding="periodic"),
            "a support of 7 along b would wrap twice around an axis of 2",
        ),
        (
            ValueError,
            lambda: HCNNConfig(padding="same"),
            "padding is 'same'",
        ),
        (ValueError, lambda: HCNNConfig(head="max"), "head is 'max'"),
        (
            ValueError,
            lambda: HCNNConfig(spatial_strides=(0, 5)),
            "spatial_strides are (0, 5); expected different depths from 1 to 11",
        ),
        (
            ValueError,
            lambda: HCNN(HCNNConfig(), engine="gpu"),
            "engine is 'gpu'; expected one of 'auto', 'factorized'",
        ),
        (
            ValueError,
            lambda: HCNN(HCNNConfig(), mean=[0.5]),
            "mean has 1 values; the configuration expects 3",
        ),
        (
            ValueError,
            lambda: HCNN(HCNNConfig(), class_names="ab"),
            "class_names has 2 values; the configuration expects 10",
        ),
        (
            ValueError,
            lambda: network().standardize(torch.zeros(1, 3, 2, 2).byte()),
            "this network has no mean and std",
        ),
        (
            ValueError,
            lambda: network()(torch.zeros(1, 3, 8, 8).byte()),
            "the array holds torch.uint8",
        ),
        (
            ValueError,
            lambda: network()(torch.zeros(1, 1, 8, 8)),
            "the array has shape (1, 1, 8, 8); x_0 of this network has (n, 3, h, w)",
        ),
        (
            ValueError,
            lambda: network()(torch.zeros(3, 8, 8)),
            "the array has shape (3, 8, 8); x_0",
        ),
        (
            ValueError,
            lambda: network()(torch.zeros(1, 3, 8, 8, 2)),
            "the array has shape (1, 3, 8, 8, 2); x_0",
        ),
        (
            ValueError,
            lambda: network().layer(torch.zeros(1, 3, 8, 8), 13),
            "depth 13; expected an integer from 0 (the images) to 12",
        ),
        (
            ValueError,
            lambda: network().from_layer(torch.zeros(1, 3, 8, 8), -1),
            "depth -1; expected",
        ),
        (
            ValueError,
            lambda: network().from_layer(torch.zeros(1, 2, 4, 9, 8, 8), 5),
            "x_5 of this network has (n, 2, 4, 8, h, w)",
        ),
        (
            ValueError,
            lambda: HCNNConfig(spatial_strides=(5, 5)),
            "spatial_strides are (5, 5); expected different depths",
        ),
        (
            ValueError,
            lambda: HCNNConfig(spatial_strides=5),
            "spatial_strides are 5; expected different depths",
        ),
        (
            ValueError,
            lambda: HCNNConfig(support=7),
            "support is 7; expected two odd integers",
        ),
        (
            ValueError,
            lambda: HCNNConfig(support=(3.0, 7.0)),
            "support is (3.0, 7.0); expected two odd integers",
        ),
        (
            ValueError,
            lambda: HCNN(HCNNConfig(), class_names=[]),
            "class_names has 0 values; the configuration expects 10",
        ),
        (
            ValueError,
            lambda: network().layer(torch.zeros(1, 3, 8, 8), 3.0),
            "layer: depth 3.0; expected an integer",
        ),
        (
            TypeError,
            lambda: network()([[0.0]]),
            "HCNN: what came is a list; expected a torch.Tensor",
        ),
        (
            ValueError,
            lambda: HCNN.load("nowhere", engine="gpu"),
            "load: engine is 'gpu'; expected one of 'auto'",
        ),
        (
            ValueError,
            lambda: invariant_shifts(HCNNConfig(), 12),
            "depth 12; expected 0 to 11",
        ),
        (
            ValueError,
            lambda: network(plus=True).fold(),
            "expected a plain layer",
        ),
    ],
)
def test_errors_say_what_came_and_what_was_expected(
    error, call, words, no_shape_checks
):
    with pytest.raises(error) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
