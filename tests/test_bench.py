"""The benchmark: peers, clock, floor, skips, resuming, the table."""

import itertools
import json
import signal
import subprocess

import pytest
import torch
from torch.testing import assert_close

from benchmarks import __main__ as program
from benchmarks import cells, peers, summary
from hcnn import bench, results
from hcnn.conv5d import attribute_conv5d, layer_cost
from hcnn.fused import band
from hcnn.network import HCNN, preset
from hcnn.runtime import rng

CPU = torch.device("cpu")


def network(plus=False, classes=10):
    """With statistics, biases and factors that are not the initial ones."""
    config = preset(
        "hcnn8-cifar10", Q=3, plus=plus, classes=classes, output_norm=False
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = HCNN(config, "factorized").double()
        for name, parameter in own.named_parameters():
            if "bias" in name or "sc" in name or "shift" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    own(images(6, seed=5))
    return own


def images(n=2, size=9, seed=1):
    shape = (n, 3, size, size)
    return torch.randn(shape, generator=rng(seed), dtype=torch.float64)


def gradients(module, own, x):
    scores = module(x)
    return scores, torch.autograd.grad(
        scores.square().sum(), list(own.parameters())
    )


# peers ----------------------------------------------------------------------


@pytest.mark.parametrize("plus", [False, True])
def test_the_published_graph_trains_and_evaluates_as_the_network(plus):
    own = network(plus)
    peer = bench.Published(own)
    x = images()
    found = gradients(peer, own, x)
    after = {k: v.clone() for k, v in own.state_dict().items()}
    own.load_state_dict(network(plus).state_dict())
    expected = gradients(own, own, x)
    assert_close(found, expected, rtol=1e-9, atol=1e-11)
    assert_close(after, dict(own.state_dict()))
    peer.eval()
    assert not own.training
    assert_close(peer(x), own(x))


def test_the_loop_of_conv3d_evaluates_as_the_folded_network():
    own = network().eval()
    peer = peers.Conv3dLoop(own)
    assert_close(peer(images()), own.fold()(images()))
    count = sum(p.numel() for p in peer.weights)
    count += peer.W1.weight.numel() + peer.W2.weight.numel()
    assert count == own.parameter_count()


@pytest.mark.parametrize("b, c, stride", [(4, 8, 1), (5, 7, 2), (1, 4, 1)])
def test_a_loop_of_conv3d_is_the_direct_layer(b, c, stride):
    mean = torch.randn(2, b, c, 5, 4, generator=rng(0), dtype=torch.float64)
    weight = torch.randn(
        3, min(3, b), 5, 3, 3, generator=rng(1), dtype=torch.float64
    )
    found = peers.conv4d(mean, weight, stride)
    expected = attribute_conv5d(mean[:, None], weight, stride=stride)
    assert_close(found, expected)


def test_the_unstructured_network_is_the_folded_one_with_banded_weights():
    own = network().eval()
    peer = peers.Unstructured(own).double()
    direct = peers.Conv3dLoop(own)
    kernels = [own.W1.weight, own.W2.weight[:, None], *direct.weights]
    biases = [own.W1.bias, own.W2.bias.expand(1, 4, -1), *direct.biases]
    K = own.config.K
    with torch.no_grad():
        for j, layer in enumerate(peer.layers, 1):
            kernel, bias = kernels[j - 1], biases[j - 1]
            if j > 1:  # (b2 c2 d 9 b c) as output, input, plane
                kernel = band(kernel.flatten(3), K // 2 if j > 2 else 1, K)
                kernel = kernel.flatten(4).flatten(0, 2).mT
                kernel = kernel.unflatten(-1, (3, 3))
            assert layer.weight.shape == kernel.shape
            layer.weight.copy_(kernel)
            layer.bias.copy_(bias.flatten())
    assert_close(peer(images()), own(images()))


def test_every_competitor_takes_a_step_and_none_trains_the_folded():
    config = preset("hcnn8-cifar10", Q=2, classes=3, output_norm=False)
    calls = bench.calls(
        peers.ALL, config, 4, 2, CPU, ["float32", "bf16"], bench.PHASES
    )
    assert len(calls) == 4 * len(peers.ALL) - 2
    assert "folded.bf16.training" not in calls
    for call in calls.values():
        call()


def test_ours_is_the_fast_engine_of_each_variant():
    assert bench.ours(preset("hcnn8-cifar10")).engine == "fused"
    assert bench.ours(preset("hcnn8-plus-cifar10")).engine == "lean"


# the clock and the floor ----------------------------------------------------


def test_competitors_take_turns():
    order = []
    calls = {n: lambda n=n: order.append(n) for n in ("a", "b")}
    found = bench.timings(calls, CPU, 3, warm={"a": 1.0, "b": 0.02})
    assert order == ["a", "b", "b", "b"] * 3  # b fills a twentieth second
    assert {n: len(t) for n, t in found.items()} == {"a": 3, "b": 3}


@pytest.mark.parametrize("each, count", [(3.0, 1), (0.07, 3)])
def test_a_warm_up_is_a_fifth_of_a_second_or_one_call(
    monkeypatch, each, count
):
    times = []
    monkeypatch.setattr(
        bench.time, "perf_counter", lambda: each * len(times)
    )
    last = bench.warm_up(lambda: times.append(0), CPU)
    assert last == pytest.approx(each) and len(times) == count


def test_a_call_among_several_is_timed_by_their_mean(monkeypatch):
    clock = itertools.count(0, 6)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock))
    assert bench.seconds(lambda: None, CPU, 3) == 2


