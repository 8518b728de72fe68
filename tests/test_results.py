"""The ledger: folders are added whole, the newest is read."""

import json
import os
import re
import subprocess
import sys
import time
import warnings

import pytest
import torch

from hcnn import runtime
from hcnn.results import entries, newest, record, value


def tree(root):
    """Every file and folder below, with the files' content."""
    return {
        str(path.relative_to(root)): path.is_file() and path.read_bytes()
        for path in sorted(root.rglob("*"))
    }


def test_an_entry_is_read_as_it_was_written(tmp_path):
    data = dict(rows=[dict(seed=0, accuracy=0.5)], text="τ", none=None)
    path = record("train-a", data, root=tmp_path / "new/results")
    assert path == tmp_path / "new/results/train-a-1"
    found = newest("train-a", tmp_path / "new/results")
    environment = found.pop("environment")
    assert found == data and "environment" not in data
    assert environment["hardware"] and environment["packages"]["torch"]


def test_an_environment_that_is_given_is_kept(tmp_path):
    record("a", dict(environment=dict(hardware="abacus")), root=tmp_path)
    assert newest("a", tmp_path)["environment"] == {"hardware": "abacus"}


def test_numbers_go_up_and_the_newest_is_read(tmp_path):
    for number in range(1, 12):
        path = record("a-b", dict(number=number), root=tmp_path)
        assert path.name == f"a-b-{number}"
    record("a", dict(number=0), root=tmp_path)
    record("a-b-1", dict(number=-1), root=tmp_path)
    assert newest("a-b", tmp_path)["number"] == 11  # not 9, as in a sort
    assert newest("a", tmp_path)["number"] == 0
    assert newest("a-b-1", tmp_path)["number"] == -1
    found = entries(root=tmp_path)
    assert [(e.name, e.number) for e in found] == sorted(
        [("a", 1), ("a-b-1", 1), *(("a-b", n) for n in range(1, 12))]
    )
    assert all(e.path == tmp_path / f"{e.name}-{e.number}" for e in found)
    assert {e.name for e in entries("a-b", tmp_path)} == {"a-b"}


def test_adding_changes_no_other_entry(tmp_path):
    record("a", dict(x=1), root=tmp_path)
    (tmp_path / "README.md").write_text("not an entry")
    (tmp_path / "a-7").mkdir()  # a number that is taken, though empty
    (tmp_path / "a-7/run.json").write_text("damaged")
    before = tree(tmp_path)
    assert record("a", dict(x=2), root=tmp_path).name == "a-8"
    after = tree(tmp_path)
    assert before.items() < after.items()
    assert set(after) - set(before) == {"a-8", "a-8/run.json"}


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    old, new = (tmp_path / f".{name}.partial" for name in ("old", "new"))
    for folder in (old, new):
        (folder / "a").mkdir(parents=True)
    yesterday = time.time() - 25 * 60 * 60
    os.utime(old, (yesterday, yesterday))
    record("a", {}, root=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"a-1", new.name}


def test_the_files_of_an_entry_are_kept(tmp_path):
    log = tmp_path / "train.jsonl"
    log.write_bytes(b"{}\n")
    path = record("a", {}, root=tmp_path / "results", files=[log])
    assert (path / "train.jsonl").read_bytes() == b"{}\n"
    assert len(list(path.iterdir())) == 2


def test_another_process_may_take_the_number_first(tmp_path, monkeypatch):
    from pathlib import Path

    rename = Path.rename

    def late(self, target):
        monkeypatch.setattr(Path, "rename", rename)
        record("a", dict(who="quicker"), root=tmp_path)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", late)
    assert record("a", dict(who="slower"), root=tmp_path).name == "a-2"
    who = [entry.data["who"] for entry in entries("a", tmp_path)]
    assert who == ["quicker", "slower"]


def test_a_file_with_the_name_of_an_entry_is_passed_by(tmp_path):
    (tmp_path / "a-1").write_text("no folder")
    assert record("a", {}, root=tmp_path).name == "a-2"
    assert record("a", {}, root=tmp_path).name == "a-3"
    assert (tmp_path / "a-1").read_text() == "no folder"


def test_nothing_half_written_stays_behind(tmp_path, monkeypatch):
    record("a", dict(x=1), root=tmp_path)
    before = tree(tmp_path)

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        record("a", dict(x=2), root=tmp_path)
    assert tree(tmp_path) == before


KILLED = """
import os, sys
from hcnn import results, runtime
runtime.write = lambda *_: os._exit(9)
results.record("a", {"x": 2, "environment": {}}, root=sys.argv[1])
"""


