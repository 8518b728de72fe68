"""Seeds, devices, precision, whole files, the record of a machine."""

import datetime
import json
import os
import re
import subprocess
import sys

import pytest
import torch

from hcnn import runtime
from hcnn.runtime import (
    autocast,
    best_device,
    environment,
    kind_of_device,
    rng,
)


def test_one_seed_gives_one_sequence():
    first, again = (torch.rand(5, generator=rng(3)) for _ in range(2))
    assert torch.equal(first, again)


def test_two_seeds_give_two_sequences():
    one, two = (torch.rand(5, generator=rng(seed)) for seed in (3, 4))
    assert not torch.equal(one, two)


def test_a_generator_is_its_own():
    """Neither does it move torch's global state, nor is it moved by it."""
    state = torch.get_rng_state()
    ours = rng(3)
    torch.rand(2, generator=ours)
    assert torch.equal(torch.get_rng_state(), state)
    expected = torch.rand(7, generator=rng(3))[2:]
    with torch.random.fork_rng(devices=[]):
        torch.rand(100)
        assert torch.equal(torch.rand(5, generator=ours), expected)


def test_the_best_device_computes():
    device = best_device()
    assert device.type in ("cuda", "cpu")
    assert torch.ones(2, device=device).sum().item() == 2


def test_without_a_gpu_the_best_device_is_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert best_device() == torch.device("cpu")


@pytest.mark.gpu
def test_with_a_gpu_the_best_device_is_the_gpu():
    assert best_device().type == "cuda"
    assert torch.rand(2, generator=rng(0, "cuda"), device="cuda").is_cuda


def enabled(device="cpu", precision="auto"):
    """Whether, and in which type, a product is computed in the context."""
    with autocast(device, precision):
        x = torch.ones(2, 2, device=device)
        return (x @ x).dtype


def test_the_precision_is_the_one_asked_for():
    assert enabled(precision="bf16") == torch.bfloat16
    assert enabled(precision="float32") == torch.float32
    with autocast("cpu", "bf16"):
        x = torch.ones(2, 2, dtype=torch.float64)
        assert (x @ x).dtype == torch.float64


FAULTS = """
import resource, sys, torch
from hcnn.runtime import keep_memory

assert len(sys.argv) == 1 or keep_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
array = lambda: torch.ones(2**24)  # 64 MiB; glibc may keep up to 32
for _ in range(10):  # until the heap has a place that is large enough
    array()
before = faults()
for _ in range(10):
    array()
print(faults() - before)
"""


def test_float32_is_whole_and_repeatable_and_what_was_set_comes_back():
    cudnn, conv = torch.backends.cudnn, torch.backends.cudnn.conv

    def now():
        return conv.fp32_precision, cudnn.benchmark, cudnn.deterministic

    before = now()
    try:
        cudnn.benchmark = True
        chosen = now()
        for precision in ("bf16", "auto"):
            with runtime.whole_float32(precision):
                assert now() == chosen
        with (
            pytest.raises(KeyError),
            runtime.whole_float32("float32"),
        ):
            assert now() == ("ieee", False, True)
            raise KeyError
        assert now() == chosen
    finally:
        cudnn.benchmark = before[1]


@pytest.mark.parametrize(
    "switch, after",
    [
        ("allow_tf32 = True", "tf32"),
        ("allow_tf32 = False", "none"),
        ("conv.fp32_precision = 'ieee'", "ieee"),
        ("fp32_precision = 'tf32'", "tf32"),
    ],
)
def test_float32_is_whole_whichever_switch_was_used(switch, after):
    """In a process of its own: older and newer ones do not mix."""
    program = f"""
import torch
from hcnn.runtime import whole_float32
torch.backends.cudnn.{switch}
conv = torch.backends.cudnn.conv
with whole_float32("float32"):
    print(conv.fp32_precision)
print(conv.fp32_precision)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert done.stdout.split() == ["ieee", after], done.stderr


@pytest.mark.parametrize(
    "switch, after",
    [
        ("set_float32_matmul_precision('high')", "tf32"),
        ("backends.cuda.matmul.fp32_precision = 'tf32'", "tf32"),
        ("set_float32_matmul_precision('highest')", "ieee"),
        ("get_float32_matmul_precision()", "none"),
    ],
)
def test_products_of_matrices_are_whole_whichever_switch_was_used(
    switch, after
):
    program = f"""
import torch
from hcnn.runtime import whole_float32
torch.{switch}
matmul = torch.backends.cuda.matmul
for precision in ("float32", "auto"):
    with whole_float32(precision):
        print(matmul.fp32_precision == "tf32")
        if "set" in {switch!r}:
            torch.get_float32_matmul_precision()  # no mixed switches
    print(matmul.fp32_precision)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    found = ["False", after, str(after == "tf32"), after]
    assert done.stdout.split() == found, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is Linux's")
