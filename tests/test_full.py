"""The paper's networks in pieces, and how networks get into the package."""

import hashlib
import json
import sys
from dataclasses import replace

import pytest
import torch

from benchmarks import full
from hcnn import network, results, runs
from hcnn.network import HCNN, load_pretrained, pretrained
from hcnn.runtime import repository

sys.path.insert(0, str(repository() / "tools"))
import ship

JOBS = (("hcnn8-cifar10", "modern"), ("hcnn8-cifar100", "paper"))
SMALL = dict(K=4, Q=2, support=(1, 3))


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two small networks, in a place of their own."""
    own = full.job

    def job(*arguments):
        run, more = own(*arguments)
        return replace(run, changes=SMALL), more

    monkeypatch.setattr(full, "job", job)
    monkeypatch.setattr(full, "JOBS", JOBS)
    monkeypatch.setattr(full, "ROOT", tmp_path)
    return tmp_path / "runs" / "dry" / "results"


def test_all_networks_of_the_tables_are_trained_the_modern_way_first():
    names = [name for _, name in full.JOBS]
    assert names == ["modern"] * 5 + ["paper"] * 5
    assert full.JOBS[0][0] == "hcnn-cifar10"
    for model, name in full.JOBS:
        run, more = full.job(model, name, dry=False)
        assert run.model == model and run.changes == {} and not more
        assert run.data == ("cifar100" if "100" in model else "cifar10")
        assert not run.validation


def test_pieces_end_as_one_run_does_and_each_is_recorded_once(
    small, capsys
):
    calls = 1
    while full.main(["--dry", "--minutes", "0.001"]) == full.UNFINISHED:
        assert "the same command goes on" in capsys.readouterr().out
        calls += 1
        assert calls < 20
    assert calls > 1
    for model, name in JOBS:
        (entry,) = results.entries(full.entry_name(model, name), small)
        assert entry.data["command"] == "make results-gpu"
        assert entry.data["seeds"][0]["steps"] == 2
        assert (entry.path / "model-0.safetensors").exists()
    assert full.main(["--dry"]) == 0  # nothing is left to do
    assert len(results.entries(root=small)) == len(JOBS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_can_be_done(capsys):
    with pytest.raises(SystemExit):
        full.main([])
    assert "try --dry" in capsys.readouterr().err


# into the package -----------------------------------------------------------


@pytest.fixture
def shipped(small, tmp_path, monkeypatch):
    """A package with one network, of the newest of two entries."""
    full.main(["--dry"])
    name = full.entry_name(*JOBS[0])
    runs.record(tmp_path / "runs" / "dry" / name, name, small)
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "index.json").write_text("{}")
    monkeypatch.setattr(network.resources, "files", lambda name: tmp_path)
    ship.ship("own", name, small, weights)
    return weights


def test_a_shipped_network_is_the_one_of_its_entry(shipped, small):
    (about,) = pretrained().values()
    entry = results.entries(full.entry_name(*JOBS[0]), small)[-1]
    assert about["entry"] == entry.path.name and entry.number == 2
    assert about["accuracy"] == entry.data["seeds"][0]["accuracy"]
    own = load_pretrained("own").state_dict()
    other = HCNN.load(runs.model_path(entry.path, 0)).state_dict()
    assert all(torch.equal(own[key], other[key]) for key in other)


def test_a_file_that_was_not_shipped_is_refused(shipped):
    path = shipped / "own.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ValueError, match="not the file that was shipped"):
        load_pretrained("own")
    with pytest.raises(ValueError, match="'other'; expected one of 'own'"):
        load_pretrained("other")


def test_large_files_are_not_shipped(small, shipped, monkeypatch):
    monkeypatch.setattr(ship, "LARGEST", 1000)
    before = (shipped / "index.json").read_text()
    with pytest.raises(ValueError, match="expected at most 1,000"):
        ship.ship("other", full.entry_name(*JOBS[0]), small, shipped)
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
