"""Plans of training runs in pieces, and how networks get into the package."""

import hashlib
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks import rate, training
from hcnn import cli, network, results, runs
from hcnn.network import HCNN, load_pretrained, preset, pretrained
from hcnn.runtime import repository
from hcnn.training import _lock, recipe

sys.path.insert(0, str(repository() / "tools"))
import ship

SMALL = dict(K=4, Q=2, support=(1, 3))


def two():
    """A plan of two small networks."""
    yield training.job("hcnn8-cifar10", "modern", seeds=(0, 1), **SMALL)
    yield training.job("hcnn8-cifar100", "paper", **SMALL)


NAMES = [job.entry for job in two()]
DONE = dict(mean=0.5)


@pytest.fixture
def ledger(monkeypatch, tmp_path):
    """That plan alone, in a place of its own."""
    monkeypatch.setattr(training, "PLANS", {"two": two})
    monkeypatch.setattr(training, "ROOT", tmp_path)
    return tmp_path / "runs" / "dry" / "results"


def test_the_networks_of_the_tables_are_trained_the_modern_way_first():
    jobs = list(training.full())
    assert [job.run.recipe_name for job in jobs[:5]] == ["modern"] * 5
    assert [job.run.recipe_name for job in jobs[5:]] == ["paper"] * 5
    wanted = "cifar10 cifar10-periodic plus-cifar10 cifar100 plus-cifar100"
    models = [f"hcnn-{name}" for name in wanted.split()]
    assert [job.run.model for job in jobs] == 2 * models
    assert jobs[0].entry == "train-hcnn-cifar10-modern"
    for job in jobs:
        hundred = "100" in job.run.model
        assert job.run.data == ("cifar100" if hundred else "cifar10")
        plain = job.run.recipe_name == "paper"  # as its text has it
        assert job.run.changes == (dict(output_norm=False) if plain else {})
        assert not job.run.validation
        assert job.run.recipe == recipe(job.run.recipe_name)
        assert len(job.seeds) == 3


def test_small_runs_are_of_three_epochs_and_differ_in_one_choice():
    jobs = {job.entry: job for job in training.small()}
    for name, job in jobs.items():
        run = job.run
        plain, polar = (
            name.startswith(f"ablate-{kind}-")
            for kind in ("plain", "polar")
        )
        of = "plain" if plain else "polar" if polar else "baseline"
        base = jobs[f"ablate-{of}"].run
        assert run.recipe.epochs == 3
        three = plain or name in ("ablate-baseline", "ablate-plain")
        assert job.seeds == ((0, 1, 2) if three else (0,))
        # what chooses the recipe never looks at the test set
        assert bool(run.validation) == name.startswith("ablate-")
        own = vars(run.recipe) | run.changes | dict(model=run.model)
        old = vars(base.recipe) | base.changes | dict(model=base.model)
        apart = {k for k in own | old if own.get(k) != old.get(k)}
        if name == "ablate-steps":
            assert apart == {"schedule", "milestones", "factors"}
        elif "batch" in name:
            assert apart == {"batch", "learning_rate"}
        elif name == "ablate-polar":
            assert apart == {"optimizer", "learning_rate", "weight_decay"}
            assert run.recipe == recipe("modern", epochs=3.0)
        else:
            assert len(apart) == (name != "ablate-baseline"), (name, apart)


def test_what_was_recorded_is_not_trained_anew():
    """Although recipes have got a field since."""
    known = {entry.name for entry in results.entries()}
    jobs = [*training.small(), *training.ship()]
    found = [job for job in jobs if job.entry in known]
    assert len(found) > 15
    for job in found:
        assert training.recorded(job, repository() / "results"), job.entry


@pytest.mark.parametrize("plan", training.PLANS)
def test_each_plan_has_a_name_for_each_run_and_can_be_built(plan):
    jobs = list(training.PLANS[plan]())
    names = [job.entry for job in jobs]
    assert len(set(names)) == len(names)
    for job in jobs:
        results.check_name("plan", job.entry)
        own = training.dry(job)
        data, _ = training.drawn(job)
        assert own.run.config(data).classes == len(data.class_names)
        assert len(own.seeds) == 1


def test_pieces_end_as_one_run_does_and_each_is_recorded_once(
    ledger, capsys
):
    calls = 1
    while training.main(["two", "--dry", "--minutes", "0.001"]):
        assert "the same command goes on" in capsys.readouterr().out
        calls += 1
        assert calls < 20
    assert calls > 1
    for name in NAMES:
        (entry,) = results.entries(name, ledger)
        assert entry.data["command"].startswith("hcnn train --data cifar10")
        assert entry.data["seeds"][0]["steps"] == 2
        assert (entry.path / "model-0.safetensors").exists()
    assert training.main(["two", "--dry"]) == 0  # nothing is left to do
    assert len(results.entries(root=ledger)) == len(NAMES)