def test_memory_that_is_kept_is_not_asked_for_again():
    """10 times 64 MiB are 160,000 pages of 4 KiB, or 320 of 2 MiB."""
    usual, kept = (
        int(
            subprocess.run(
                [sys.executable, "-c", FAULTS, *told],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for told in ([], ["keep"])
    )
    assert kept < usual / 4, (kept, usual)


def test_the_kind_of_device_says_what_its_arithmetic_is(monkeypatch):
    can = dict(avx512_bf16=True, amx_tile=False)
    monkeypatch.setattr(runtime, "_supports", can.get)
    capability = torch.backends.cpu.get_cpu_capability()
    assert kind_of_device("cpu") == f"cpu, {capability}, avx512_bf16"
    assert kind_of_device("meta") == "meta"


@pytest.mark.gpu
def test_the_kind_of_a_gpu_is_its_name():
    name = torch.cuda.get_device_name(0)
    assert kind_of_device("cuda") == f"cuda, {name}"


@pytest.mark.parametrize(
    "gain, expected", [(1.19, torch.float32), (1.21, torch.bfloat16)]
)
def test_auto_takes_bf16_where_it_is_a_fifth_faster(
    gain, expected, monkeypatch
):
    """A clock that each convolution moves by its type's time."""
    clock, conv2d = [0.0], torch.nn.functional.conv2d

    def timed(x, *arguments, **choices):
        clock[0] += 1.0 if x.dtype == torch.bfloat16 else gain
        return conv2d(x, *arguments, **choices)

    monkeypatch.setattr(torch.nn.functional, "conv2d", timed)
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    runtime._bf16_is_faster.cache_clear()
    try:
        assert enabled() == expected
        monkeypatch.undo()
        assert enabled() == expected  # asked once
    finally:
        runtime._bf16_is_faster.cache_clear()


ASK = """
import torch
from hcnn.runtime import autocast, environment
with autocast("cpu", "auto"):
    print(torch.is_autocast_enabled("cpu"))
print(environment()["onednn_max_cpu_isa"])
"""


def test_auto_is_float32_where_bf16_is_only_emulated():
    """With AVX2 alone, bf16 takes several times as long as float32."""
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False", "AVX2"]


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError) as caught:
        autocast("cpu", "half")
    assert str(caught.value) == (
        "autocast: precision is 'half'; expected one of 'auto', 'bf16', "
        "'float32'"
    )


@pytest.mark.gpu
def test_auto_on_a_gpu_goes_by_its_capability():
    fast = torch.cuda.get_device_capability() >= (8, 0)
    assert (enabled("cuda") == torch.bfloat16) == fast


def test_the_record_of_the_machine_is_json_and_complete():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert found["hardware"] and found["system"]
    assert 1 <= found["cores"] <= os.cpu_count()
    assert found["threads"] == torch.get_num_threads()
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["numpy"]
    assert (found["gpu"] is None) == (not torch.cuda.is_available())
    when = datetime.datetime.fromisoformat(found["date"])
    age = datetime.datetime.now(datetime.UTC) - when
    assert abs(age.total_seconds()) < 100


def test_what_torch_cannot_tell_about_a_processor_stays_open(monkeypatch):
    for feature in ("amx_tile", "avx512_bf16"):
        name = f"_is_{feature}_supported"
        monkeypatch.delattr(torch.cpu, name, raising=False)
    found = environment()
    assert found["amx"] is found["avx512_bf16"] is None
    for answer in (True, False):
        monkeypatch.setattr(
            torch.cpu, "_is_amx_tile_supported", lambda a=answer: a, False
        )
        assert environment()["amx"] is answer


def repository(folder):
    """A copy of what the project is recognized by, as a git repository."""
    for name in ("book/_toc.yml", "hcnn/runtime.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    git = "git", "-c", "user.name=a", "-c", "user.email=a@b"
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["commit", "--quiet", "--message=a"],
    ):
        subprocess.run([*git, *command], cwd=folder, check=True)


def test_the_commit_is_that_of_the_project_and_changes_are_told(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(runtime, "__file__", str(tmp_path / "x/y.py"))
    monkeypatch.chdir(tmp_path)
    assert runtime.repository() is None
    found = environment()
    assert found["commit"] is found["dirty"] is None
    repository(tmp_path / "project")
    (tmp_path / "project/a/b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "project/a/b")
    assert runtime.repository() == tmp_path / "project"
    found = environment()
    assert re.fullmatch("[0-9a-f]{40}", found["commit"])
    index = tmp_path / "project/.git/index"
    content = index.read_bytes()
    index.write_bytes(b"damaged")
    broken = environment()
    assert broken["commit"] == found["commit"] and broken["dirty"] is None
    index.write_bytes(content)
    monkeypatch.setenv("HCNN_COMMIT", "abc")  # git knows better
    assert environment() | dict(date="") == found | dict(date="")
    assert found["dirty"] is False
    for folder in ("runs", "results"):
        (tmp_path / f"project/{folder}").mkdir()
        (tmp_path / f"project/{folder}/new").touch()
        assert environment()["dirty"] is False
    entry = str(tmp_path / "project/results/new")
    subprocess.run(
        ["git", "add", entry], cwd=tmp_path / "project", check=True
    )
    assert environment()["dirty"] is True  # no longer a new entry's alone
    subprocess.run(
        ["git", "reset", "-q"], cwd=tmp_path / "project", check=True
    )
    assert environment()["dirty"] is False
    (tmp_path / "project/new").touch()
    assert environment()["dirty"] is True


def test_the_commit_of_another_repository_is_not_ours(
    tmp_path, monkeypatch
):
    """A package inside a folder that somebody else keeps in git."""
    repository(tmp_path)
    (tmp_path / "book/_toc.yml").unlink()
    monkeypatch.setattr(
        runtime, "__file__", str(tmp_path / "lib/hcnn/runtime.py")
    )
    monkeypatch.chdir(tmp_path)
    assert environment()["commit"] is None
    monkeypatch.setenv("HCNN_COMMIT", "abc")  # of a copy without .git
    found = environment()
    assert found["commit"] == "abc" and found["dirty"] is None


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path, events = tmp_path / "a", []
    fsync, replace = os.fsync, os.replace

    def synced(number):
        events.append(os.fstat(number).st_size)
        fsync(number)

    def renamed(old, new):
        events.append("renamed")
        assert old.parent == new.parent
        replace(old, new)

    monkeypatch.setattr("os.fsync", synced)
    monkeypatch.setattr("os.replace", renamed)
    runtime.write(path, b"first")
    assert path.read_bytes() == b"first" and events == [5, "renamed"]

    def full(_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        runtime.write(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(
        FileNotFoundError,
        match=r"^save: no folder .*/b for c; make it first$",
    ):
        runtime.write(tmp_path / "b/c", b"", "save")


# many processes -------------------------------------------------------------


def test_in_one_process_sums_and_means_are_what_they_were():
    x = torch.ones(3)
    assert runtime.world_size() == 1
    assert runtime.rank_sum(x) is x
    means, count = runtime.rank_mean([x], 7)
    assert means[0] is x and count == 7


def test_a_mean_over_ranks_is_that_of_all_values(tmp_path):
    """Of two processes with three and with five values, gradients too."""
    torch.multiprocessing.spawn(
        uneven_mean, (tmp_path / "store",), nprocs=2
    )


def uneven_mean(rank, store):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    everything = torch.linspace(-1, 2, 16, dtype=torch.float64).view(8, 2)
    own = everything.split((3, 5))[rank].clone().requires_grad_()
    means = [own.mean(0).view(2, 1), own.square().mean(0)]
    (first, second), count = runtime.rank_mean(means, len(own))
    assert count == 8 and first.shape == (2, 1)
    (first.square().sum() + second.sum()).backward()
    whole = everything.requires_grad_()
    loss = whole.mean(0).square().sum() + whole.square().mean(0).sum()
    loss.backward()
    torch.testing.assert_close(first.flatten(), whole.mean(0))
    # the loss is counted in either process
    expected = 2 * whole.grad.split((3, 5))[rank]
    torch.testing.assert_close(own.grad, expected)
    torch.distributed.destroy_process_group()


def test_two_writers_of_one_number_do_not_share_a_file(
    tmp_path, monkeypatch
):
    """Containers that share a disk number their processes alike."""
    replace, names = os.replace, []

    def note(here, there):
        names.append(here)
        replace(here, there)

    monkeypatch.setattr(os, "replace", note)
    for content in (b"a", b"b"):
        runtime.write(tmp_path / "file", content)
    assert len(set(names)) == 2


def test_to_ask_for_the_commit_leaves_git_s_index_alone(
    tmp_path, monkeypatch
):
    """Else somebody's `git commit` may find it locked."""

    def git(*words):
        who = "-c", "user.name=a", "-c", "user.email=a@b"
        subprocess.run(["git", *who, *words], cwd=tmp_path, check=True)

    git("init", "-q")
    file, index = tmp_path / "file", tmp_path / ".git" / "index"
    file.write_text("one")
    git("add", ".")
    git("commit", "-qm", "one")
    os.utime(file, (0, 0))  # what it knows of the file is out of date
    before = index.stat().st_ino
    monkeypatch.setattr(runtime, "repository", lambda: tmp_path)
    assert runtime.environment()["dirty"] is False
    assert index.stat().st_ino == before