def test_what_a_killed_process_leaves_is_no_entry(tmp_path):
    record("a", dict(x=1), root=tmp_path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)])
    assert done.returncode == 9
    assert len(list(tmp_path.iterdir())) == 2  # something lies there
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest("a", tmp_path)["x"] == 1
    assert record("a", dict(x=3), root=tmp_path).name == "a-2"


@pytest.mark.parametrize(
    "content", ["", '{"x": 1', "[1]", b"\xff\xfe", None], ids=repr
)
def test_a_damaged_entry_is_named_and_left_out(content, tmp_path):
    record("a", dict(x=1), root=tmp_path)
    damaged = record("a", dict(x=2), root=tmp_path)
    if content is None:
        (damaged / "run.json").unlink()
    elif isinstance(content, bytes):
        (damaged / "run.json").write_bytes(content)
    else:
        (damaged / "run.json").write_text(content)
    with pytest.warns(
        UserWarning, match=re.escape(f"{damaged} is left out")
    ):
        assert newest("a", tmp_path)["x"] == 1


def test_values_come_rounded_and_as_python_has_them(tmp_path):
    data = dict(
        K16=dict(bf16=dict(speedup=21.5678, rows=[7, 8.98765])),
        seeds=12345,
        card="H100",
        exact=True,
    )
    record("bench-a", data, root=tmp_path)

    def found(key, **choices):
        return value(f"bench-a.{key}", root=tmp_path, **choices)

    assert found("K16.bf16.speedup") == 21.6
    assert found("K16.bf16.speedup", digits=5) == 21.568
    assert found("K16.bf16.rows.1") == 8.99
    assert found("seeds") == 12345 and found("card") == "H100"
    assert found("exact") is True
    for key, words in [
        ("K16.bf32.speedup", "bench-a.K16 has no 'bf32'; it has bf16"),
        (
            "K16.bf16.rows.2",
            "bench-a.K16.bf16.rows has no '2'; it has 0, 1",
        ),
        ("seeds.x", "bench-a.seeds has no 'x'; it has 12345"),
    ]:
        with pytest.raises(KeyError, match=re.escape(words)):
            found(key)


def test_the_ledger_of_the_project_is_found_from_any_folder(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name, number in {(e.name, e.number) for e in entries()}:
        assert (runtime.repository() / f"results/{name}-{number}").is_dir()
    with pytest.raises(FileNotFoundError) as caught:
        newest("bench-nothing")
    assert str(runtime.repository() / "results") in str(caught.value)
    assert str(caught.value).endswith("make it with: make bench")


def test_without_a_project_the_error_says_where_it_was_looked_for(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(runtime, "repository", lambda: None)
    monkeypatch.chdir(tmp_path)
    for call in (entries, lambda: newest("a"), lambda: record("a", {})):
        with pytest.raises(FileNotFoundError) as caught:
            call()
        assert str(tmp_path) in str(caught.value)
        assert "pass root=" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name, data, words",
    [
        ("a/b", {}, "name is 'a/b'; expected letters"),
        ("", {}, "name is ''"),
        (".a", {}, "name is '.a'"),
        ("a", dict(x=float("nan")), "data of a is not JSON: "),
        ("a", dict(x=torch.ones(2)), "convert tensors by .tolist()"),
    ],
)
def test_what_the_ledger_cannot_hold_is_refused(
    name, data, words, tmp_path
):
    with pytest.raises(ValueError) as caught:
        record(name, data, root=tmp_path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_two_files_of_one_name_are_refused(tmp_path):
    for folder in "xy":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "log").touch()
    (tmp_path / "run.json").touch()
    root = tmp_path / "results"
    for files in (["x/log", "y/log"], ["run.json"]):
        with pytest.raises(ValueError, match="different names"):
            record("a", {}, root=root, files=[tmp_path / f for f in files])
    with pytest.raises(FileNotFoundError):
        record("a", {}, root=root, files=[tmp_path / "z"])
    assert not root.exists()


def test_an_entry_is_on_the_disk_before_it_gets_its_name(
    tmp_path, monkeypatch
):
    synced, fsync = [], os.fsync

    def remember(number):
        synced.append(os.fstat(number).st_size)
        assert not (tmp_path / "a-1").exists()
        fsync(number)

    monkeypatch.setattr("os.fsync", remember)
    path = record("a", dict(x=1), root=tmp_path)
    assert synced == [(path / "run.json").stat().st_size]
    assert json.loads((path / "run.json").read_text())["x"] == 1


def test_no_command_of_the_ledger_names_a_place_of_one_machine():
    """A run is repeated elsewhere: give --out a relative folder, or none."""
    found = [
        (entry.name, word)
        for entry in entries()
        for word in entry.data.get("command", "").replace("=", " ").split()
        if word.startswith(("/", "~"))
    ]
    assert not found, found