def test_what_was_recorded_of_another_recipe_is_trained_anew(
    ledger, monkeypatch, tmp_path
):
    assert training.main(["two", "--dry", "--only", NAMES[0]]) == 0
    first = next(two())
    own = replace(first.run, recipe=replace(first.run.recipe, ema=0.5))
    other = first._replace(run=own)
    monkeypatch.setattr(training, "PLANS", {"two": lambda: [other]})
    assert training.main(["two", "--dry"]) == 0
    kept = tmp_path / "runs/dry" / f"{NAMES[0]}-old-1"
    assert runs.read(kept)["recipe"]["ema"] == 0.999
    again = results.entries(NAMES[0], ledger)
    assert [e.data["recipe"]["ema"] for e in again] == [0.999, 0.5]
    assert training.main(["two", "--dry"]) == 0
    assert len(results.entries(NAMES[0], ledger)) == 2


def test_an_entry_of_fewer_seeds_or_other_images_is_not_the_job(ledger):
    assert training.main(["two", "--dry", "--only", NAMES[0]]) == 0
    job = training.dry(next(two()))
    assert training.recorded(job, ledger)
    assert not training.recorded(job._replace(seeds=(0, 1)), ledger)
    for change in (dict(validation=5), dict(data="cifar100")):
        other = job._replace(run=replace(job.run, **change))
        assert not training.recorded(other, ledger)


@pytest.mark.parametrize("plan", training.PLANS)
def test_the_command_of_a_job_is_that_job(plan, monkeypatch):
    seen = []

    def train(run, folder, seeds, **_):
        seen.append((run, seeds))

    monkeypatch.setattr(runs, "train", train)
    for job in training.PLANS[plan]():
        line = training.command(job).split()
        assert line[0] == "hcnn"
        with pytest.raises(SystemExit):  # it is told that nothing is done
            cli.main(line[1:])
        run = replace(job.run, changes=dict(job.run.changes))
        assert seen.pop() == (run, job.seeds)


def test_a_part_of_a_plan(ledger):
    assert training.main(["two", "--dry", "--only", "cifar100"]) == 0
    assert [entry.name for entry in results.entries(root=ledger)] == NAMES[
        1:
    ]


def test_a_network_to_start_from_is_part_of_a_job(
    ledger, monkeypatch, tmp_path, capsys
):
    """It is left out while that network does not come along."""
    zero = tmp_path / "zero.safetensors"
    HCNN(preset("hcnn8-cifar10", **SMALL)).save(zero)

    def own(start):
        model = "hcnn8-cifar10-periodic"
        return training.job(model, "quick", start=start, **SMALL)

    jobs = [own("hcnn-x"), own(str(zero))]
    monkeypatch.setattr(training, "PLANS", {"one": lambda: jobs})
    assert training.main(["one", "--dry"]) == training.MISSING
    name = jobs[0].entry
    assert (
        f"{name}: left out; --start is 'hcnn-x'" in capsys.readouterr().out
    )
    (entry,) = results.entries(name, ledger)
    assert entry.data["start"]["source"] == jobs[1].run.start
    assert training.recorded(training.dry(jobs[1]), ledger)
    assert not training.recorded(training.dry(own(None)), ledger)

    assert training.main(["one", "--dry"]) == training.MISSING
    assert len(results.entries(name, ledger)) == 1
    folder = tmp_path / "runs" / "dry" / name
    for finished in (True, False):
        training.make_room(
            training.dry(jobs[1]), folder, training.drawn(jobs[1])
        )
        assert folder.exists()
        if finished:
            (folder / "run.json").unlink()
    fresh = own(None)
    training.make_room(training.dry(fresh), folder, training.drawn(fresh))
    assert not folder.exists()


@pytest.mark.parametrize("root", [None, "empty"])
def test_images_that_are_missing_keep_no_other_run(
    ledger, monkeypatch, capsys, tmp_path, root
):
    """CIFAR-100 comes between two runs of CIFAR-10."""
    ran, load = [], runs.datasets
    if root is None:
        monkeypatch.delenv("HCNN_DATA", raising=False)
    else:
        monkeypatch.setenv("HCNN_DATA", str(tmp_path))

    def three():
        yield from two()
        yield training.job("hcnn8-cifar10", "quick", **SMALL)

    def datasets(name, *rest):
        return load(name, *rest) if name == "cifar100" else "images"

    def train(run, folder, *_, images, **__):
        ran.append((folder.name, images))

    monkeypatch.setattr(training, "PLANS", {"three": three})
    monkeypatch.setattr(runs, "datasets", datasets)
    monkeypatch.setattr(
        runs, "train", lambda *a, **k: train(*a, **k) or DONE
    )
    monkeypatch.setattr(runs, "record", lambda *_: Path("entry"))
    assert training.main(["three", "--device", "cpu"]) == training.MISSING
    first, last = NAMES[0], "train-hcnn8-cifar10-quick"
    assert ran == [(first, "images"), (last, "images")]
    assert f"{NAMES[1]}: left out; load_dataset:" in capsys.readouterr().out


