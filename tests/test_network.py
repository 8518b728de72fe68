"""The network: counts, parts, invariance, folding, files."""

import dataclasses
import json
import math
import os
import re
import sys
import warnings
from itertools import product
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.utils.prune
from safetensors import safe_open
from torch.testing import assert_close

from hcnn.axes import axis
from hcnn.conv5d import layer_cost, layer_sizes
from hcnn.factorized import EPS
from hcnn.groups import invariance_error
from hcnn.network import (
    HCNN,
    HCNNConfig,
    OutputNorm,
    export_onnx,
    invariant_shifts,
    preset,
)
from hcnn.runtime import rng

ROOT = Path(__file__).resolve().parent.parent
PAPER = dict(output_norm=False)
PLAIN = {
    "zero": PAPER,
    "periodic": PAPER | dict(padding="periodic"),
    "output_norm": {},
    "dense": PAPER | dict(head="dense"),
    "authors": dict(head="dense", spatial_strides=(4, 8)),
    "grey": PAPER | dict(channels=1, classes=3),
}
KINDS = PLAIN | {
    "plus": PAPER | dict(plus=True),
    "plus-authors": PLAIN["authors"] | dict(plus=True, padding="periodic"),
}
EACH = [
    (kind, engine) for kind in KINDS for engine in ("factorized", "auto")
]