def test_the_floor_is_three_passes_of_what_lies_in_the_support():
    config = preset("hcnn-cifar10")
    work = sum(row.multiply_adds for row in layer_cost(32))
    assert 0.75e9 < work < 0.77e9
    assert bench.floor_seconds(config, 32, 2e9) == 3 * work / 2e9
    evaluation = bench.floor_seconds(config, 32, 2e9, "evaluation")
    assert evaluation == work / 2e9
    wrapped = preset("hcnn-cifar10", padding="periodic")
    assert bench.floor_seconds(wrapped, 32, 2e9) > 3.4e9 / 2e9
    plus = sum(row.factor_multiply_adds for row in layer_cost(32, Q=32))
    config = preset("hcnn-plus-cifar10")
    assert bench.floor_seconds(config, 32, 2e9) == 3 * plus / 2e9
    assert plus > 3 * work  # it has no folded filters


def test_the_rates_count_the_products_of_both_calls():
    rates = bench.rate_calls(CPU)
    assert set(rates) == {
        f"{kind}.{precision}"
        for kind in ("matmul", "conv2d")
        for precision in bench.TYPES
    }
    assert rates["matmul.bf16"][1] == 2048**3
    assert rates["conv2d.float32"][1] == 8 * 32 * 32 * 128 * 512 * 9


def test_peak_memory_is_what_a_call_held_at_its_worst():
    def call():
        for _ in range(3):  # one after the other: 64 MiB at a time
            torch.ones(16 * 2**20)

    assert 60 < bench.peak_memory(call, CPU) / 2**20 < 90
    assert bench.peak_memory(lambda: None, CPU) < 4 * 2**20


def test_memory_of_a_step_is_measured_in_a_process_of_its_own():
    config = preset("hcnn8-cifar10", Q=2, output_norm=False)
    about = config, 8, 50, "float32", CPU
    peak = bench.fresh_step_memory(bench.published, *about)
    assert 2**20 < peak < 2**29
    with pytest.raises(RuntimeError, match=r"fresh process: .*negative"):
        bench.fresh_step_memory(bench.ours, config, 8, -1, "bf16", CPU)


