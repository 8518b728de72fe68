"""What was tried for the fast engine is right, if not faster."""

import json
import time
from functools import partial
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from benchmarks import tried
from hcnn import bench, results
from hcnn.conv5d import attribute_conv5d
from hcnn.runtime import rng

SMALL = dict(n=2, b=4, c=8, d=3, support=(3, 5))
FUNCTIONS = {
    "dense": tried.dense,
    **{name: tried.blocks_of(k) for name, k in tried.BLOCKS.items()},
    "winograd_2": tried.winograd(2),
    "winograd_4": tried.winograd(4),
    "fourier_zero": tried.fourier_zero,
}
PERIODIC = {
    "periodic_blocks": tried.periodic_blocks,
    "around": partial(tried.kept, padding="periodic"),
}


def direct(padding):
    """The layer as chapter 03 has it, its ELU, and the next mean."""

    def function(mean, kernel, bias_map):
        z = attribute_conv5d(mean[:, None], kernel, padding=padding)
        return F.elu(z + bias_map[..., None, None]).mean(1)

    return function


def randn(*shape, seed=0):
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def agree(function, padding, case):
    found = tried.step(function, case)()
    expected = tried.step(direct(padding), case)()
    assert len(found) == 4
    assert_close(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("plane", [3, 4, 5, 8])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_variant_is_the_layer_gradients_included(name, plane):
    case = tried.case(plane, torch.float64, **SMALL)
    agree(FUNCTIONS[name], "zero", case)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_planes_need_not_be_square(name):
    case = tried.case(7, torch.float64, **SMALL)
    mean, *weights = case.inputs
    agree(
        FUNCTIONS[name],
        "zero",
        tried.Case((mean[..., :4, :], *weights), case.d_out[..., :4, :]),
    )


@pytest.mark.parametrize("name", PERIODIC)
@pytest.mark.parametrize("b, c", [(2, 2), (4, 6), (6, 4), (8, 16)])
def test_both_products_are_the_layer_with_periodic_padding(name, b, c):
    sizes = SMALL | dict(b=b, c=c, support=(3, 3))
    agree(PERIODIC[name], "periodic", tried.case(3, torch.float64, **sizes))


@pytest.mark.parametrize("name", PERIODIC)
def test_supports_wider_than_an_axis_go_around(name):
    sizes = SMALL | dict(b=4, c=4, support=(7, 9))
    agree(PERIODIC[name], "periodic", tried.case(3, torch.float64, **sizes))


@pytest.mark.parametrize("group", [tried.layer, tried.periodic])
def test_each_group_begins_with_what_was_kept(group):
    made = group(tried.case(4, torch.float64, **SMALL))
    assert next(iter(made)) == "kept" and len(made) > 1
    for trial in made.values():
        assert trial.about["error"] < 1e-14
        assert trial.about["kernel_gradient_error"] < 1e-13


def test_a_wrong_variant_is_not_timed():
    case = tried.case(4, torch.float32, **SMALL)

    def biased(mean, kernel, bias_map):
        return tried.kept(mean, kernel, bias_map) + 1e-2

    def detached(mean, kernel, bias_map):
        return tried.kept(
            mean, 0.9 * kernel + 0.1 * kernel.detach(), bias_map
        )

    for wrong in (biased, detached):
        with pytest.raises(AssertionError, match="error"):
            tried.trials({"wrong": wrong}, tried.kept, case)


@pytest.mark.parametrize(
    "name, blocks",
    [("rows", 1), ("halves", 2), ("pairs", 4), ("singles", 8)],
)
def test_the_size_of_a_block_is_what_its_name_says(name, blocks):
    inputs = tried.case(2, torch.float32, n=1).inputs
    with mock.patch.object(F, "conv2d", wraps=F.conv2d) as conv2d:
        tried.blocks_of(tried.BLOCKS[name])(*inputs)
    assert conv2d.call_count == 4 * blocks  # four b'


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_products_of_winograd_make_a_correlation(m):
    B, G, A = tried.winograd_matrices(m)
    x, taps = randn(m + 2), randn(3, seed=1)
    expected = (x.unfold(0, 3, 1) * taps).sum(1)
    assert_close(A @ ((B @ x) * (G @ taps)), expected)
    assert_close(B, B.round(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("width", [2, 5, 6])
def test_four_convolutions_of_a_column_make_one_of_three(width):
    x, weight = randn(2, 3, 4, width), randn(5, 3, 3, 3, seed=1)
    operands = tried.line_operands(x, weight)
    assert all(image.shape[3] == (width + 1) // 2 for image in operands[0])
    done, gradients = tried.convolutions(*operands, (1, 0))()
    assert_close(
        tried.line_result(done, width), F.conv2d(x, weight, padding=1)
    )
    assert len(done) == 4 and len(gradients) == 8


def test_moments_of_copies_are_those_of_the_closed_form():
    made = tried.moments(tried.case(5, torch.float64, **SMALL))
    assert list(made) == ["kept", "copies"]
    assert max(made["kept"].about.values()) < 1e-13


@pytest.mark.parametrize("name", tried.ELUS)
def test_an_elu_by_other_means_is_the_elu(name):
    z = randn(50)
    expected = F.elu(z)
    tried.ELUS[name](z, torch.empty_like(z))
    assert_close(z, expected)
    assert (expected < 0).any() and (expected > 0).any()


def test_the_pointwise_work_is_that_of_elu_and_mean():
    case = tried.case(3, torch.float64, **SMALL)
    blocks = [z.requires_grad_() for z in tried.blocks_before_elu(case)]
    expected = sum(F.elu(z) for z in blocks) / len(blocks)
    gradients = torch.autograd.grad(
        expected, blocks, case.d_out.flatten(1, 2)
    )
    found = tried.pointwise(
        case, tried.elu_and_mean, tried.elu_and_mean_backward
    )()
    assert_close(found, (expected.detach(), *gradients))


def test_rounds_differ_in_order_alone():
    made = []
    calls = {
        k: lambda k=k: (made.append(k), time.sleep(0.002)) for k in "abc"
    }
    with mock.patch.object(bench, "warm_up", lambda call, device: 0.06):
        found = tried.timings(calls, 4)
    rounds = [made[i : i + 6] for i in range(0, 24, 6)]  # twice each
    assert all(sorted(order) == list("aabbcc") for order in rounds)
    assert len({tuple(order) for order in rounds}) > 1
    assert all(len(values) == 4 for values in found.values())
    assert all(0.002 < v < 1 for values in found.values() for v in values)


# the figures ----------------------------------------------------------------


def times_and_trials(with_compiler=True):
    """Two seconds for what was kept, one for what won, three for others."""
    names = {
        "layer": ["kept", *FUNCTIONS],
        "line": ["kept", "products"],
        "periodic": ["kept", "blocks"],
        "moments": ["kept", "copies"],
        "elu": ["kept", "exp", "sigmoid"],
        "compiled": ["kept", "compiled"][: 1 + with_compiler],
    }
    times, trials = {}, {}
    about = dict.fromkeys(
        ("error", "input_gradient_error", "worst_error"), 0.01
    )
    for group, planes in tried.GROUPS.items():
        for precision in bench.TYPES:
            for plane in planes:
                for name in names[group.__name__]:
                    key = group.__name__, name, precision, plane
                    fast = name == "pairs" and plane == 16
                    least = 2 if name == "kept" else 1 if fast else 3
                    if group is tried.line:
                        least *= 10
                    times[key] = [least + extra for extra in (4, 0, 0, 1)]
                    trials[key] = tried.Trial(
                        None, about | dict(compile_seconds=7.0)
                    )
    return times, trials


@pytest.mark.parametrize("with_compiler", [True, False])
def test_the_entry_has_a_finding_for_each_variant(with_compiler, tmp_path):
    times, trials = times_and_trials(with_compiler)
    seconds = dict(kept=[2.0, 3.0], malloc=[2.0], cache=[4.0])
    data = tried.entry(times, trials, seconds)
    results.record("tried-here", data, root=tmp_path)
    assert len(tried.findings(data)) == len(tried.FINDINGS)
    text = data["layer"]["winograd_4"]["finding"]
    assert "1.5 (float32) and 1.5 (bf16) times" in text and "1 %" in text
    pairs = data["layer"]["pairs"]
    assert "0.5 to 1.5 (float32)" in pairs["finding"]
    row = pairs["bf16"]["plane16"]
    assert row["least"] == 1000 and row["against"] == 0.5
    assert row["ms"] == 1500
    assert data["line"]["products"]["bf16"]["plane8"]["against"] == 1.5
    assert "takes 2 times" in data["process"]["cache"]["finding"]
    text = data["compiled"]["compiled"]["finding"]
    assert (
        "7 (bf16) seconds" if with_compiler else "no C++ compiler"
    ) in text
    key = "tried-here.choice.bf16.layers.against"
    assert results.value(key, root=tmp_path) < 1


def test_a_choice_is_judged_by_rounds_that_did_not_make_it():
    times, _ = times_and_trials()
    for key in times:  # luck in a round that chooses
        if key[1:] == ("dense", "float32", 8):
            times[key] = [0.1, 3, 3, 3]
    found = tried.choice(times, "float32")
    assert found["plane32"] == "kept"
    assert found["plane16"] == "pairs" and found["plane8"] == "dense"
    # of stride 1: two layers at 32, three at 16, two at 8
    chosen, fixed = 2 * 2 + 3 * 1 + 2 * 3, 2 * (2 + 3 + 2)
    assert found["against"] == pytest.approx(chosen / fixed)


def test_a_process_tells_the_seconds_of_its_rounds(capsys, monkeypatch):
    monkeypatch.setattr(tried, "rounds", lambda: [0.5, 0.25])
    monkeypatch.setenv(tried.CAPACITY, "1024")
    monkeypatch.setattr("sys.argv", ["tried", "--round"])
    tried.main()
    assert json.loads(capsys.readouterr().out) == [0.5, 0.25]