def test_a_run_that_fails_keeps_no_other(ledger, monkeypatch, capsys):
    train = runs.train

    def fail(run, *rest, **options):
        if run.model == "hcnn8-cifar10":
            raise FloatingPointError("the loss of step 1 is nan")
        return train(run, *rest, **options)

    monkeypatch.setattr(runs, "train", fail)
    assert training.main(["two", "--dry"]) == training.FAILED
    assert f"{NAMES[0]}: failed; the loss" in capsys.readouterr().out
    assert not results.entries(NAMES[0], ledger)
    assert len(results.entries(NAMES[1], ledger)) == 1


@pytest.mark.parametrize("error", [ValueError, OSError])
def test_a_folder_that_cannot_be_used_keeps_no_other(
    error, ledger, monkeypatch, capsys
):
    make_room = training.make_room

    def refuse(job, *rest):
        if job.entry == NAMES[0]:
            raise error("its record is damaged")
        make_room(job, *rest)

    monkeypatch.setattr(training, "make_room", refuse)
    assert training.main(["two", "--dry"]) == training.FAILED
    assert f"{NAMES[0]}: failed; its record" in capsys.readouterr().out
    assert len(results.entries(NAMES[1], ledger)) == 1


def test_a_run_that_goes_on_is_not_moved_away(tmp_path):
    folder, job = tmp_path / "run", next(two())
    (folder / "seed-0").mkdir(parents=True)
    other = dict(
        config=asdict(preset("hcnn8-cifar10")),
        recipe=asdict(job.run.recipe),
        data=dict(source="cifar10", test_sha256="", validation=0),
        device="cpu",
        environment=dict(packages=dict(torch=""), hardware=""),
        seeds=[dict(seed=0, accuracy=0.5)],
    )
    (folder / "run.json").write_text(json.dumps(other))
    with _lock(folder / "seed-0"):
        with pytest.raises(ValueError, match="is in use by process"):
            training.make_room(job, folder, training.drawn(job))
    assert folder.is_dir()
    training.make_room(job, folder, training.drawn(job))
    assert not folder.exists()


def test_an_unfinished_run_on_other_images_is_moved_away(ledger, tmp_path):
    job, folder = training.dry(next(two())), tmp_path / "runs" / "one"
    train, test = training.drawn(job)
    whole = train, test
    for images in (whole, (train.subset(3), test)):
        runs.train(job.run, folder, images=images)
        (folder / "run.json").unlink()
        training.make_room(job, folder, images)
        assert folder.exists()  # its own images
        training.make_room(job, folder, (train, test.subset(2)))
        assert not folder.exists()


def test_a_name_that_no_entry_has_is_refused(ledger, capsys):
    with pytest.raises(SystemExit) as caught:
        training.main(["two", "--dry", "--only", "pluss"])
    assert caught.value.code == 2
    assert (
        f"expected a part of one of {NAMES[0]}" in capsys.readouterr().err
    )


def test_an_unfinished_run_of_another_recipe_is_put_aside(
    ledger, monkeypatch, tmp_path
):
    first = next(two())
    own = training.dry(first)
    assert not runs.train(
        own.run,
        tmp_path / "runs/dry" / NAMES[0],
        own.seeds,
        minutes=0.0,
        images=training.drawn(own),
        device="cpu",
    )
    changed = replace(first.run.recipe, ema=0.5)
    other = first._replace(run=replace(first.run, recipe=changed))
    monkeypatch.setattr(training, "PLANS", {"two": lambda: [other]})
    assert training.main(["two", "--dry"]) == 0
    assert (tmp_path / "runs/dry" / f"{NAMES[0]}-old-1").is_dir()
    (entry,) = results.entries(NAMES[0], ledger)
    assert entry.data["recipe"]["ema"] == 0.5


@pytest.mark.parametrize("name", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_refused(name, capsys):
    with pytest.raises(SystemExit):
        training.main(["full", "--device", name])
    assert "expected cpu, cuda or cuda:N" in capsys.readouterr().err


def test_without_a_gpu_it_says_what_can_be_done(capsys):
    with pytest.raises(SystemExit):
        training.main(["full", "--device", "cpu"])
    assert "needs a GPU" in capsys.readouterr().err


# into the package -----------------------------------------------------------


@pytest.fixture
def shipped(ledger, tmp_path, monkeypatch):
    """A package with one network, of the newest of two entries."""
    training.main(["two", "--dry"])
    (older,) = results.entries(NAMES[0], ledger)
    kept = [path for path in older.path.iterdir() if path.stem != "run"]
    results.record(
        NAMES[0], older.data | dict(mean=0.5), root=ledger, files=kept
    )
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "index.json").write_text("{}")
    monkeypatch.setattr(network.resources, "files", lambda name: tmp_path)
    ship.ship("own", NAMES[0], ledger, weights)
    return weights