def test_a_process_that_the_system_kills_ran_out_of_memory(monkeypatch):
    killed = subprocess.CompletedProcess(
        [], -signal.SIGKILL, b"", b"warned"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(
        RuntimeError, match="probably out of memory; take a"
    ):
        bench.fresh_step_memory(bench.published, None, 8, 1, "bf16", CPU)


@pytest.mark.parametrize(
    "about, kind",
    [
        (dict(amx=True, avx512_bf16=True), "amx"),
        (dict(amx=False, avx512_bf16=True), "avx512-bf16"),
        (dict(amx=True, onednn_max_cpu_isa="AVX2"), "amx-as-avx2"),
    ],
)
def test_a_machine_is_named_by_what_makes_it_fast(monkeypatch, about, kind):
    record = bench.environment() | about
    monkeypatch.setattr(bench, "environment", lambda: record)
    name, words = bench.machine(CPU)
    assert name == kind
    assert ("no AMX" in words) == (not about["amx"])
    assert f"{record['threads']} threads" in words


# the short form -------------------------------------------------------------


def figures(names=("published", "ours", "folded"), memory=True):
    """As `measure` gives them: ours ten times as fast, at half the floor."""
    data = dict(
        model="hcnn-cifar10",
        K=16,
        Q=32,
        batch=4,
        size=32,
        repeats=5,
        machine="a machine",
    )
    for precision, phase in itertools.product(bench.TYPES, bench.PHASES):
        for name in names:
            if (name, phase) != ("folded", "training"):
                ms = 250.0 if name == "published" else 25.0
                data[f"{name}.{precision}.{phase}"] = ms
        data[f"floor.{precision}.{phase}"] = 12.5
    for precision in bench.TYPES:
        data[f"rate.matmul.{precision}"] = 123e9
        data[f"rate.conv2d.{precision}"] = 456e9
        for name in ("published", "ours") if memory else ():
            data[f"{name}.{precision}.memory"] = 789 * 2**20
    return data


def test_the_table_says_what_was_found():
    text = bench.table(figures())
    rows = {
        line[:18].strip(): line[18:].split() for line in text.split("\n")
    }
    assert max(map(len, text.split("\n"))) <= 80
    assert rows["this package"] == ["25", "10×"] * 4
    assert rows["published graph"] == ["250", "1×"] * 4
    assert rows["folded"] == ["25", "10×"] * 2
    assert rows["reached"] == ["50%"] * 4
    assert "123 in float32, 123 in bf16" in text
    assert "456 in float32" in text
    assert rows["peak, here"][-2:] == ["in", "bf16"] and "789 in" in text
    assert "median of 5 rounds" in text and "a machine" in text


def test_the_table_of_plus_has_no_folded_row_and_memory_is_optional():
    text = bench.table(figures(("published", "ours"), memory=False))
    assert "folded" not in text and "MiB" not in text


def test_the_short_form_prints_its_table(monkeypatch, capsys):
    monkeypatch.setattr(
        bench,
        "rate_calls",
        lambda device: {
            f"{kind}.{precision}": (lambda: None, 10**9)
            for kind in ("matmul", "conv2d")
            for precision in bench.TYPES
        },
    )
    monkeypatch.setattr(
        bench, "warm_up", lambda call, device: call() or 1.0
    )
    monkeypatch.setattr(bench, "fresh_step_memory", lambda *_: 2**20)
    data = bench.run("hcnn8-plus-cifar10", batch=1, size=4, repeats=1)
    assert capsys.readouterr().out == bench.table(data) + "\n"
    assert data["ours.bf16.training"] > 0
    assert "folded.bf16.evaluation" not in data
    assert json.dumps(data)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(model="hcnn8-cifar10-periodic"), "take hcnn8-cifar10"),
        (dict(model="hcnn-cifar10-authors"), "take hcnn-cifar10"),
        (dict(model="resnet"), "unknown name"),
        (dict(batch=0), "batch is 0; expected 1 or more"),
        (dict(repeats=-1), "repeats is -1"),
    ],
)
def test_the_short_form_refuses(changes, message):
    with pytest.raises(ValueError, match=message):
        bench.run(**changes)


# cells ----------------------------------------------------------------------


@pytest.mark.parametrize("device", [CPU, torch.device("cuda")])
def test_what_foretells_a_cell_comes_before_it(device):
    seen = set()
    for cell in cells.all_cells(device):
        if cell.smaller is not None:
            assert (
                f"{cell.key.rpartition('batch')[0]}batch{cell.smaller}"
                in seen
            )
            assert cell.smaller < cell.batch
        assert cell.key not in seen
        seen.add(cell.key)
    assert any(key.startswith("gpu") for key in seen) == (device != CPU)


def test_the_supports_are_those_of_the_presets():
    for name in ("hcnn-cifar10", "hcnn8-cifar10"):
        config = preset(name, output_norm=False)
        assert cells.Cell("grid", config.K, 32, 8).config == config