def network(seed=0, dtype=torch.float64, engine="auto", **changes):
    config = preset("hcnn8-cifar10", Q=3, **changes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return HCNN(config, engine).to(dtype)


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


@pytest.mark.parametrize("kind, engine", EACH)
def test_parts_make_the_whole(kind, engine):
    own = trained(network(engine=engine, **KINDS[kind]))
    x = images(own)
    rows = layer_sizes(8, **own.config.geometry)
    with torch.no_grad():
        for j in range(13):
            x_j = own.layer(x, j)
            assert_close(own.from_layer(x_j, j), own(x), rtol=0, atol=1e-14)
            row = rows[j]
            if 0 < j < 12:
                assert x_j.shape[-2:] == (row.h, row.w)
                assert x_j[0].numel() == row.values
                large = own.step(1e3 * own.layer(x, j - 1), j)
                assert large.min() >= -1, f"no ELU at {j}"
    assert own(x).shape == (2, own.config.classes)
    mean = own.layer(x, 11).mean((1, 2, 4, 5))
    assert_close(own(x), own.W12(mean) if hasattr(own, "W12") else mean)


def both(**changes):
    """The same network twice, with its fast engine and in factors."""
    return [network(engine=e, **changes) for e in ("auto", "factorized")]


def one_step(own, x, weights):
    """Scores, and the gradients of all parameters and of the images."""
    x = x.clone().requires_grad_()
    scores = own(x)
    parameters = dict(own.named_parameters())
    found = torch.autograd.grad(
        (scores * weights).sum(), [x, *parameters.values()]
    )
    return scores, dict(zip(["x", *parameters], found, strict=True))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_give_the_same_scores_and_gradients(kind, training):
    fast, factorized = both(**KINDS[kind])
    x = images(fast, 3, (9, 6))
    weights = torch.randn(3, fast.config.classes, generator=rng(4))
    for own in (fast, factorized):
        trained(own).train(training)
    scores, gradients = one_step(fast, x, weights)
    expected, those = one_step(factorized, x, weights)
    assert_close(scores, expected, rtol=1e-9, atol=1e-12)
    assert gradients.keys() == those.keys()
    for name in those:
        scale = those[name].abs().max().item()
        assert scale > 0, name
        assert_close(
            gradients[name], those[name], rtol=1e-9, atol=1e-9 * scale
        )


@pytest.mark.parametrize("kind", KINDS)
def test_both_engines_learn_the_same_weights_and_statistics(kind):
    fast, factorized = both(**KINDS[kind])
    start = factorized.state_dict()["W7.attribute"].clone()
    for own in (fast, factorized):
        trained(own, 5)
    state = factorized.state_dict()
    assert (state["W7.attribute"] - start).abs().max() > 1e-3
    assert_close(dict(fast.state_dict()), dict(state), rtol=0, atol=1e-6)
    # the state of one is that of the other
    again = network(seed=1, engine="factorized", **KINDS[kind])
    again.load_state_dict(fast.state_dict())
    x = images(fast)
    assert_close(again.eval()(x), fast(x), rtol=1e-9, atol=1e-12)


def test_auto_is_the_fast_engine_of_each_variant():
    assert network().engine == "fused"
    assert network(plus=True).engine == "lean"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind, engine", EACH)
def test_in_bf16_the_scores_stay_near_and_keep_their_type(
    kind, engine, training
):
    own = trained(network(engine=engine, **KINDS[kind])).float()
    x = images(own, 8, (12, 12)).float()
    own.train(training)
    expected = own(x)
    with torch.autocast("cpu", torch.bfloat16):
        scores = own(x)
    scores.sum().backward()
    assert scores.dtype == (
        torch.bfloat16 if own.config.head == "dense" else torch.float32
    )
    scale = expected.std().item()
    assert 0 < (scores - expected).abs().max() < 0.2 * scale
    for name, p in own.named_parameters():
        assert p.dtype == torch.float32 and p.grad.isfinite().all(), name


@pytest.mark.parametrize("plus", [False, True])
def test_a_fast_engine_carries_means_alone(plus, monkeypatch):
    """Between two layers no array of all three attributes is formed."""
    own, seen = network(plus=plus, **PAPER).eval(), []
    monkeypatch.setattr("hcnn.network.marginal", seen.append)
    own(images(own))
    assert not seen
    x_1 = own.layer(images(own), 1)
    assert x_1.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("plus", [False, True])
def test_second_derivatives_need_the_factorized_engine(plus):
    fast, factorized = both(plus=plus)
    x = images(fast).requires_grad_()
    with pytest.raises(NotImplementedError, match="engine='factorized'"):
        torch.autograd.grad(fast(x).sum(), x, create_graph=True)
    (first,) = torch.autograd.grad(
        factorized(x).sum(), x, create_graph=True
    )
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.isfinite().all() and second.abs().max() > 0


def subclassed(layer):
    class Own(type(layer)):
        def forward(self, x):
            return super().forward(x).sin()

    layer.__class__ = Own


CHANGES = {  # a normalization undoes no sine
    "class": subclassed,
    "forward": lambda layer: setattr(
        layer, "forward", lambda x: type(layer).forward(layer, x).sin()
    ),
    "hook": lambda layer: layer.register_forward_hook(
        lambda _, given, out: out.sin()
    ),
    "hook before": lambda layer: layer.register_forward_pre_hook(
        lambda _, given: given[0].sin()
    ),
    "hook of gradients": lambda layer: layer.register_full_backward_hook(
        lambda _, inner, outer: tuple(2 * g for g in inner)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    "name", ["W1", "W2", "W3", "W11", "norm1", "norm5"]
)
@pytest.mark.parametrize("plus", [False, True])
def test_a_fast_engine_calls_a_layer_that_was_changed(name, change, plus):
    own = network(plus=plus)
    fast, factorized = both(plus=plus)
    for one in (fast, factorized):
        CHANGES[change](getattr(one, name))
    x = images(fast, 3)
    weights = torch.randn(3, 10, generator=rng(2), dtype=torch.float64)
    found, expected, before = (
        one_step(one, x, weights) for one in (fast, factorized, own)
    )
    assert_close(found, expected, rtol=1e-8, atol=1e-11)
    apart = (found[1]["x"] - before[1]["x"]).abs().max()
    assert apart > 1e-3 * before[1]["x"].abs().max()


def test_a_layer_may_be_replaced_or_removed():
    fast, factorized = both()
    for one in (fast, factorized):
        one.norm4, one.norm7 = torch.nn.Identity(), None
        one.norm6 = torch.nn.Sequential()
        one.W1 = torch.nn.Sequential(one.W1, torch.nn.Tanh())
        one.W8 = torch.nn.Sequential(one.W8)
        del one.norm5
    x = images(fast, 3)
    assert_close(fast(x), factorized(x), rtol=1e-9, atol=1e-12)
    assert not torch.equal(fast(x), network()(x))


def test_pruned_weights_are_pruned_in_each_step():
    own = network(**PAPER)
    for name in ("spatial", "attribute"):
        torch.nn.utils.prune.random_unstructured(own.W5, name, 0.5)
    pruned = own.W5.spatial_mask == 0
    optimizer = torch.optim.SGD(own.parameters(), 0.05)
    for _ in range(2):
        optimizer.zero_grad()
        own(images(own, 3)).square().sum().backward()
        optimizer.step()
    own(images(own, 3))
    assert pruned.any() and (own.W5.spatial[pruned] == 0).all()
    kept = own.W5.spatial_orig[~pruned]
    assert_close(own.W5.spatial[~pruned], kept, rtol=0, atol=0)


@pytest.mark.parametrize("plus", [False, True])
def test_a_network_can_be_compiled_exported_and_traced(
    plus, no_shape_checks
):
    own = trained(network(plus=plus))
    x = images(own)
    expected, gradients = one_step(own, x, torch.ones(2, 10))
    compiled = torch.compile(own, backend="eager", fullgraph=True)
    try:
        found = compiled(x)
        (gradient,) = torch.autograd.grad(found.sum(), own.W5.spatial)
    finally:
        torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes are constants of a trace
        others = (
            torch.export.export(own, (x,)).module(),
            torch.jit.trace(own, x),
        )
    for scores in (found, *(other(x) for other in others)):
        assert_close(scores, expected, rtol=1e-9, atol=1e-12)
    expected = gradients["W5.spatial"]
    assert_close(gradient, expected, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_types_evaluate(dtype, plus):
    own = trained(network(plus=plus))
    x = images(own, 4, (32, 32))
    expected = own(x)
    found = own.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert_close(found.double(), expected, rtol=0.2, atol=0.2)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_a_network_gives_the_scores_of_the_cpu(kind, tmp_path):
    own, path = trained(network(**KINDS[kind])), tmp_path / "a.safetensors"
    own.save(path)
    moved, x = HCNN.load(path).cuda(), images(own)
    moved.save(path)
    assert_close(dict(HCNN.load(path).state_dict()), dict(own.state_dict()))
    for there in [moved] if own.config.plus else [moved, moved.fold()]:
        assert_close(there(x.cuda()).cpu(), own(x), rtol=1e-9, atol=1e-12)
    with pytest.raises(
        ValueError, match=r"the array is torch\.float64 on cpu"
    ):
        moved(x)


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (33, 16)])
def test_any_image_size_is_taken(size):
    for padding, norm in product(("zero", "periodic"), (False, True)):
        own = network(padding=padding, output_norm=norm)
        assert own(images(own, 2, size)).isfinite().all()


@pytest.mark.parametrize("padding", ["zero", "periodic"])
@pytest.mark.parametrize("steps, norm", [(0, False), (3, False), (3, True)])
@pytest.mark.parametrize("j", range(12))
def test_just_the_shifts_of_the_proposition_leave_the_scores(
    j, padding, steps, norm
):
    own = trained(network(padding=padding, output_norm=norm), steps)
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


@pytest.mark.parametrize("j", [3, 4, 7, 8])
def test_the_shifts_along_positions_follow_the_strides(j):
    strides = dict(spatial_strides=(4, 8))
    own = trained(network(padding="periodic", output_norm=False, **strides))
    step = invariant_shifts(own.config, j)["h"]
    with torch.no_grad():
        x_j = own.layer(images(own, size=(16, 16)), j)
        for shift in (1, 2, 4):
            error = invariance_error(
                lambda y: own.from_layer(y, j), x_j, [dict(h=shift)]
            ).error
            assert (error < 1e-10) == (shift % step == 0), (shift, error)


@pytest.mark.parametrize("kind", PLAIN)
def test_a_folded_network_gives_the_same_scores(kind):
    own = trained(network(**PLAIN[kind]))
    x, folded = images(own), own.fold()
    with torch.no_grad():
        assert_close(folded(x), own(x), rtol=1e-10, atol=1e-12)
        for j in range(13):
            x_j = folded.layer(x, j)
            assert_close(x_j, own.layer(x, j), rtol=1e-10, atol=1e-12)
            assert_close(
                folded.from_layer(x_j, j), folded(x), rtol=0, atol=1e-14
            )
    assert not any(p.requires_grad for p in folded.parameters())
    with pytest.raises(ValueError, match="cannot be trained"):
        folded.train()
    assert not any(m.training for m in folded.modules())
    assert not folded(x).requires_grad
    # the network stays as it was
    assert all(p.requires_grad for p in own.parameters())


@pytest.mark.parametrize("kind", PLAIN)
def test_a_folded_network_is_plain_convolutions(kind):
    folded = trained(network(**PLAIN[kind])).fold()
    config, names = folded.config, [f"W{j}" for j in range(1, 12)]
    for j, name in enumerate(names, 1):
        own = getattr(folded, name)
        assert type(own) is torch.nn.Conv2d and own.padding == (1, 1)
        assert own.kernel_size == (3, 3)
        stride = 2 if j in config.spatial_strides else 1
        assert own.stride == (stride, stride)
        zero = config.padding == "zero"
        assert own.padding_mode == ("zeros" if zero else "circular")
    names += ["W12"] if config.head == "dense" else []
    assert set(folded.state_dict()) == {
        f"{name}.{kind}" for name in names for kind in ("weight", "bias")
    }


@pytest.mark.parametrize("kind", PLAIN)
def test_a_folded_network_is_kept_by_its_filters_alone(kind, tmp_path):
    own = trained(network(**PLAIN[kind]))
    own.class_names = tuple(f"class {k}" for k in range(own.config.classes))
    folded, path = own.fold(), tmp_path / "a.safetensors"
    folded.save(path)
    again = HCNN.load(path)
    assert type(again) is type(folded) and not again.training
    assert again.config == own.config
    assert again.class_names == own.class_names
    x = images(own)
    assert torch.equal(again(x), folded(x))
    assert_close(again(x), own(x).detach(), rtol=1e-10, atol=1e-12)
    with safe_open(path, "pt") as file:
        shapes = {k: tuple(file.get_tensor(k).shape) for k in file.keys()}
    d, channels = own.config.classes, own.config.channels
    last = 8 if own.config.head == "dense" else d
    assert shapes["W1.kernel"] == (8, channels, 3, 3)
    assert shapes["W2.kernel"] == (8, 7, 3, 3)
    assert shapes["W7.kernel"] == (8, 3, 7, 3, 3)
    assert shapes["W11.kernel"] == (last, 3, 7, 3, 3)
    assert shapes["W11.bias"] == (2, 4, last) and shapes["W2.bias"] == (8,)
    assert len(shapes) == 22 + 2 * (own.config.head == "dense")


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("j", [2, 3, 11])
def test_a_folded_network_of_other_weights_is_not_saved(kind, j, tmp_path):
    own, path = trained(network(**PLAIN[kind])), tmp_path / "a.safetensors"
    folded, other = own.fold(), trained(network(1, **PLAIN[kind])).fold()
    folded.half().save(path)
    assert_close(own.fold().half().state_dict(), folded.state_dict())
    folded.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match="the weights of W2 are not those"):
        folded.save(path)
    folded = own.fold()
    folded.W1.weight[0, 0, 1, 1] += 1  # this one has no other form
    folded.W11.bias[0] += 1
    folded.save(path)
    assert torch.equal(HCNN.load(path)(images(own)), folded(images(own)))
    folded.W2.bias[-1] += 1  # one of K / 2 that are the same
    with pytest.raises(ValueError, match="the weights of W2 are not those"):
        folded.save(tmp_path / "b.safetensors")
    folded = own.fold()
    getattr(folded, f"W{j}").weight[0, 0, 1, 1] += 1e-3
    with pytest.raises(ValueError, match=f"the weights of W{j} are not"):
        folded.save(path)
    getattr(folded, f"W{j}").weight[0, 0, 1, 1] = math.nan
    with pytest.raises(ValueError, match=f"the weights of W{j} are not"):
        folded.save(path)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["W1", "norm2", "W5"])
