"""Training runs: their folders, their records, and the four commands."""

import copy
import hashlib
import itertools
import json
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from hcnn import cli, network, results, runs, runtime, training
from hcnn.data import load_dataset, read_image, shapes10
from hcnn.network import HCNN, HCNNConfig, preset, pretrained
from hcnn.training import Recipe, data_digest, recipe

TINY = recipe(
    "quick", epochs=2.0, batch=8, shift=1, precision="float32", warmup=0.1
)
SMALL = dict(K=4, Q=3, support=(1, 3))
FLAGS = (
    "--epochs 2 --batch 8 --shift 1 --precision float32 --K 4 --Q 3 "
    "--support 1 3"
).split()


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """What is compared bit for bit does not run on a GPU."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (runtime, training):
            patch.setattr(
                module, "best_device", lambda: torch.device("cpu")
            )
        yield


def a_run(pictures, **changes):
    about = dict(
        model="hcnn8-cifar10",
        recipe_name="quick",
        recipe=TINY,
        data=str(pictures),
        changes=SMALL,
    )
    return runs.Run(**about | changes)


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """Two seeds, trained to the end."""
    folder = tmp_path_factory.mktemp("run") / "own"
    done = runs.train(
        a_run(pictures), folder, (0, 3), progress=False, command="hcnn"
    )
    return folder, done


def test_a_run_keeps_a_network_and_a_row_for_each_seed(finished, pictures):
    folder, done = finished
    assert json.loads((folder / "run.json").read_text()) == done
    assert [row["seed"] for row in done["seeds"]] == [0, 3]
    accuracies = [row["accuracy"] for row in done["seeds"]]
    assert done["mean"] == pytest.approx(sum(accuracies) / 2)
    low, high = sorted(accuracies)
    assert done["deviation"] == pytest.approx((high - low) / 2**0.5)
    assert done["config"]["classes"] == 3 and done["config"]["K"] == 4
    one, other = (
        HCNN.load(runs.model_path(folder, seed)) for seed in (0, 3)
    )
    assert one.class_names == ("class 0", "class 1", "class 2")
    assert not torch.equal(one.W3.attribute, other.W3.attribute)
    assert done["environment"]["packages"]["torch"]


def test_each_seed_says_where_it_ended_and_how_long_it_took(
    finished, pictures, tmp_path
):
    for row in finished[1]["seeds"]:
        assert row["environment"]["threads"] == torch.get_num_threads()
        assert row["device"] == "cpu" and row["processes"] == 1
        assert row["command"] == "hcnn"
        assert row["wall_seconds"] > row["seconds"]
    run = a_run(pictures)
    while not (done := runs.train(run, tmp_path, minutes=0.0)):
        pass
    assert done["seeds"][0]["wall_seconds"] is None  # in pieces


def test_a_record_that_cannot_be_written_says_what_to_do(
    pictures, tmp_path, monkeypatch
):
    real = runtime.write

    def full(path, content, function="write"):
        if path.name == "run.json":
            raise OSError(28, "No space left on device")
        return real(path, content, function)

    run = a_run(pictures)
    monkeypatch.setattr(runtime, "write", full)
    with pytest.raises(OSError, match=r"run\.json .* is whole: make room"):
        runs.train(run, tmp_path, progress=False)
    monkeypatch.undo()
    done = runs.train(run, tmp_path, progress=False)
    assert done["seeds"][0]["finished"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[pytest.mark.cifar] * about["data"].startswith("cifar"),
        )
        for name, about in pretrained().items()
    ],
)
def test_a_network_that_ships_finds_what_its_entry_says(name):
    """On the whole test set."""
    entry = runtime.repository() / "results" / pretrained()[name]["entry"]
    try:
        rows = runs.evaluate_run(entry)
    except FileNotFoundError as error:  # of CIFAR's two sets one is there
        if "cifar100" not in str(error):
            raise
        pytest.skip(str(error))
    for row in rows:
        apart = abs(row["correct"] - row["recorded"])
        assert apart <= row["may_differ"], row
    assert rows


def test_the_first_run_of_a_new_user_is_quick_and_good():
    """Of the recipe and the network as they are now."""
    entry = results.newest("train-hcnn8-shapes10-quick")
    own = asdict(Recipe()) | entry["recipe"]  # older ones know fewer fields
    assert own == json.loads(json.dumps(asdict(recipe("quick"))))
    assert entry["config"] == json.loads(
        json.dumps(asdict(preset("hcnn8-shapes10")))
    )
    (row,) = entry["seeds"]
    assert row["accuracy"] >= 0.9 and row["wall_seconds"] < 180
    assert row["environment"]["threads"] <= 2


def test_a_seed_gives_one_network(finished, pictures, tmp_path):
    folder, done = finished
    again = runs.train(a_run(pictures), tmp_path, (3,), progress=False)
    one, other = (
        HCNN.load(runs.model_path(place, 3)).state_dict()
        for place in (folder, tmp_path)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert again["seeds"][0]["accuracy"] == done["seeds"][1]["accuracy"]
    assert again["deviation"] is None  # one number has none


def test_when_time_is_over_a_run_stops_and_goes_on(
    finished, pictures, tmp_path
):
    run, calls = a_run(pictures), 0
    while (
        runs.train(run, tmp_path, (0,), minutes=0.0, progress=False) is None
    ):
        assert not (tmp_path / "run.json").exists()
        calls += 1
        assert calls < 40
    assert calls > 1
    one, other = (
        HCNN.load(runs.model_path(place, 0)).state_dict()
        for place in (finished[0], tmp_path)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_time_is_for_all_seeds_and_a_finished_one_stays(pictures, tmp_path):
    run, calls = a_run(pictures), 0
    options = dict(minutes=0.0, progress=False)
    while runs.train(run, tmp_path, (0, 3), **options) is None:
        calls += 1
        assert calls < 60
        if (tmp_path / "run.json").exists():
            (row,) = runs.read(tmp_path)["seeds"]
            assert row["seed"] == 0
    before = (tmp_path / "run.json").read_bytes()
    for seeds in ((0, 3), (3,)):  # all is done: nothing is written
        assert len(runs.train(run, tmp_path, seeds)["seeds"]) == 2
    assert (tmp_path / "run.json").read_bytes() == before


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(changes=SMALL | dict(Q=2)), "config.Q is 2 here and was 3"),
        (dict(recipe_name="paper"), "recipe_name is 'paper' here"),
        (dict(validation=5), "data.validation is 5 here and was 0"),
    ],
)
def test_a_folder_keeps_one_run(change, words, finished, pictures):
    with pytest.raises(ValueError, match=words):
        runs.train(a_run(pictures, **change), finished[0], (7,))


def test_validation_images_are_not_trained_on(pictures):
    data = load_dataset(pictures)
    train, held_out = runs.datasets(str(pictures), 5)
    assert len(train) == len(data) - 5 and len(held_out) == 5
    together = torch.cat((train.images, held_out.images))
    assert torch.equal(together, data.images)
    assert held_out.split == "train"  # the test set is not looked at


@pytest.mark.parametrize("count", [-1, 18, 1000])
def test_images_must_be_left_to_train_on(count, pictures):
    n = len(load_dataset(pictures))
    with pytest.raises(
        ValueError, match=rf"expected 0 to {n - 1}, so that"
    ):
        runs.datasets(str(pictures), n if count == 18 else count)


@pytest.mark.parametrize("seeds", [(), (1, 1)])
def test_seeds_must_differ(seeds, pictures, tmp_path):
    with pytest.raises(ValueError, match="expected different numbers"):
        runs.train(a_run(pictures), tmp_path, seeds)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", runs.NAMED)
def test_each_data_set_has_a_network_of_its_own(name):
    assert runs.default_model(name) == f"hcnn8-{name}"
    assert runs.default_model("a/folder") == "hcnn8-cifar10"


def test_an_entry_of_the_ledger_is_evaluated_like_the_run(
    finished, tmp_path
):
    folder, done = finished
    path = runs.record(folder, "train-own-quick", root=tmp_path)
    assert results.newest("train-own-quick", tmp_path) == done
    assert sorted(file.name for file in path.iterdir()) == [
        "log-0.jsonl",
        "log-3.jsonl",
        "model-0.safetensors",
        "model-3.safetensors",
        "run.json",
    ]
    told = []
    for place in (folder, path):
        found = runs.evaluate_run(
            place,
            tell=lambda row, plain, mirrored: told.append(row["seed"]),
        )
        for row, recorded in zip(found, done["seeds"], strict=True):
            assert row["correct"] == row["recorded"]
            assert row["correct"] / row["count"] == recorded["accuracy"]
    assert told == [0, 3, 0, 3]


def test_a_run_on_validation_images_is_evaluated_on_them(
    pictures, tmp_path
):
    run = a_run(pictures, validation=5)
    done = runs.train(run, tmp_path, progress=False)
    assert done["data"]["test_images"] == 5
    (row,) = runs.evaluate_run(tmp_path)
    assert row["count"] == 5 and row["correct"] == row["recorded"]


def copied(network):
    return {name: own.clone() for name, own in network.state_dict().items()}


@pytest.mark.parametrize("classes", [3, 5])
def test_a_network_begins_with_the_weights_of_a_trained_one(
    classes, finished
):
    """All of them; of other classes what has no row for each."""
    folder, _ = finished
    changes = dict(SMALL, padding="periodic", classes=classes)
    ours = HCNN(preset("hcnn8-cifar10", **changes))
    theirs, before = HCNN.load(runs.model_path(folder, 0)), copied(ours)
    runs.begin_with(ours, folder)
    kept = set()
    for name, tensor in ours.state_dict().items():
        expected = theirs.state_dict()[name]
        if expected.shape != tensor.shape:
            kept.add(name)
            expected = before[name]
        assert torch.equal(tensor, expected), name
    rows = "scale", "shift", "running_mean", "running_var"
    by_class = {"W11.attribute"} | {f"norm11.{own}" for own in rows}
    assert kept == (by_class if classes != 3 else set())
    assert ours.config.padding == "periodic"


def test_a_network_of_other_sizes_is_no_start(finished):
    network = HCNN(preset("hcnn8-cifar10", **SMALL | dict(K=8)))
    before = copied(network)
    words = (
        r"W1\.weight is '\[8, 3, 3, 3\]' here and was '\[4, 3, 3, 3\]'; .*; "
        r"and \d+ more; expected a network of the same sizes;.*\(--start\)"
    )
    with pytest.raises(ValueError, match=words):
        runs.begin_with(network, finished[0])
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_what_a_run_starts_from_is_part_of_it(finished, pictures, tmp_path):
    folder = tmp_path / "run"
    here = runs.model_path(finished[0], 0)
    theirs = HCNN.load(here).state_dict()
    run = a_run(pictures, start=str(finished[0]))
    assert runs.train(run, folder, minutes=0.0, progress=False) is None
    first, *_ = training.checkpoints(folder / "seed-0")
    begun = HCNN.load(first / "model.safetensors").state_dict()
    assert all(torch.equal(begun[name], theirs[name]) for name in theirs)

    for other in (None, str(runs.model_path(finished[0], 3))):
        with pytest.raises(ValueError, match=r"start is .* here and was '"):
            runs.train(a_run(pictures, start=other), folder)
    moved = tmp_path / "moved.safetensors"  # the same weights
    shutil.copyfile(here, moved)
    done = runs.train(
        a_run(pictures, start=str(moved)), folder, progress=False
    )
    digest = runs.weights_digest(finished[0])
    assert done["start"] == dict(source=str(moved), sha256=digest)
    assert runs.train(run, folder) == done
    with pytest.raises(
        ValueError, match=r"start\.sha256 is None here and was"
    ):
        runs.train(a_run(pictures), folder)
    with pytest.raises(ValueError, match=r"of another run: start\.sha256"):
        runs.train(a_run(pictures, start=str(moved)), finished[0], (0, 3))


def test_all_seeds_begin_with_the_weights_that_were_there(
    finished, pictures, tmp_path
):
    """Another file takes their place while the first seed trains."""
    ours, theirs = (runs.model_path(finished[0], seed) for seed in (0, 3))
    start = tmp_path / "start.safetensors"
    run = a_run(pictures, start=str(start))
    found = []
    for change in (False, True):
        shutil.copyfile(ours, start)
        folder = tmp_path / str(change)

        def replace(_, change=change):
            if change:
                shutil.copyfile(theirs, start)

        own = dict(progress=False, callbacks=[replace])
        runs.train(run, folder, (0, 1), **own)
        found.append(runs.model_path(folder, 1).read_bytes())
    assert found[0] == found[1]


def test_seeds_of_one_folder_are_of_one_run_before_one_is_finished(
    pictures, tmp_path
):
    piece = dict(minutes=0.0, progress=False)
    assert runs.train(a_run(pictures), tmp_path, **piece) is None
    other = a_run(pictures, recipe=replace(TINY, learning_rate=0.05))
    words = r"seed-0 belongs to another run: recipe\.learning_rate is 0.05"
    with pytest.raises(ValueError, match=words):
        runs.train(other, tmp_path, (1,), **piece)
    assert not training.checkpoints(tmp_path / "seed-1")
    assert runs.train(a_run(pictures), tmp_path, (1,), **piece) is None
    for left in training.checkpoints(tmp_path / "seed-0"):
        (left / "state.safetensors").write_bytes(b"")  # not ours to judge
    assert runs.train(a_run(pictures), tmp_path, (1,), **piece) is None


def test_a_start_that_is_not_there_is_named(pictures, tmp_path, capsys):
    typed = ["train", "--data", str(pictures), *FLAGS, "--start", "hcnn-x"]
    with pytest.raises(SystemExit) as stopped:
        cli.main([*typed, "--out", str(tmp_path / "run")])
    assert stopped.value.code == 2
    assert (
        "--start is 'hcnn-x'; expected a folder" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_images_may_move(pictures, tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    shutil.copytree(pictures, old)
    runs.train(a_run(old), tmp_path / "run", progress=False)
    old.rename(new)
    with pytest.raises(FileNotFoundError, match="old"):
        runs.evaluate_run(tmp_path / "run")
    (row,) = runs.evaluate_run(tmp_path / "run", data=str(new))
    assert row["correct"] == row["recorded"]
    again = runs.train(a_run(new), tmp_path / "run")  # the same images
    assert len(again["seeds"]) == 1


def test_the_folder_of_cifar_may_move_too(monkeypatch):
    asked, few = [], shapes10(50, 0, "test")

    def load(name, split, root=None):
        asked.append((name, split, root))
        return few

    monkeypatch.setattr(runs, "load_dataset", load)
    with pytest.raises(ValueError, match="other test images"):
        runs.evaluate_run("hcnn8-cifar10", data="moved")
    assert asked == [("cifar10", "test", "moved")]


def test_the_same_machine_must_find_the_same(finished, monkeypatch):
    (first, _) = runs.evaluate_run(finished[0])
    assert first["may_differ"] == 0
    here = runs.runtime.environment() | dict(hardware="another")
    monkeypatch.setattr(runs.runtime, "environment", lambda: here)
    (first, _) = runs.evaluate_run(finished[0])
    assert first["may_differ"] == runs.APART
    here = runs.runtime.environment() | dict(avx512_bf16="another")
    here["hardware"] = finished[1]["environment"]["hardware"]
    (first, *_) = runs.evaluate_run(finished[0])
    assert first["may_differ"] == runs.APART


def test_a_run_is_recorded_once(finished, tmp_path):
    one, other = (
        runs.record(finished[0], "train-own", tmp_path) for _ in range(2)
    )
    assert one == other and len(results.entries(root=tmp_path)) == 1


def test_two_that_record_a_run_at_once_make_one_entry(
    finished, tmp_path, monkeypatch
):
    entries = results.entries

    def slowly(*arguments):
        found = entries(*arguments)
        time.sleep(0.2)
        return found

    monkeypatch.setattr(results, "entries", slowly)
    with ThreadPoolExecutor() as pool:
        for _ in range(2):
            pool.submit(runs.record, finished[0], "train-own", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["train-own-1"]


def test_a_ledger_that_cannot_be_written_keeps_no_run(
    finished, pictures, tmp_path, capsys, monkeypatch
):
    """It is noticed before the training; later, the run is whole."""
    ledger = tmp_path / "ledger"
    ledger.write_text("a file")
    with pytest.raises(OSError, match=r"ledger.*; the run in .* is whole"):
        runs.record(finished[0], "train-own", ledger)
    monkeypatch.setattr(results, "_root", lambda *_: ledger)
    out = tmp_path / "out"
    options = ["--data", f"{pictures}", *FLAGS, "--out", f"{out}"]
    with pytest.raises(SystemExit) as exit:
        cli.main(["train", *options, "--record", "train-own"])
    assert exit.value.code == 2 and not out.exists()
    assert "nothing can be added to the ledger" in capsys.readouterr().err


def test_seeds_that_others_train_meanwhile_stay_recorded(
    pictures, tmp_path
):
    others = []
    left = tmp_path / ".run.json.0.partial"  # by a process that was killed
    left.touch()

    def meanwhile(row):
        if not others:
            others.append(
                runs.train(a_run(pictures), tmp_path, (1,), progress=False)
            )

    own = dict(progress=False, callbacks=[meanwhile])
    done = runs.train(a_run(pictures), tmp_path, (0,), **own)
    assert [row["seed"] for row in done["seeds"]] == [0, 1]
    assert done["seeds"][1:] == others[0]["seeds"]
    assert done["deviation"] is not None and not left.exists()


def test_seeds_that_end_at_the_same_time_are_both_recorded(
    finished, tmp_path, monkeypatch
):
    """Each reads the record, and adds its row: one after the other."""
    shutil.copy(finished[0] / "run.json", tmp_path)
    done = runs.read(tmp_path)
    row, *_ = done["seeds"]
    ended = {k: done[k] for k in ("command", "device", "processes")}
    about = {k: v for k, v in done.items() if k not in ("seeds", *ended)}
    recorded = runs._recorded

    def slowly(*arguments):
        rows = recorded(*arguments)
        time.sleep(0.2)
        return rows

    monkeypatch.setattr(runs, "_recorded", slowly)
    for key in ("mean", "deviation", "environment"):
        del about[key]
    with ThreadPoolExecutor() as pool:
        for seed in (7, 8):
            own = row | dict(seed=seed)
            pool.submit(runs._add, tmp_path, about, own, ended)
    seeds = {row["seed"] for row in runs.read(tmp_path)["seeds"]}
    assert seeds == {row["seed"] for row in done["seeds"]} | {7, 8}


def test_a_network_that_comes_along_is_evaluated_by_its_name(
    monkeypatch, capsys
):
    few = shapes10(50, 0, "test")
    monkeypatch.setattr(runs, "load_dataset", lambda *_: few)
    for changes, words in (
        ({}, "other test images than those of hcnn8-shapes10"),
        (dict(test_sha256=data_digest(few)), None),
        (
            dict(test_sha256=data_digest(few), accuracy=0.5),
            "at most 3 apart",
        ),
    ):
        about = pretrained()["hcnn8-shapes10"] | changes
        known = {"hcnn8-shapes10": about}
        monkeypatch.setattr(runs, "pretrained", lambda known=known: known)
        if words is None:
            cli.main(["evaluate", "hcnn8-shapes10"])
            told = capsys.readouterr().out
            assert "50 of 50 images; recorded 100.00 %" in told
            continue
        with pytest.raises(SystemExit) as caught:
            cli.main(["evaluate", "hcnn8-shapes10"])
        assert caught.value.code == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "model, data",
    [
        (None, "shapes10"),
        ("hcnn8-shapes10-periodic", "shapes10"),
        ("hcnn-cifar10", "cifar10"),
        ("hcnn-plus-cifar100", "cifar100"),
    ],
)
def test_without_data_a_model_is_trained_on_what_it_is_named_after(
    model, data, monkeypatch, capsys
):
    asked = []
    monkeypatch.setattr(
        runs, "train", lambda run, *_, **__: asked.append(run)
    )
    with pytest.raises(SystemExit):
        cli.main(["train", *(["--model", model] if model else [])])
    assert asked[0].data == data
    assert f"no --data named: using {data}" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["train/run", "test/runs/a", "val"])
def test_a_run_among_the_classes_of_a_split_is_refused(place, tmp_path):
    for split in ("train", "test"):
        for name in ("rose", "tulip"):
            (tmp_path / split / name).mkdir(parents=True)
    with pytest.raises(ValueError, match="would be taken for one"):
        cli._check_outside(tmp_path / place, tmp_path)
    cli._check_outside(tmp_path / "runs", tmp_path)


def test_a_run_among_the_class_folders_is_refused(
    pictures, tmp_path, monkeypatch, capsys
):
    classes = tmp_path / "classes"
    shutil.copytree(pictures / "train", classes)
    monkeypatch.chdir(classes)
    with pytest.raises(SystemExit):
        cli.main(["train", "--data", ".", *FLAGS])
    assert "would be taken for one" in capsys.readouterr().err
    assert not (classes / "runs").exists()
    cli.main(["train", "--data", ".", *FLAGS, "--out", str(tmp_path / "a")])


def test_other_test_images_are_refused(pictures, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pictures, copy)
    runs.train(a_run(copy), tmp_path / "run", progress=False)
    next((copy / "test" / "class 0").iterdir()).unlink()
    with pytest.raises(ValueError, match="other test images than those of"):
        runs.evaluate_run(tmp_path / "run")


@pytest.mark.parametrize(
    "text, error, words",
    [
        (None, FileNotFoundError, "expected the folder of a finished"),
        ("{", ValueError, "is not the record of a training run"),
        (
            '{"seeds": [], "data": {"source": "shapes10", "test_sha256": "", '
            '"validation": 0}, "device": "cpu", "environment": '
            '{"packages": {"torch": ""}, "hardware": ""}}',
            ValueError,
            "is not the record of a training run .*IndexError",
        ),
        ("[]", ValueError, "is not the record of a training run"),
        ("[" * 10**5, ValueError, "is not the record of a training run"),
        (
            '{"seeds": [{"seed": 0, "accuracy": 1}], '
            '"data": {"source": "shapes10", "test_sha256": ""}}',
            ValueError,
            "training run .*validation",
        ),
    ],
)
def test_what_is_no_record_is_refused(text, error, words, tmp_path):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(error, match=words):
        runs.read(tmp_path)


@pytest.mark.parametrize(
    "there, here, same",
    [
        ("cuda:0", "cuda", True),
        ("cpu", "cpu", True),
        ("cpu", "cuda", False),
    ],
)
def test_one_gpu_is_of_the_kind_of_another(there, here, same):
    """Under torchrun a device has a number."""
    then, now = (
        dict(device=own, environment=runtime.environment())
        for own in (there, here)
    )
    assert runs._same_kind(then, now) == same


@pytest.mark.parametrize(
    "key",
    "hardware gpu threads avx512_bf16 amx capability cuda cudnn "
    "onednn_max_cpu_isa torch".split(),
)
def test_one_difference_makes_another_machine(key):
    then, now = (
        dict(device="cpu", environment=runtime.environment())
        for _ in range(2)
    )
    assert runs._same_kind(then, now)
    about = now["environment"]
    (about["packages"] if key == "torch" else about)[key] = "another"
    assert not runs._same_kind(then, now)


def test_the_commit_is_that_of_the_code_that_ran(
    pictures, tmp_path, monkeypatch
):
    own, commits = runtime.environment, itertools.count()
    monkeypatch.setattr(
        runtime,
        "environment",
        lambda: own() | dict(commit=str(next(commits)), dirty=False),
    )
    done = runs.train(a_run(pictures), tmp_path / "run", progress=False)
    assert done["environment"]["commit"] == "0" and next(commits) > 1


def test_processes_evaluate_batches_of_their_own():
    one = dict(device="cpu", environment=runtime.environment())
    assert runs._same_kind(one | dict(processes=1), one)
    assert not runs._same_kind(one | dict(processes=2), one)


@pytest.mark.parametrize(
    "name", ["seed", "accuracy", "device", "environment"]
)
def test_a_record_that_lacks_what_is_read_is_refused(
    name, finished, tmp_path
):
    data = copy.deepcopy(runs.read(finished[0]))
    for place in (data, *data["seeds"]):
        place.pop(name, None)
    (tmp_path / "run.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=f"of a training run .*{name}"):
        runs.read(tmp_path)


def test_an_entry_without_networks_says_so(finished, tmp_path):
    shutil.copy(finished[0] / "run.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="keeps figures alone"):
        runs.evaluate_run(tmp_path)


def test_a_network_is_found_by_folder_file_or_name(finished, monkeypatch):
    folder, _ = finished
    path = runs.model_path(folder, 0)
    expected = HCNN.load(path).W3.attribute
    for place in (folder, path):
        assert torch.equal(runs.find_network(place).W3.attribute, expected)
    monkeypatch.setattr(runs, "pretrained", lambda: {"own": {}})
    monkeypatch.setattr(
        runs, "load_pretrained", lambda name: HCNN.load(path)
    )
    assert torch.equal(runs.find_network("own").W3.attribute, expected)
    with pytest.raises(ValueError, match=r"'other'; .*package: own$"):
        runs.find_network("other")
    with pytest.raises(ValueError, match=r"^--start is 'other'; "):
        runs.weights_digest("other")


def test_a_wrong_name_to_evaluate_is_told_the_right_ones():
    with pytest.raises(ValueError, match=r"'hcnn8' is no .*hcnn8-cifar10,"):
        runs.evaluate_run("hcnn8")


# the commands ---------------------------------------------------------------


def test_each_field_of_a_recipe_is_an_option():
    names = {field.name for field in fields(cli.RecipeChanges)}
    assert names == {field.name for field in fields(Recipe)}


def test_options_of_the_model_are_fields_of_its_configuration():
    names = {field.name for field in fields(cli.ModelChanges)}
    assert names < {field.name for field in fields(HCNNConfig)}


def test_the_commands_train_evaluate_and_predict(
    pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    train = ["train", "--data", str(pictures), *FLAGS]
    with pytest.raises(SystemExit) as caught:
        cli.main([*train, "--minutes", "0"])
    folder = f"runs/hcnn8-cifar10-{pictures.name}-quick"
    assert caught.value.code == cli.UNFINISHED
    assert (
        f"{folder}: saved; the same command goes" in capsys.readouterr().out
    )
    cli.main(["info"])
    told = f"{folder}, seed 0, not finished: step "
    assert told in capsys.readouterr().out

    cli.main([*train, "--minutes", "5"])
    out = capsys.readouterr().out
    found = re.search(r"seed 0: ([\d.]+ %) of (\d+) images, .*", out)
    assert found and f"see hcnn evaluate {folder}" in out
    (row,) = runs.read(folder)["seeds"]
    assert f" images/s, {row['steps']} steps\n" in out
    assert "--recipe modern is for such" in out

    cli.main(["evaluate", folder])
    out = capsys.readouterr().out
    assert out.count(found[1]) >= 2 and f"of {found[2]} images" in out
    cli.main(["info"])
    told = f"{folder}, seed 0, finished: step {row['steps']}, "
    assert told in capsys.readouterr().out

    image = next((pictures / "test" / "class 1").iterdir())
    cli.main(["predict", str(image), "--model", folder, "--top", "2"])
    out = capsys.readouterr().out
    network = HCNN.load(runs.model_path(folder, 0)).eval()
    with torch.no_grad():
        pixels = read_image(image, 32)[None]
        row = network(network.standardize(pixels)).softmax(1)[0]
    names = network.class_names
    expected = sorted(zip(row.tolist(), names, strict=True), reverse=True)
    told = ", ".join(f"{name} {100 * p:.1f} %" for p, name in expected[:2])
    assert out == f"{image}: {told}\n"
    assert len(set(row.tolist())) > 1 and names[0] == "class 0"
    cli.main(["predict", str(image), "--model", folder, "--size", "16"])
    with torch.no_grad():
        pixels = read_image(image, 16)[None]
        row = network(network.standardize(pixels)).softmax(1)[0]
    best = row.argmax()
    told = f"{image}: {names[best]} {100 * row[best]:.1f} %"
    assert capsys.readouterr().out.startswith(told)


@pytest.mark.parametrize("minutes", ["-1", "nan"])
def test_a_time_that_is_none_is_refused(minutes, tmp_path, capsys):
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--minutes", minutes, "--out", str(out)])
    assert caught.value.code == 2
    assert "expected 0 or more (--minutes)" in capsys.readouterr().err
    assert not out.exists()


def test_a_network_of_one_colour_does_not_predict_files(tmp_path, capsys):
    own = HCNN(preset("hcnn8-cifar10", channels=1), mean=[0.5], std=[0.2])
    own.save(tmp_path / "grey.safetensors")
    picture = tmp_path / "x.png"
    Image.new("RGB", (32, 32)).save(picture)
    words = ["--model", str(tmp_path / "grey.safetensors")]
    with pytest.raises(SystemExit):
        cli.main(["predict", str(picture), *words])
    assert (
        "the network has colours: 1; image files have 3"
        in capsys.readouterr().err
    )


def test_a_network_that_changed_is_noticed(
    finished, tmp_path, capsys, monkeypatch
):
    shutil.copytree(finished[0], tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    data = json.loads(path.read_text())
    data["seeds"][1]["accuracy"] = 1 - data["seeds"][1]["accuracy"]
    path.write_text(json.dumps(data))
    with pytest.raises(SystemExit) as caught:
        cli.main(["evaluate", str(tmp_path / "run")])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert "seed 3" in err and "expected at most 0 apart" in err
    assert out.count("recorded") == 2  # both are printed first


def test_the_overview_counts_the_data_that_it_finds(monkeypatch):
    def found(name, split):
        if name == "cifar100":
            raise FileNotFoundError
        assert split == "test"
        return shapes10(20, split=split)

    monkeypatch.setattr(runs, "load_dataset", found)
    monkeypatch.setenv("HCNN_DATA", "somewhere")
    text = runs.overview()
    assert "  cifar10: 20 test images of 10 classes\n" in text
    assert "  cifar100: not found" in text


def test_the_overview_names_data_networks_and_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HCNN_DATA", str(tmp_path))
    text = runs.overview()
    assert "cifar10: not found; HCNN_DATA says" in text
    monkeypatch.delenv("HCNN_DATA")
    assert "cifar10: not found; HCNN_DATA says" in runs.overview()
    monkeypatch.setenv("HCNN_DATA", str(tmp_path))
    assert "shapes10: drawn when it is asked for" in text
    assert text.endswith("runs in runs/:\n  none")
    assert f"torch {torch.__version__}, Python 3" in text
    assert "\ntrains on cpu in " in text
    assert torch.cuda.is_available() or "\nGPU: none\n" in text
    assert len(pretrained()) > 2
    for name, about in pretrained().items():
        file = Path(network.__file__).parent / f"weights/{name}.safetensors"
        digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
        told = f"{about['entry']}, sha256 {digest}\n"
        assert f"  {name}: {100 * about['accuracy']:.2f} %, {told}" in text


def test_the_overview_has_the_digest_of_the_newest_checkpoint(
    pictures, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    runs.train(
        a_run(pictures), "runs/own", (3,), progress=False, minutes=0.0
    )
    model = max(tmp_path.glob("runs/own/seed-3/checkpoints/*/model.*"))
    digest = hashlib.sha256(model.read_bytes()).hexdigest()[:12]
    step = int(model.parent.name.removeprefix("step-"))
    told = f"  runs/own, seed 3, not finished: step {step}, sha256 {digest}"
    assert told in runs.overview()


def test_an_overview_survives_what_is_damaged(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/own/seed-0/checkpoints/step-00000003").mkdir(
        parents=True
    )
    (tmp_path / "cifar-10-batches-py").mkdir()
    monkeypatch.setenv("HCNN_DATA", str(tmp_path))
    text = runs.overview()
    assert "seed 0, not finished: step 3, sha256 unreadable" in text
    sums = "runs/own/seed-0/checkpoints/step-00000003/SHA256SUMS"
    (tmp_path / sums).write_bytes(b"\xff")
    assert (
        "seed 0, not finished: step 3, sha256 unreadable" in runs.overview()
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["train", "--device", "gpu"], "--device is 'gpu'; expected one"),
        (
            ["train", "--device", "cuda:99"],
            "expected one that is here: cpu",
        ),
        (["train", "--record", "a b"], "train: name is 'a b'; expected"),
        (["train", "--recipe", "slow"], "recipe: name is 'slow'; expected"),
        (["train", "--data", "nowhere"], "'nowhere' is no data set"),
        (
            ["train", "--recipe", "paper", "--warmup", "0.1"],
            "--warmup 0.1 with the schedule 'steps'; expected it with",
        ),
        (["train", "--epochs", "-1"], "epochs is -1.0; expected"),
        (["evaluate", "nowhere"], "'nowhere' is no folder, and no network"),
        (["predict", "a.png", "--model", "x"], "model is 'x'; expected"),
        (["predict", "--model", "x"], "predict: no image; name"),
        (["predict", "a", "--model", "x", "--top", "0"], "--top is 0"),
        (["predict", "a", "--model", "x", "--size", "0"], "--size is 0"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    arguments, words, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    assert words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_a_data_set_the_one_that_is_taken_is_named(
    capsys, monkeypatch
):
    asked = []

    def train(run, *_, **__):
        asked.append(run.data)

    monkeypatch.setattr(runs, "train", train)
    for named in ([], ["--data", "shapes10"]):
        with pytest.raises(SystemExit):  # it is not finished
            cli.main(["train", *named])
    assert asked == ["shapes10", "shapes10"]
    out = capsys.readouterr().out
    assert out.count("no --data named: using shapes10, drawn images") == 1


def test_under_torchrun_each_process_has_its_device(capsys, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(SystemExit):
        cli.main(["train", "--device", "cpu"])
    assert "expected none: each process takes" in capsys.readouterr().err
    asked = []
    monkeypatch.setattr(
        runs, "train", lambda *_, **own: asked.append(own["command"])
    )
    monkeypatch.delenv("LOCAL_RANK")  # so it is no torchrun's
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "--device", "cpu"])
    assert caught.value.code == cli.UNFINISHED
    assert asked == ["hcnn train --device cpu"]


def test_images_that_are_gone_leave_the_run_as_it_is(
    pictures, tmp_path, capsys
):
    images, folder = tmp_path / "images", tmp_path / "run"
    shutil.copytree(pictures, images)
    typed = [
        "train", "--data", str(images), *FLAGS, "--out", str(folder),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as caught:
        cli.main([*typed, "--minutes", "0"])
    assert caught.value.code == cli.UNFINISHED

    def kept():
        return {
            path: path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }

    before = kept()
    images.rename(tmp_path / "elsewhere")
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main(typed)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and err.count("\n") == 1
    assert "no data set and no folder" in err
    assert kept() == before
    typed[2] = str(tmp_path / "elsewhere")
    cli.main(typed)  # images may move
    assert runs.read(folder)["seeds"][0]["finished"]


def test_a_record_says_what_was_typed(pictures, tmp_path, capsys):
    typed = [
        "train",
        "--data",
        str(pictures),
        *FLAGS,
        "--out",
        str(tmp_path),
    ]
    cli.main(typed)
    assert runs.read(tmp_path)["command"] == " ".join(["hcnn", *typed])


def test_a_finished_run_becomes_an_entry(
    pictures, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(runtime, "repository", lambda: tmp_path)
    pytest.importorskip("tensorboard")
    folder = tmp_path / "run"
    typed = ["train", "--data", str(pictures), *FLAGS]
    typed += [
        "--out",
        str(folder),
        "--record",
        "train-own",
        "--tensorboard",
    ]
    cli.main(typed)
    entry = tmp_path / "results" / "train-own-1"
    assert str(entry) in capsys.readouterr().out.splitlines()
    assert runs.read(entry) == runs.read(folder)
    names = {path.name for path in entry.iterdir()}
    assert names == {"run.json", "model-0.safetensors", "log-0.jsonl"}
    events = folder / "seed-0" / "tensorboard"
    assert any(path.stat().st_size for path in events.iterdir())