@pytest.mark.parametrize(
    "entry, ratio, reason",
    [
        (dict(seconds=1.0, bytes=2**30), 4, None),
        (dict(seconds=3.0, bytes=2**30), 4, "foretold 12 s, more than 10"),
        (
            dict(seconds=1.0, bytes=2**30),
            16,
            "foretold 16 GiB, more than 10",
        ),
        (dict(skipped="failed: too large"), 4, "failed: too large"),
    ],
)
def test_a_cell_is_skipped_by_what_the_smaller_one_foretells(
    entry, ratio, reason
):
    found = cells.forecast(entry, ratio, cells.MOST_BYTES)
    assert found.get("skipped") == reason
    again = cells.forecast(found, 4, cells.MOST_BYTES)
    assert ("skipped" in again) >= ("skipped" in found)


def small(**changes):
    fields = dict(group="grid", K=8, size=8, batch=16, smaller=4)
    return cells.Cell(**fields | changes)


def test_what_is_skipped_is_not_run_and_what_fails_is_marked(monkeypatch):
    def forbidden():
        raise AssertionError("this was to be skipped")

    def fails():
        raise RuntimeError("more than 2^31 elements\nand a traceback")

    calls = {"slow": forbidden, "large": fails, "quick": lambda: None}
    monkeypatch.setattr(bench, "calls", lambda *_: dict(calls))
    before = {name: dict(seconds=0.1, bytes=0) for name in calls}
    before["slow"]["seconds"] = 5.0
    found = cells.measure(small(), before, CPU, 2)
    assert found["slow"]["skipped"] == "foretold 20 s, more than 10"
    assert found["slow"]["seconds"] == 20
    assert found["large"] == dict(skipped="failed: more than 2^31 elements")
    quick = found["quick"]
    assert 0 < quick["least"] <= quick["seconds"] <= quick["most"] < 0.01


def test_a_cell_of_promises_measures_the_rates_in_the_same_rounds(
    monkeypatch,
):
    monkeypatch.setattr(bench, "calls", lambda *_: {"a": lambda: None})
    monkeypatch.setattr(
        bench, "rate_calls", lambda _: {"matmul.bf16": (lambda: None, 10)}
    )
    found = cells.measure(small(group="must_show"), None, CPU, 1)
    rate = found["rate.matmul.bf16"]
    assert rate["rate"] == 10 / rate["seconds"] and "a" in found


def test_memory_is_foretold_before_it_is_taken(monkeypatch):
    asked = []

    def step(build, config, size, batch, precision, device):
        asked.append((build, batch))
        if build is bench.published:
            return 2 * 2**30 * batch // 8
        if precision == "bf16":
            raise RuntimeError("killed")
        return 10**6 * batch + 10**7

    monkeypatch.setattr(bench, "fresh_step_memory", step)
    monkeypatch.setattr(cells, "memory", lambda device: 1e12)
    found = cells.measure_memory(small(group="memory", batch=50), CPU)
    assert "GiB, more than 10" in found["published.float32"]["skipped"]
    assert found["ours.float32"]["bytes"] == 60 * 10**6
    assert found["ours.bf16"] == dict(skipped="failed: killed")
    assert (bench.published, 50) not in asked
    promised = small(group="must_show_memory", batch=50)
    found = cells.measure_memory(promised, CPU)
    assert "skipped" not in found["published.bf16"]


# a run ----------------------------------------------------------------------


def fake(cell, before=None, device=CPU, repeats=5):
    """Entries of a machine whose time is the work, at 1e9 a second."""
    work = {
        name: sum(
            row.factor_multiply_adds
            if name != "ours"
            else row.multiply_adds
            for row in layer_cost(
                cell.size, **cell.config.geometry, Q=cell.Q
            )
        )
        for name in cell.names
    }
    entries = {}
    for name, precision, phase in itertools.product(
        cell.names, cell.precisions, cell.phases
    ):
        t = work[name] * cell.batch / (2e9 if precision == "bf16" else 1e9)
        entries[f"{name}.{precision}.{phase}"] = (
            dict(seconds=t, bytes=0, least=t, most=1.5 * t)
            if cell.batch < 256
            else dict(seconds=t, bytes=0, skipped="foretold 99 s")
        )
    if cell.group == "must_show":
        for kind, precision in itertools.product(
            ("matmul", "conv2d"), cell.precisions
        ):
            entries[f"rate.{kind}.{precision}"] = dict(
                seconds=1,
                least=1,
                most=1,
                rate=3e9 if kind == "matmul" else 6e9,
            )
    return entries