def test_a_network_with_a_changed_layer_is_not_folded(name, change):
    own = network()
    CHANGES[change](getattr(own, name))
    with pytest.raises(
        ValueError, match=f"fold: W{name[-1]} or what follo"
    ):
        own.fold()


def test_a_network_without_its_normalization_is_not_folded():
    own = network()
    own.norm4 = None
    with pytest.raises(ValueError, match="fold: W4 or what follows it was"):
        own.fold()


def test_the_folded_network_of_the_paper_is_a_small_file(tmp_path):
    path = tmp_path / "a.safetensors"
    HCNN(preset("hcnn-cifar10")).fold().save(path)
    numbers = 97_650 + 32 + 8 * 4 * 8 * 16 + 4 * 8 * 10
    assert 4 * numbers < path.stat().st_size < 4 * numbers + 5000 < 500_000


def test_folding_and_loading_draw_no_random_numbers(tmp_path):
    own, before = network(), torch.get_rng_state()
    own.save(tmp_path / "a.safetensors")
    own.fold().save(tmp_path / "b.safetensors")
    for name in "ab":
        HCNN.load(tmp_path / f"{name}.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_a_loaded_network_learns_on(tmp_path):
    own, path = trained(network()), tmp_path / "a.safetensors"
    own.save(path)
    again = HCNN.load(path)
    path.unlink()
    assert_close(
        dict(trained(again).state_dict()), dict(trained(own).state_dict())
    )


def test_a_loaded_network_needs_its_file_no_more(tmp_path):
    own, path = network().eval(), tmp_path / "a.safetensors"
    for saved in (own, own.fold()):
        saved.save(path)
        again = HCNN.load(path)
        with open(path, "r+b") as file:  # overwritten, not replaced
            file.write(bytes(path.stat().st_size))
        assert_close(again(images(own)), own(images(own)))


def test_the_engine_is_chosen_when_a_network_is_loaded(tmp_path):
    for plus in (False, True):
        network(plus=plus).save(tmp_path / "a.safetensors")
        again = HCNN.load(tmp_path / "a.safetensors")
        assert again.engine == ("lean" if plus else "fused")
    with pytest.raises(ValueError, match=r"^load: engine is 'fused'"):
        HCNN.load(tmp_path / "a.safetensors", engine="fused")


@pytest.mark.parametrize(
    "kind, size", [*((kind, (6, 9)) for kind in KINDS), ("zero", 8)]
)
def test_an_onnx_file_gives_the_same_scores(kind, size, tmp_path, capfd):
    onnxruntime = pytest.importorskip("onnxruntime")
    own = trained(network(**KINDS[kind])).float()
    own.mean = (0.5,) * own.config.channels
    path = tmp_path / "a.onnx"
    export_onnx(own, path, size)
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
    assert capfd.readouterr() == ("", "")
    session = onnxruntime.InferenceSession(path)
    for n in (1, 2, 5):
        x = images(own, n, (8, 8) if size == 8 else size).float()
        (scores,) = session.run(["scores"], {"images": x.numpy()})
        expected = own(x).detach()
        error = (torch.from_numpy(scores) - expected).abs().max()
        assert error < 1e-4 * expected.abs().max()
    kept = session.get_modelmeta().custom_metadata_map
    about = json.loads(kept["hcnn"])
    assert about["config"]["K"] == 8 and about["mean"] == list(own.mean)
    assert str(ROOT).encode() not in path.read_bytes()
    assert next(own.parameters()).dtype == torch.float32  # as it was


def test_a_folded_network_in_float64_is_exported_too(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    folded = trained(network()).fold()
    with torch.autocast("cpu", torch.bfloat16):
        export_onnx(folded, tmp_path / "a.onnx", 8)
    x = images(folded)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    (scores,) = session.run(None, {"images": x.float().numpy()})
    assert_close(
        torch.from_numpy(scores).double(), folded(x), rtol=1e-4, atol=1e-5
    )
    assert folded.W3.weight.dtype == torch.float64


def test_without_the_packages_for_onnx_the_error_says_how_to_get_them(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError) as caught:
        export_onnx(network(), tmp_path / "a.onnx")
    assert "onnxscript" in str(caught.value)
    assert str(caught.value).endswith('pip install "hcnn[export]"')
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_activations_keep_their_scale(kind):
    own = network(**KINDS[kind]).train()
    x = images(own, 8, (16, 16))
    scales = [own.layer(x, j).std().item() for j in range(1, 12)]
    assert all(1 / 4 < scale < 2 for scale in scales), scales


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
    kinds = {value.dtype for value in folded.filters().values()}
    assert kinds == {x.dtype}


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


def test_a_configuration_of_numpy_s_integers_is_the_same(no_shape_checks):
    one, five = numpy.int64(1), numpy.int32(5)
    own = HCNNConfig(
        classes=10 * one,
        K=8 * one,
        Q=five,
        support=(3 * one, 7 * one),
        spatial_strides=(five, 9 * one),
    )
    assert own == HCNNConfig(K=8, Q=5, support=(3, 7))
    json.dumps(dataclasses.asdict(own))
    assert layer_sizes(8 * one)[0].h == 8


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
            dict(change_about=lambda a: a.update(folded=True)),
            "nothing for W1.bias; its own configuration expects (8,)",
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
    assert config.output_norm
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
            "engine is 'gpu'; expected one of 'auto', 'factorized', 'fused'",
        ),
        (
            ValueError,
            lambda: network(plus=True, engine="fused"),
            "engine is 'fused' for the variant (+); expected 'lean', "
            "'factorized' or 'auto'",
        ),
        (
            ValueError,
            lambda: network(engine="lean"),
            "engine is 'lean' for a plain network; expected 'fused', "
            "'factorized' or 'auto'",
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
            "the array has shape (1, 1, 8, 8); x_0 of this network has (n, 3, h, w); give a batch of images, of one image image[None]",
        ),
        (
            ValueError,
            lambda: network()(torch.zeros(1, 3, 0, 8)),
            "the array has shape (1, 3, 0, 8); x_0 of this network has (n, 3, h, w)",
        ),
        (
            ValueError,
            lambda: network()(torch.zeros(1, 3, 8, 8)),
            "HCNN: the array is torch.float32 on cpu, the network "
            "torch.float64 on cpu; expected the same of both",
        ),
        (
            ValueError,
            lambda: network().from_layer(
                torch.zeros(1, 8, 8, 8, device="meta").double(), 1
            ),
            "from_layer: the array is torch.float64 on meta, the network "
            "torch.float64 on cpu; expected the same of both",
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
            lambda: HCNNConfig(plus="False"),
            "plus is 'False'; expected True or False",
        ),
        (
            ValueError,
            lambda: HCNNConfig(output_norm=1),
            "output_norm is 1; expected True or False",
        ),
        (
            ValueError,
            lambda: HCNNConfig(classes=True),
            "classes is True; expected a positive integer",
        ),
        (
            TypeError,
            lambda: HCNN("hcnn8-cifar10"),
            "config is 'hcnn8-cifar10'; expected an HCNNConfig",
        ),
        (
            ValueError,
            lambda: HCNN(HCNNConfig(), mean=[0.5] * 3, std=[1, 0, 1]),
            "std is (1.0, 0.0, 1.0); expected numbers above 0",
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
