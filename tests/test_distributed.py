"""Many processes equal one, and a run outlives one that is killed.

torchrun starts this file as a program: python … test_distributed.py FOLDER
"""

import errno
import math
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from hcnn import cli, runs, training
from hcnn.data import shapes10
from hcnn.network import HCNN, preset
from hcnn.training import Trainer, checkpoints, distributed, place, recipe

FILE = Path(__file__).resolve()
FIVE_STEPS = recipe(
    "quick", epochs=1.0, batch=8, shift=1, ema=0.9, precision="float32"
)
LONGER = replace(FIVE_STEPS, epochs=4.0)
VARIANTS = {
    "factorized": dict(engine="factorized", output_norm=False),
    "fused": dict(engine="fused", output_norm=False),
    "periodic": dict(engine="fused", padding="periodic"),
    "plus": dict(engine="auto", plus=True, output_norm=False),
    "plus-factorized": dict(engine="factorized", plus=True),
    "muon": dict(engine="fused"),
}


def small(n, split="train"):
    data = shapes10(n, 0, split)
    return replace(data, images=data.images[..., ::4, ::4].contiguous())


def build(data, seed=0, engine="auto", **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = preset(
            "hcnn8-shapes10", K=4, Q=3, support=(1, 3), **changes
        )
        about = dict(mean=data.mean, std=data.std)
        return HCNN(config, engine, **about).double()


def train(folder=None, name="fused", data=None, **options):
    """A network in float64 after five steps, and what the run returns."""
    data, held_out = data or small(40), small(11, "test")
    # each process begins with other weights: those of the first count
    network = build(data, seed=place()[0], **VARIANTS[name])
    own = replace(FIVE_STEPS, optimizer="muon" if name == "muon" else "sgd")
    options = dict(recipe=own, device="cpu", progress=False) | options
    trainer = Trainer(
        network, data, folder=folder, test=held_out, **options
    )
    return network, trainer.run()


def torchrun(folder, *arguments, processes=2, restarts=0):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={processes}", f"--max-restarts={restarts}",
        "--monitor-interval=0.5", FILE, folder, *arguments,
    ]  # fmt: skip
    paths = [str(FILE.parent.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        list(map(str, command)),
        env=os.environ
        | dict(
            OMP_NUM_THREADS="1",
            CUDA_VISIBLE_DEVICES="",
            PYTHONPATH=os.pathsep.join(paths),
            PYTHONWARNINGS="error::FutureWarning:hcnn",
        ),
        capture_output=True,
        text=True,
        timeout=300,
    )


def results(folder):
    return torch.load(folder / "results.pt", weights_only=True)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What two processes find, for every variant."""
    folder = tmp_path_factory.mktemp("two")
    done = torchrun(folder, *VARIANTS)
    assert done.returncode == 0, done.stderr
    assert "once" in done.stdout and done.stdout.count("once") == 1
    return results(folder)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_processes_equal_one(two, name):
    """Half the batch each; gradients and batch statistics are shared."""
    network, result = train(name=name)
    weights, other = two[name]
    own = network.state_dict()
    assert own.keys() == weights.keys()
    start = build(small(40), **VARIANTS[name]).state_dict()
    for key, value in own.items():
        error = (weights[key] - value).abs().max().item()
        assert error < 1e-10, f"{name}, {key}: {error:.2g}"
    moved = (own["W3.attribute"] - start["W3.attribute"]).abs().max()
    assert moved > 1e-3
    for key in ("accuracy", "mirror_accuracy", "confusion", "steps"):
        assert other[key] == result[key], key
    assert other["loss"] == pytest.approx(result["loss"], rel=1e-9)
    for a, b in zip(other["history"], result["history"], strict=True):
        assert a == pytest.approx(b, rel=1e-9)


def test_a_killed_process_is_replaced_and_the_run_ends(tmp_path):
    begin = time.monotonic()
    done = torchrun(tmp_path, "fused", "kill", restarts=1)
    assert done.returncode == 0, done.stderr
    assert "killed at step 7" in done.stdout
    assert time.monotonic() - begin < 60
    network, _ = train(recipe=LONGER)
    weights, result = results(tmp_path)["fused"]
    for key, value in network.state_dict().items():
        assert (weights[key] - value).abs().max() < 1e-8, key
    (tmp_path / "whole").mkdir()
    assert torchrun(tmp_path / "whole", "fused", "long").returncode == 0
    whole, _ = results(tmp_path / "whole")["fused"]
    for key, value in whole.items():  # two processes, not torn: the same
        assert torch.equal(weights[key], value), key
    assert [row["step"] for row in result["history"]] == [5, 10, 15, 20]


def test_without_a_replacement_the_run_ends_and_keeps_what_it_saved(
    tmp_path,
):
    begin = time.monotonic()
    done = torchrun(tmp_path, "fused", "kill")
    assert done.returncode != 0
    assert time.monotonic() - begin < 60
    assert checkpoints(tmp_path / "fused")[-1].name == "step-00000005"


@pytest.mark.parametrize(
    "fault, words, last",
    [
        ("nan", "Trainer: step 8 fails: ", "step-00000005"),
        ("full", "step 5 could not be written in ", "step-00000000"),
    ],
)
def test_one_process_that_fails_ends_all_and_keeps_what_was_saved(
    fault, words, last, tmp_path
):
    """One that diverges, and the first whose disk is full."""
    begin = time.monotonic()
    done = torchrun(tmp_path, "fused", fault)
    assert done.returncode != 0 and words in done.stderr
    assert time.monotonic() - begin < 60
    assert not (tmp_path / "results.pt").exists()
    assert checkpoints(tmp_path / "fused")[-1].name == last
    assert torchrun(tmp_path, "fused", "long").returncode == 0
    weights, _ = results(tmp_path)["fused"]
    for key, value in train(recipe=LONGER)[0].state_dict().items():
        assert (weights[key] - value).abs().max() < 1e-8, key


def test_a_process_that_is_told_to_end_stops_all_at_one_step(tmp_path):
    """Also those that were not told; what was saved is gone on from."""
    done = torchrun(tmp_path, "fused", "term", restarts=1)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        assert f"process {rank} ends: 143" in done.stdout
    weights, result = results(tmp_path)["fused"]
    assert result["steps"] == 20
    network, _ = train(recipe=LONGER)
    for key, value in network.state_dict().items():
        assert (weights[key] - value).abs().max() < 1e-8, key
    rows = (tmp_path / "fused/log.jsonl").read_text().splitlines()
    assert any('"step": 10,' in row for row in rows)  # where all agreed


def agent(*options, arguments, program=("-m", "hcnn", "train")):
    """A torchrun that trains, by the command line or by this program."""
    command = [
        sys.executable, "-m", "torch.distributed.run", *options,
        *program, *arguments,
    ]  # fmt: skip
    paths = [str(FILE.parent.parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        list(map(str, command)),
        env=os.environ
        | dict(
            OMP_NUM_THREADS="1",
            CUDA_VISIBLE_DEVICES="",
            PYTHONPATH=os.pathsep.join(paths),
            PYTHONWARNINGS="error::FutureWarning:hcnn",
        ),
        cwd=FILE.parent.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(agents):
    """What each of some torchruns told; none is left behind."""
    try:
        return [own.communicate(timeout=240)[0] for own in agents]
    finally:
        for own in agents:
            own.kill()


def of_two_machines():
    """Options of two torchruns that meet at a free port."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    return [
        *("--nnodes", 2, "--nproc-per-node", 1, "--rdzv-id", "own"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint"),
        f"localhost:{port}",
    ]


def test_a_process_killed_on_one_of_two_machines_is_replaced(tmp_path):
    """Its machine counts a restart, the other does not."""
    options = [
        *of_two_machines(), "--max-restarts", 1, "--monitor-interval", 0.5
    ]  # fmt: skip
    arguments = [tmp_path, "fused", "wait", "kill"]
    agents = [
        agent(*options, arguments=arguments, program=[FILE])
        for _ in range(2)
    ]
    told = ended(agents)
    assert all(own.returncode == 0 for own in agents), told
    assert "".join(told).count("killed at step 7") == 1, told
    counts = sorted((tmp_path / "restarts").read_text().split())
    assert counts == ["0", "0", "0", "1"], counts
    network, _ = train(recipe=LONGER)
    weights, _ = results(tmp_path)["fused"]
    for key, value in network.state_dict().items():
        assert (weights[key] - value).abs().max() < 1e-8, key


def test_processes_with_other_images_are_refused(tmp_path):
    done = torchrun(tmp_path, "fused", "differ")
    assert done.returncode != 0
    assert "process 1" in done.stderr and "data.sha256 is" in done.stderr
    assert "as the first, but another is not" in done.stderr
    assert not checkpoints(tmp_path / "fused")


@pytest.mark.parametrize("machines", [1, 2])
def test_the_command_line_trains_in_two_processes(
    machines, pictures, tmp_path
):
    """Of one machine, or of two that meet at the address of the first."""
    arguments = [
        *("--data", pictures, "--epochs", 2, "--batch", 8, "--shift", 1),
        *("--precision", "float32", "--K", 4, "--Q", 3),
        *("--support", 1, 3, "--seeds", 0, 1, "--out"),
    ]
    if machines == 1:
        options = ["--standalone", "--nproc-per-node", 2]
    else:
        options = of_two_machines()
    agents = [
        agent(*options, arguments=[*arguments, tmp_path / "many"])
        for _ in range(machines)
    ]
    told = ended(agents)
    assert all(own.returncode == 0 for own in agents), told
    assert "".join(told).count("finished; see hcnn evaluate") == 1, told
    found = runs.read(tmp_path / "many")
    assert found["processes"] == 2 and len(found["seeds"]) == 2
    nodes = f"--nnodes {machines} --nproc-per-node {2 // machines}"
    assert found["command"].startswith(f"torchrun {nodes} -m hcnn train")
    cli.main(["train", *map(str, arguments), str(tmp_path / "one")])
    for seed in (0, 1):
        many, one = (
            HCNN.load(runs.model_path(tmp_path / name, seed)).state_dict()
            for name in ("many", "one")
        )
        for key, value in one.items():
            assert (many[key] - value).abs().max() < 1e-3, key


def test_a_piece_of_a_run_is_not_taken_for_a_failure(pictures, tmp_path):
    piece = agent(
        *("--standalone", "--nproc-per-node", 2),
        arguments=[
            *("--data", pictures, "--epochs", 20, "--batch", 8),
            *("--shift", 1, "--precision", "float32", "--K", 4, "--Q", 3),
            *("--support", 1, 3, "--minutes", 0, "--out", tmp_path / "run"),
        ],
    )
    (told,) = ended([piece])
    assert piece.returncode == 0, told
    assert told.count("saved; the same command goes on") == 1, told
    (*_, last) = checkpoints(tmp_path / "run" / "seed-0")
    assert last.name == "step-00000001"  # where all talk first


def test_a_first_process_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(training, "_MEETING", 0.1)
    with pytest.raises(TimeoutError, match="process 0 did not come"):
        training._agreed(dist.HashStore(), 1, 2)


def test_only_the_first_process_needs_the_record(
    pictures, tmp_path, monkeypatch
):
    """Another one may not see its storage, or not yet."""
    told = []

    def in_all(value):
        told.append(value)
        return [{}, {0: None}, {"mean": 0.5}][len(told) - 1]

    run = runs.Run(
        "hcnn8-cifar10", "quick", recipe("quick"), str(pictures), {}
    )
    monkeypatch.setattr(runs, "place", lambda: (1, 2))
    monkeypatch.setattr(runs, "_in_all", in_all)
    monkeypatch.setattr(
        Trainer, "run", lambda *_, **__: dict(finished=True)
    )
    done = runs.train(run, tmp_path / "elsewhere", device="cpu")
    assert done == {"mean": 0.5} and told[0] is told[2] is None


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setattr(training, "place", lambda: (0, 3))
    data = small(40)
    with pytest.raises(
        ValueError, match=r"batch of 8 for 3 .* multiple of 3"
    ):
        Trainer(build(data), data, FIVE_STEPS, device="cpu")


def test_without_torchrun_there_is_one_process():
    with distributed() as device:
        assert place() == (0, 1)
        assert device.type == (
            "cuda" if torch.cuda.is_available() else "cpu"
        )
    assert not dist.is_initialized()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ValueError, match="--nproc-per-node 2"),
        distributed(),
    ):
        pass