def fake_memory(cell, device):
    return {
        f"{name}.{precision}": dict(
            bytes=2**20 * (40 if name == "published" else 2)
        )
        for name in cell.names
        for precision in cell.precisions
    }


@pytest.fixture
def no_work(monkeypatch, tmp_path):
    """Cells cost nothing, and everything is written below tmp_path."""
    done = []

    def measure(cell, *rest):
        done.append(cell.key)
        return fake(cell)

    def measure_memory(cell, device):
        done.append(cell.key)
        return fake_memory(cell, device)

    def record(name, data, *, root, files):
        root = root or tmp_path / "results"
        return own_record(name, data, root=root, files=files)

    own_record = results.record
    monkeypatch.setattr(cells, "measure", measure)
    monkeypatch.setattr(cells, "measure_memory", measure_memory)
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    monkeypatch.setattr(results, "record", record)
    monkeypatch.setattr(bench, "machine", lambda device: ("toy", "a toy"))
    return done


def test_a_run_that_was_stopped_goes_on_and_then_adds_one_entry(
    no_work, tmp_path, capsys
):
    arguments = ["--only", "must-show", "--device", "cpu"]
    for count in (1, 2, 3):
        status = program.main([*arguments, "--minutes", "0"])
        assert status == program.UNFINISHED and len(no_work) == count
        assert f"{count} of 4 cells" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()
    assert program.main(arguments) == 0
    assert len(no_work) == len(set(no_work)) == 4
    assert "NOT MET" in capsys.readouterr().out
    (entry,) = results.entries(root=tmp_path / "results")
    assert entry.name == "bench-toy-must-show"
    assert {"environment", "command", "clock"} <= set(entry.data)
    assert (entry.path / "bench.svg").stat().st_size > 1000
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_run_whose_code_was_changed_meanwhile_is_not_recorded(
    no_work, tmp_path, monkeypatch
):
    digests = itertools.chain(["before"], itertools.repeat("after"))
    monkeypatch.setattr(cells, "code_digest", lambda: next(digests))
    with pytest.raises(SystemExit, match="nothing is recorded"):
        program.main(["--only", "must-show", "--device", "cpu"])
    assert not (tmp_path / "results").exists()


def test_a_run_of_everything_is_one_entry_that_pages_can_read(
    no_work, tmp_path
):
    assert program.main(["--device", "cpu"]) == 0
    root = tmp_path / "results"

    def value(key):
        return results.value(f"bench-toy.{key}", root=root)

    assert value("must_show.K16.bf16.speedup_target") == 13
    assert value("grid.K12.Q32.size16.batch4.ours.bf16.training.ms") > 0
    assert value("growth.K.ours.float32.predicted") > 3
    assert value("memory.K24.unstructured.bf16.mib") == 2
    skipped = value("grid.K8.Q32.size8.batch256.ours.bf16.training.skipped")
    assert skipped == "foretold 99 s"
    assert root.joinpath("bench-toy-1/run.json").stat().st_size < 400_000


def test_a_quick_run_leaves_the_ledger_alone(no_work, tmp_path):
    assert program.main(["--quick", "--device", "cpu"]) == 0
    assert not (tmp_path / "results").exists()
    assert (tmp_path / "runs/quick/bench-toy-1/run.json").exists()


def test_other_code_starts_a_run_anew(monkeypatch, tmp_path):
    (tmp_path / "hcnn").mkdir()
    monkeypatch.setattr(cells, "ROOT", tmp_path)
    before = cells.code_digest()
    assert cells.code_digest() == before
    (tmp_path / "hcnn/fused.py").write_text("faster")
    assert cells.code_digest() != before


# the summary ----------------------------------------------------------------


def test_an_exponent_is_the_slope_between_logarithms():
    x = [1, 2, 4, 16]
    assert summary.exponent(x, [3 * v**1.5 for v in x]) == 1.5
    assert summary.exponent(x, [7, 7, 7, 7]) == 0