def test_a_shipped_network_is_that_of_the_newest_entry(shipped, ledger):
    (about,) = pretrained().values()
    entry = results.entries(NAMES[0], ledger)[-1]
    assert about["entry"] == entry.path.name and entry.number == 2
    assert about["accuracy"] == entry.data["seeds"][0]["accuracy"]
    own = load_pretrained("own").state_dict()
    other = HCNN.load(runs.model_path(entry.path, 0)).state_dict()
    assert all(torch.equal(own[key], other[key]) for key in other)


def test_a_network_judged_by_images_set_aside_is_not_shipped(
    ledger, shipped
):
    entry = results.entries(NAMES[0], ledger)[-1]
    data = entry.data | dict(data=entry.data["data"] | dict(validation=5))
    kept = [path for path in entry.path.iterdir() if path.stem != "run"]
    results.record(NAMES[0], data, root=ledger, files=kept)
    with pytest.raises(ValueError, match="training images that were set"):
        ship.ship("own", NAMES[0], ledger, shipped)


def test_an_entry_that_there_is_not_is_refused(ledger, shipped):
    with pytest.raises(SystemExit, match=r"no entry is named 'none'; exp"):
        ship.ship("hcnn8-cifar10", "none", ledger)


def test_a_file_that_was_not_shipped_is_refused(shipped):
    path = shipped / "own.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="not the file that was shipped"):
        load_pretrained("own")
    with pytest.raises(ValueError, match="'other'; expected one of 'own'"):
        load_pretrained("other")


def test_the_readme_tells_of_epochs_before_those_of_a_run():
    recipe = dict(epochs=4.0)
    assert ship.epochs(dict(recipe=recipe)) == "4"
    assert ship.epochs(dict(recipe=recipe, start=None)) == "4"
    found = dict(recipe=recipe, start=dict(source="other", sha256="1"))
    assert ship.epochs(found) == "4, after `other`"


def test_the_readme_lists_the_networks_that_come_along():
    text = ship.README.read_text("utf-8")
    assert text == ship.readme(text), "run `python tools/ship.py`"
    for name, about in pretrained().items():
        assert f"| `{name}` | {about['data']} | " in text


def test_large_files_are_not_shipped(ledger, shipped, monkeypatch):
    monkeypatch.setattr(ship, "LARGEST", 1000)
    before = (shipped / "index.json").read_text()
    with pytest.raises(ValueError, match="expected at most 1,000"):
        ship.ship("other", NAMES[0], ledger, shipped)
    assert (shipped / "index.json").read_text() == before


def test_what_ships_is_what_its_entry_of_the_ledger_says():
    index = json.loads((ship.WEIGHTS / "index.json").read_text())
    files = {path.stem for path in ship.WEIGHTS.glob("*.safetensors")}
    assert files == set(index)
    for name, about in index.items():
        place = repository() / "results" / about["entry"]
        row = next(
            row
            for row in runs.read(place)["seeds"]
            if row["seed"] == about["seed"]
        )
        content = (ship.WEIGHTS / f"{name}.safetensors").read_bytes()
        assert content == runs.model_path(place, row["seed"]).read_bytes()
        assert about["sha256"] == hashlib.sha256(content).hexdigest()
        assert about["accuracy"] == row["accuracy"]


LEAST = {"hcnn8-cifar10": 0.80, "hcnn8-shapes10": 0.95}


@pytest.mark.parametrize("name", LEAST)
def test_what_ships_reaches_what_was_asked_of_it(name):
    about = pretrained()[name]
    assert about["accuracy"] >= LEAST[name]
    data = runs.read(repository() / "results" / about["entry"])["data"]
    assert data["validation"] == 0 and data["images"] == 50_000
    assert data["test_images"] == 10_000


# the rate -------------------------------------------------------------------


def test_the_rate_of_the_trainer_is_measured_against_the_bare_step():
    found = rate.measure(rounds=3, steps=2, batch=2)
    assert len(found["rates"]) == 2  # the first round is left out
    shares = [whole / step for step, whole in found["rates"]]
    assert found["trainer_of_step"] == pytest.approx(sum(shares) / 2)
    assert found["batch"] == 2 and found["model"] == "hcnn8-shapes10"
    assert all(value > 0 for pair in found["rates"] for value in pair)
    assert json.loads(json.dumps(found))["rates"]