def main(folder, *names):
    """The program: train every variant, in however many processes.

    With "long" they take twenty steps. With "kill" the second process then
    dies in step 7, with "term" it is told
    to end; but only once. With "wait" the other one does not fail of that,
    which its machine would count, but waits to be told. With "differ" the
    second has other labels. With "nan" the weights of the second are lost
    in step 7, with "full" the first saves once and no more.
    """
    died = folder / "died"
    real, found = training.learning_rate, {}
    last = {"kill": signal.SIGKILL, "term": signal.SIGTERM}

    def deadly(*arguments):
        if arguments[1] == 6:
            print("killed at step 7", flush=True)
            died.touch()
            os.kill(os.getpid(), last[names[-1]])
        return real(*arguments)

    write, written = training.write_checkpoint, []

    def full(*arguments):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(write(*arguments))

    with distributed():
        with open(folder / "restarts", "a") as counts:
            counts.write(os.environ["TORCHELASTIC_RESTART_COUNT"] + "\n")
        if names[-1] in last and place()[0] == 1 and not died.exists():
            training.learning_rate = deadly
        if names[-1] == "nan" and place()[0] == 1:
            training.learning_rate = lambda *given: (
                math.nan if given[1] == 6 else real(*given)
            )
        if names[-1] == "full" and place()[0] == 0:
            training.write_checkpoint = full
        for name in [n for n in names if n in VARIANTS]:
            longer = names[-1] in (*last, "long", "nan", "full")
            options = dict(recipe=LONGER) if longer else {}
            if names[-1] == "differ" and place()[0] == 1:
                data = small(40)
                options["data"] = replace(data, labels=data.labels.roll(1))
            try:
                network, result = train(folder / name, name, **options)
            except SystemExit as exit:
                print(f"process {place()[0]} ends: {exit.code}", flush=True)
                raise
            except RuntimeError:  # of a collective
                if "wait" in names:
                    time.sleep(60)
                raise
            found[name] = network.state_dict(), result
        if place()[0] == 0:
            print("once")
            torch.save(found, folder / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