def test_growth_is_that_of_the_work_where_time_is_work():
    grid = {
        cell: fake(cell)
        for cell in cells.all_cells(CPU)
        if cell.group == "grid"
    }
    found = summary.growth(grid)
    assert len(found) == 16
    for key, row in found.items():
        assert row["measured"] == row["predicted"], key
    assert found["batch.ours.bf16"] == dict(
        values=[1, 4, 8, 16, 50], measured=1, predicted=1
    )
    assert found["Q.ours.float32"]["predicted"] == 0
    assert found["Q.published.float32"]["predicted"] > 0.9
    assert found["size.ours.float32"]["predicted"] == 2

    # both exponents of a row are over the same points
    (largest,) = (c for c in grid if c.key == "grid.K16.Q32.size16.batch50")
    lost = {"published.bf16.training": dict(skipped="too large")}
    grid[largest] = grid[largest] | lost
    found = summary.growth(grid)
    for name in ("published", "ours"):
        assert found[f"batch.{name}.bf16"]["values"] == [1, 4, 8, 16]
        assert found[f"batch.{name}.float32"]["values"][-1] == 50


def promised(device=CPU, kind="amx"):
    chosen = [c for c in cells.all_cells(device) if "show" in c.group]
    chosen += [c for c in cells.all_cells(device) if c.group == "gpu"]
    measured = {
        cell: fake_memory(cell, device)
        if cell.group.endswith("memory")
        else fake(cell)
        for cell in chosen
    }
    return summary.summary(measured, kind, device)["must_show"]


def test_promises_are_kept_with_their_targets():
    found = promised()
    ratio = sum(r.factor_multiply_adds for r in layer_cost(32)) / sum(
        r.multiply_adds for r in layer_cost(32)
    )
    K16 = found["K16"]
    assert K16["float32"]["speedup"] == pytest.approx(ratio, rel=1e-3)
    assert K16["bf16"]["speedup"] == pytest.approx(2 * ratio, rel=1e-3)
    assert K16["bf16"]["speedup_same_type"] == K16["float32"]["speedup"]
    # three passes at 6e9 of what ours does in one at 1e9, or at 2e9
    assert K16["float32"]["floor_percent"] == pytest.approx(50)
    assert K16["bf16"]["floor_percent"] == pytest.approx(100)
    assert K16["bf16"]["floor_percent_met"] is True
    assert K16["bf16"]["speedup_target"] == 40
    assert K16["bf16"]["speedup_met"] is (2 * ratio >= 40)
    assert K16["spread"] == 1.5 and found["K8"]["batch"] == 16
    assert found["memory"]["bf16"]["share"] == 0.05
    assert found["memory"]["bf16"]["share_met"] is True
    assert "floor_ms" not in found["K16plus"]["bf16"]
    assert promised(kind="other")["K16"]["bf16"]["speedup_target"] == 13


def test_a_gpu_has_targets_of_its_own():
    found = promised(torch.device("cuda"))
    assert "speedup_target" not in found["K16"]["bf16"]
    gpu = found["gpu"]
    speed = 2e9 / sum(r.multiply_adds for r in layer_cost(32))
    assert gpu["best_images_per_second"] == pytest.approx(speed, rel=1e-3)
    assert gpu["best_images_per_second_met"] is False
    assert set(gpu["ours"]) == {
        f"batch{n}_images_per_second" for n in (50, 64, 128)
    }
    assert len(gpu["published"]) == 3


def test_a_figure_that_is_missing_is_not_drawn_and_says_why():
    measured = {}
    for cell in cells.all_cells(CPU):
        if cell.group == "must_show_memory":
            measured[cell] = fake_memory(cell, CPU)
            measured[cell]["published.bf16"] = dict(skipped="foretold")
    shown = summary.summary(measured, "amx", CPU)["must_show"]
    assert shown["memory"]["bf16"]["published_skipped"] == "foretold"
    assert "share" not in shown["memory"]["bf16"]
    figure = summary.picture({"must_show": shown})
    texts = [t.get_text() for axes in figure.axes for t in axes.texts]
    assert texts == ["20.0×"]
