"""The trainer: recipes, the stream of images, exact resume, bad input."""

import errno
import functools
import itertools
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from datetime import timedelta
from pathlib import Path

import numpy
import pytest
import torch
import torch.nn.functional as F

from hcnn import runtime, training
from hcnn.data import Augment, Dataset, load_dataset, shapes10
from hcnn.network import HCNN, preset
from hcnn.training import (
    TERMINATED,
    Muon,
    Recipe,
    Trainer,
    batch_indices,
    checkpoints,
    data_digest,
    evaluate,
    history,
    judge,
    learning_rate,
    parameter_groups,
    predict,
    read_checkpoint,
    recipe,
    stream,
    total_steps,
    write_checkpoint,
)

HERE = Path(__file__).resolve().parent
SMALL = dict(K=4, Q=3, support=(1, 3))
BRIEF = recipe(
    "quick", epochs=3.0, batch=16, shift=1, ema=0.9, precision="float32"
)
LONGER = replace(BRIEF, epochs=6.0)  # 15 steps
POLAR = replace(
    LONGER, optimizer="muon", learning_rate=0.02, weight_decay=0.0
)
TORN = dict(sgd=LONGER, muon=POLAR)


def small(n=40, split="train", seed=0):
    """Drawn shapes, every fourth pixel of them."""
    data = shapes10(n, seed, split)
    return replace(data, images=data.images[..., ::4, ::4].contiguous())


def build(data, seed=0, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return HCNN(
            preset("hcnn8-shapes10", **SMALL | changes),
            mean=data.mean,
            std=data.std,
            class_names=data.class_names,
        )


def train(folder=None, *, seed=0, run=None, data=None, **options):
    """The network after training, and what the run returns."""
    data = small() if data is None else data
    options = dict(recipe=BRIEF, progress=False, device="cpu") | options
    network = build(data, seed)
    trainer = Trainer(network, data, folder=folder, **options)
    return network, trainer.run(**run or {})


def weights(network):
    return {k: v.clone() for k, v in network.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="module")
def whole():
    """The weights of a run that nothing interrupted, and its result."""
    network, result = train(test=small(20, "test"))
    return weights(network), result


# recipes


@pytest.mark.parametrize(
    "change",
    [
        dict(epochs=0.0),
        dict(epochs=math.nan),
        dict(epochs=math.inf),
        dict(batch=0),
        dict(batch=2.5),
        dict(batch=True),
        dict(learning_rate=-0.1),
        dict(learning_rate="0.1"),
        dict(schedule="cosine"),
        dict(milestones=(1.0,)),
        dict(milestones=(1.0,), factors=(0.1,)),  # of one cycle
        dict(schedule="steps", milestones=(2.0, 1.0), factors=(0.5, 0.1)),
        dict(schedule="steps", milestones=(1.0,), factors=()),
        dict(schedule="steps", milestones=(1.0,), factors=(0.0,)),
        dict(schedule="steps", milestones=(1.0,), factors=(math.inf,)),
        dict(schedule="steps", milestones=("1",), factors=(0.1,)),
        dict(milestones=1.0, schedule="steps"),
        dict(warmup=1.5),
        dict(final=-0.1),
        dict(momentum=1.0),
        dict(momentum=0.0),
        dict(weight_decay=-1e-4),
        dict(decay="some"),
        dict(label_smoothing=1.0),
        dict(ema=1.0),
        dict(shift=-1),
        dict(flip="no"),
        dict(nesterov=1.0),
        dict(precision="half"),
    ],
    ids=str,
)
def test_a_recipe_refuses_nonsense(change, no_shape_checks):
    name = next(iter(change))
    with pytest.raises(ValueError, match=r"Recipe: .*expected") as error:
        Recipe(**change)
    assert name in str(error.value)


def test_recipes_have_names_and_changes():
    assert recipe("paper", epochs=3.0) == replace(
        recipe("paper"), epochs=3.0
    )
    with pytest.raises(ValueError, match="'paper', 'authors', 'modern'"):
        recipe("fast")
    with pytest.raises(TypeError, match="no field 'rate'"):
        recipe("paper", rate=1)


def test_the_recipes_of_paper_and_authors_have_their_numbers():
    """The paper, section 4.2; the authors' published file."""
    paper, authors = recipe("paper"), recipe("authors")
    for own in (paper, authors):
        assert (own.batch, own.optimizer, own.momentum) == (50, "sgd", 0.9)
        assert own.flip and not own.label_smoothing and not own.ema
        assert own.schedule == "steps"
    assert (paper.epochs, paper.learning_rate) == (240, 0.25)
    assert paper.milestones == (40, 80, 120, 160, 200)
    assert paper.factors == (0.1, 0.01, 0.001, 0.0001, 0.00001)
    assert (paper.weight_decay, paper.decay) == (2e-4, "all")
    assert paper.shift == 6 and not paper.nesterov
    assert (authors.epochs, authors.learning_rate) == (320, 0.35)
    assert authors.milestones == (
        *paper.milestones, 240, 260, 280, 300,
    )  # fmt: skip
    assert authors.factors == (
        0.5, 0.25, 0.12, 0.06, 0.03, 0.015, 0.007, 0.00035, 0.00017,
    )  # fmt: skip
    assert (authors.weight_decay, authors.decay) == (6e-4, "kernels")
    assert authors.shift == 4 and authors.nesterov


@pytest.mark.parametrize("name", ["paper", "authors", "modern", "quick"])
def test_a_recipe_holds_plain_values_and_survives_json(
    name, no_shape_checks
):
    """So that each field can be an option of a command."""
    own = recipe(name)
    kinds = (int, float, bool, str)
    for field in fields(own):
        value = getattr(own, field.name)
        if field.type == tuple[float, ...]:
            assert all(type(v) is float for v in value)
        else:
            assert field.type in kinds and type(value) is field.type
    assert Recipe(**json.loads(json.dumps(asdict(own)))) == own


def test_the_paper_divides_by_ten_every_forty_epochs():
    own, n = recipe("paper"), 50_000
    assert total_steps(own, n) == 240_000
    for epoch in (0, 39, 40, 80, 120, 160, 200, 239):
        expected = 0.25 * 10.0 ** -(epoch // 40)
        rate = learning_rate(own, epoch * 1000, n)
        assert rate == pytest.approx(expected, rel=1e-12)
        assert learning_rate(own, epoch * 1000 + 999, n) == rate


def test_one_cycle_rises_and_falls_once():
    own = Recipe(epochs=10.0, batch=10, warmup=0.25, final=0.1)
    n = 100
    rates = [learning_rate(own, t, n) for t in range(100)]
    assert max(rates) == pytest.approx(0.1, rel=0.03)
    top = rates.index(max(rates))
    assert top in (24, 25)
    assert rates[:top] == sorted(rates[:top]) and rates[0] < 0.003
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0.01, rel=0.07)
    flat = Recipe(warmup=0.0, final=1.0)
    assert learning_rate(flat, 0, n) == learning_rate(flat, 9, n) == 0.1


@pytest.mark.parametrize("nesterov", [False, True])
def test_muon_goes_along_the_polar_factor_of_the_velocity(nesterov):
    shapes = (4, 3, 3, 5), (32, 3, 3), (7,)
    generator = runtime.rng(0)
    draw = functools.partial(torch.randn, generator=generator)
    own = [torch.nn.Parameter(draw(s).double()) for s in shapes]
    optimizer = Muon(own, 0.1, 0.9, nesterov, weight_decay=0.5)
    velocity = [torch.zeros_like(p) for p in own]
    for _ in range(3):
        before = [p.detach().clone() for p in own]
        for k, p in enumerate(own):
            p.grad = draw(p.shape).double()
            velocity[k] = 0.9 * velocity[k] + p.grad
        optimizer.step()
        for k, p in enumerate(own):
            ahead = p.grad + 0.9 * velocity[k] if nesterov else velocity[k]
            step = (before[k] * 0.95 - p.detach()) / 0.1
            if p.ndim == 1:
                torch.testing.assert_close(step, 4 * ahead)
                continue
            matrix, step = ahead.flatten(1), step.flatten(1)
            left, _, right = torch.linalg.svd(matrix, full_matrices=False)
            values = left.T @ step @ right.T  # diagonal, nearly one
            rows, columns = matrix.shape
            diagonal = values.diag() / max(1, rows / columns) ** 0.5
            assert 0.68 < diagonal.min() and diagonal.max() < 1.14
            off = values - values.diag().diag()
            assert off.abs().max() < 1e-9


def test_muon_trains_and_goes_on_as_if_nothing_had_happened(tmp_path):
    own = replace(BRIEF, optimizer="muon", learning_rate=0.02)
    rows = []
    whole, _ = train(recipe=own, callbacks=[rows.append], log_steps=1)
    assert rows[-1]["loss"] < rows[0]["loss"]
    train(tmp_path, recipe=own, run=dict(stop_after=0.0))
    again, _ = train(tmp_path, recipe=own)
    plain, _ = train(recipe=BRIEF)
    pairs = zip(
        whole.state_dict().values(),
        again.state_dict().values(),
        plain.state_dict().values(),
        strict=True,
    )
    same, other = zip(
        *((a.equal(b), a.equal(c)) for a, b, c in pairs), strict=True
    )
    assert all(same) and not all(other)


def test_only_kernels_decay_if_so_wanted():
    network = build(small(), plus=True)
    some = parameter_groups(network, Recipe(weight_decay=0.1))
    assert [g["weight_decay"] for g in some] == [0.1, 0.0]
    assert all(p.ndim > 1 for p in some[0]["params"])
    assert all(p.ndim == 1 for p in some[1]["params"])
    (every,) = parameter_groups(network, Recipe(decay="all"))
    count = len(list(network.parameters()))
    assert sum(len(g["params"]) for g in some) == count
    assert len(every["params"]) == count


# the stream of images


@pytest.mark.parametrize("n, batch", [(12, 4), (10, 4), (7, 5), (3, 8)])
def test_every_image_comes_once_an_epoch_and_every_batch_is_full(n, batch):
    steps = [batch_indices(t, batch, n, seed=1) for t in range(n * 3)]
    assert all(len(step) == batch for step in steps)
    order = torch.cat(steps).tolist()
    epochs = [order[i : i + n] for i in range(0, len(order), n)]
    assert all(sorted(epoch) == list(range(n)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) > 1  # and not in one order


def test_random_numbers_follow_from_seed_and_step_alone():
    first = batch_indices(5, 4, 10, seed=3)
    batch_indices(0, 4, 10, seed=4)
    assert torch.equal(batch_indices(5, 4, 10, seed=3), first)
    assert not torch.equal(batch_indices(5, 4, 10, seed=4), first)
    draws = [
        torch.rand(3, generator=stream("augment", seed, step)).tolist()
        for seed in range(3)
        for step in range(3)
    ]
    assert len(set(map(tuple, draws))) == 9


# evaluation


def test_evaluation_is_what_a_loop_finds():
    data = small(30, "test")
    network = build(data).double().train()
    found = evaluate(network, data, batch=7)
    assert network.training  # as it was
    network.eval()
    confusion, loss = torch.zeros(10, 10, dtype=torch.int64), 0.0
    with torch.no_grad():
        for image, label in zip(data.images, data.labels, strict=True):
            scores = network(network.standardize(image[None]))[0]
            confusion[label, scores.argmax()] += 1
            loss -= scores.log_softmax(0)[label].item() / 30
    assert torch.equal(found.confusion, confusion)
    assert found.correct == confusion.diagonal().sum()
    assert found.count == 30 and found.accuracy == found.correct / 30
    assert found.loss == pytest.approx(loss, rel=1e-12)


def test_mirror_averaging_does_not_see_a_mirror():
    data = small(10, "test")
    network = build(data).double()
    mirrored = data.images.flip(-1)
    plain = predict(network, data.images)
    both = predict(network, data.images, mirror=True)
    torch.testing.assert_close(
        both, predict(network, mirrored, mirror=True), rtol=0, atol=1e-12
    )
    half = (plain + predict(network, mirrored)) / 2
    torch.testing.assert_close(both, half, rtol=0, atol=1e-12)
    assert (both - plain).abs().max() > 1e-6


# the step


@pytest.mark.parametrize(
    "change",
    [
        {},
        dict(ema=0.8),  # as far as the steps reach back
        dict(ema=0.2),
        dict(momentum=0.5),
        dict(nesterov=False),
        dict(flip=False),
    ],
    ids=str,
)
def test_the_trainer_is_gradient_descent_by_hand(change):
    """Nesterov's momentum, decay of kernels, smoothing, and the average."""
    data, n = small(20), 20
    own = Recipe(
        epochs=1.0, batch=5, shift=1, label_smoothing=0.1,
        weight_decay=0.01, precision="float32",
    )  # fmt: skip
    own = replace(own, **change)
    network, other = build(data).double(), build(data).double()
    start = weights(other)
    Trainer(network, data, own, seed=7, progress=False, device="cpu").run()
    velocity = {k: 0.0 for k, _ in other.named_parameters()}
    mean = start
    for t in range(4):
        chosen = batch_indices(t, 5, n, 7)
        draws = stream("augment", 7, t)
        moved = Augment(1, own.flip)(data.images[chosen], draws)
        scores = other.train()(other.standardize(moved)).log_softmax(1)
        target = 0.9 * F.one_hot(data.labels[chosen], 10).double() + 0.01
        loss = -(target * scores).sum(1).mean()
        other.zero_grad()
        loss.backward()
        rate = learning_rate(own, t, n)
        with torch.no_grad():
            for name, p in other.named_parameters():
                g = p.grad + (0.01 * p if p.ndim > 1 else 0)
                velocity[name] = own.momentum * velocity[name] + g
                along = velocity[name]
                if own.nesterov:
                    along = g + own.momentum * along
                p -= rate * along
        decay = min(own.ema, (2 + t) / (11 + t))
        now = weights(other)
        mean = {
            k: decay * mean[k] + (1 - decay) * v for k, v in now.items()
        }
    for name, value in (mean if own.ema else now).items():
        torch.testing.assert_close(
            network.state_dict()[name], value, rtol=0, atol=1e-12
        )
    assert not equal(weights(other), start)


def test_bf16_and_float32_are_both_had():
    kept = {}
    for precision in ("float32", "bf16"):
        own = replace(BRIEF, epochs=0.5, precision=precision)
        network, result = train(recipe=own)
        assert result["precision"] == precision
        assert network.W3.spatial.dtype == torch.float32
        kept[precision] = weights(network)
    assert not equal(*kept.values())


# the result


def test_the_result_is_json_and_what_evaluation_says(whole, tmp_path):
    held_out = small(20, "test")
    network, result = train(tmp_path, test=held_out)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["finished"] and result["steps"] == result["step"] == 8
    again = HCNN.load(tmp_path / "model.safetensors")
    assert equal(weights(again), weights(network))  # the averaged weights
    for own in (network, again):
        found = evaluate(own, held_out)
        assert not own.training
        assert found.accuracy == result["accuracy"]
        assert found.loss == pytest.approx(result["loss"], rel=1e-6)
        assert found.confusion.tolist() == result["confusion"]
    mirrored = evaluate(network, held_out, mirror=True)
    assert mirrored.accuracy == result["mirror_accuracy"]
    last = result["history"][-1]
    assert last["accuracy"] == result["accuracy"] and last["step"] == 8
    timed = {"seconds", "images_per_second"}
    for key in result.keys() - timed:  # the folder changes nothing
        assert result[key] == whole[1][key], key
    once_more = Trainer(
        build(small()), small(), BRIEF, folder=tmp_path, test=held_out,
        progress=False, device="cpu",
    ).run()  # fmt: skip
    assert once_more == result


def test_mirrored_accuracy_is_that_of_averaged_scores(monkeypatch):
    judged, real = [], training.judge

    def judge(scores, labels):
        judged.append(scores)
        return real(scores, labels)

    monkeypatch.setattr(training, "judge", judge)
    held_out = small(20, "test")
    network, _ = train(test=held_out)
    both = predict(network, held_out.images, mirror=True)
    plain = predict(network, held_out.images)
    torch.testing.assert_close(judged[-1], both)
    torch.testing.assert_close(judged[-2], plain)
    assert not torch.allclose(plain, both)


def test_without_a_test_set_there_is_no_accuracy():
    _, result = train()
    assert "accuracy" not in result
    assert [row["accuracy"] for row in result["history"]] == [None] * 3


def test_fewer_images_than_a_batch_are_repeated():
    data = small(10)
    own = replace(BRIEF, epochs=0.1, batch=25)
    network, result = train(data=data, recipe=own)
    assert result["steps"] == 1 and result["finished"]
    assert not equal(weights(network), weights(build(data)))
    seen = Counter(batch_indices(0, 25, 10).tolist())
    assert sorted(seen.values()) == [2] * 5 + [3] * 5


# to go on exactly


def test_a_run_in_pieces_equals_one(whole, tmp_path):
    for piece in range(20):
        network, result = train(
            tmp_path,
            test=small(20, "test"),
            seed=piece,  # other weights, which the checkpoint replaces
            run=dict(stop_after=0.0),
        )
        assert result["step"] == piece + 1
        if result["finished"]:
            break
    assert piece == 7
    assert equal(weights(network), whole[0])
    for key in ("accuracy", "confusion", "loss"):
        assert result[key] == whole[1][key]
    for one, two in zip(
        result["history"], whole[1]["history"], strict=True
    ):
        assert one == pytest.approx(two, rel=1e-12)


def test_in_bf16_a_run_in_pieces_equals_one_too(tmp_path):
    own = replace(BRIEF, precision="bf16")
    once, _ = train(recipe=own)
    for _ in range(8):
        network, result = train(
            tmp_path, recipe=own, run=dict(stop_after=0.0)
        )
    assert result["finished"] and result["precision"] == "bf16"
    assert equal(weights(network), weights(once))


def test_pieces_in_memory_go_on_too(whole):
    data = small()
    network = build(data)
    trainer = Trainer(network, data, BRIEF, progress=False, device="cpu")
    results = [trainer.run(stop_after=0.0)["finished"] for _ in range(8)]
    assert results == [False] * 7 + [True]
    assert equal(weights(network), whole[0])


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import test_training as own
from pathlib import Path

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def child(work):
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(1)
    return os.waitpid(pid, 0)[1]

def interrupted(folder, kind, where, when):
    real, calls = getattr(own.training, where), []
    def patched(*arguments):
        calls.append(1)
        if len(calls) == when:
            die()
        return real(*arguments)
    setattr(own.training, where, patched)
    options = dict(recipe=own.TORN[kind], save_minutes=own.SAVES)
    own.train(folder, **options)

def resumed(folder, kind):
    options = dict(recipe=own.TORN[kind], save_minutes=own.SAVES)
    network, _ = own.train(folder, seed=5, **options)
    torch.save(own.weights(network), folder / "weights.pt")

own.train()  # what a first run imports, once for all children
for case in sys.argv[3:]:
    kind, where, when = case.split(":")
    folder = Path(sys.argv[2], case.replace(":", "-"))
    status = child(lambda: interrupted(folder, kind, where, int(when)))
    assert status == signal.SIGKILL, (case, status)
    status = child(lambda: resumed(folder, kind))
    assert status == 0, (case, status)
"""
SAVES = 0.0004  # minutes: about every second step


def test_a_run_that_is_killed_ends_as_if_it_were_not(tmp_path):
    """At ten random steps, at random places, and amid checkpoints.

    By either optimizer in turn.
    """
    seed = 11
    chance = random.Random(seed)
    # before a step, between gradient and update, and before the average
    places = "batch_indices", "learning_rate", "follow"
    steps = chance.sample(range(1, 16), 10)
    cases = [f"{chance.choice(places)}:{step}" for step in steps]
    cases += ["_sha256:4", "_sync:4", "_sync:5", "write:6", "_on_cpu:3"]
    turns = zip(itertools.cycle(TORN), cases)
    cases = [f"{kind}:{case}" for kind, case in turns]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, HERE, tmp_path, *cases],
        env=os.environ | dict(OMP_NUM_THREADS="1"),
        cwd=HERE.parent,
    )
    assert done.returncode == 0, f"seed {seed}: {cases}"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    expected = {k: weights(train(recipe=own)[0]) for k, own in TORN.items()}
    torch.set_num_threads(before)
    assert not equal(*expected.values())
    for case in cases:
        whole = expected[case.partition(":")[0]]
        folder = tmp_path / case.replace(":", "-")
        found = torch.load(folder / "weights.pt", weights_only=True)
        assert equal(found, whole), f"seed {seed}: {case}"
        assert not list((folder / "checkpoints").glob(".*")), case


def test_sigterm_ends_the_step_saves_and_exits(whole, tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def send(row):
        if row["step"] == 3:  # the end of the first epoch
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as exit:
        train(tmp_path, callbacks=[send])
    assert exit.value.code == TERMINATED == 143
    assert signal.getsignal(signal.SIGTERM) == before
    assert checkpoints(tmp_path)[-1].name == "step-00000003"  # no other
    network, _ = train(tmp_path)
    assert equal(weights(network), whole[0])


@pytest.mark.parametrize("where", ["follow", "_verdict", "close"])
def test_sigterm_at_the_very_end_is_heeded_once_all_is_safe(
    whole, tmp_path, monkeypatch, where
):
    """In the last step, in the final evaluation, or when the log closes.

    No next seed begins.
    """
    place = training.Journal if where == "close" else training
    real, held_out = getattr(place, where), small(20, "test")

    def send(*arguments):
        if where != "follow" or arguments[3] == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    monkeypatch.setattr(place, where, send)
    with pytest.raises(SystemExit) as exit:
        train(tmp_path, test=held_out)
    assert exit.value.code == TERMINATED
    assert checkpoints(tmp_path)[-1].name == "step-00000008"
    evaluated = (tmp_path / "model.safetensors").exists()
    assert evaluated == (where != "follow")
    monkeypatch.undo()
    network, result = train(tmp_path, test=held_out)
    assert equal(weights(network), whole[0])
    assert result["confusion"] == whole[1]["confusion"]


def test_a_folder_is_one_process_s_at_a_time(tmp_path):
    """That a killed process frees it is seen where processes are killed."""
    message = rf"in use by process {os.getpid()} on .*; wait until it ends"
    with pytest.raises(ValueError, match=message):
        train(tmp_path, callbacks=[lambda row: train(tmp_path)])
    _, result = train(tmp_path)
    assert result["finished"]


@pytest.mark.parametrize("lacking", ["locks", "fcntl", "synced folders"])
def test_a_file_system_may_lack(whole, tmp_path, monkeypatch, lacking):
    real = os.fsync

    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    def files_alone(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(handle)

    if lacking == "locks":
        monkeypatch.setattr(training.fcntl, "flock", refuse)
    elif lacking == "fcntl":
        monkeypatch.setattr(training, "fcntl", None)
    else:
        monkeypatch.setattr(os, "fsync", files_alone)
    network, _ = train(tmp_path)
    assert equal(weights(network), whole[0])


def test_a_restart_that_finds_no_checkpoint_is_refused(
    tmp_path, monkeypatch
):
    """On another machine, say; a later run of the process may begin."""
    monkeypatch.setattr(training._Kept, "begun", False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    with pytest.raises(
        ValueError, match=r"restart 2, and no checkpoint .* machines share"
    ):
        train(tmp_path)
    assert not checkpoints(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    train(tmp_path, run=dict(stop_after=0.0))
    monkeypatch.setattr(training._Kept, "begun", False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert train(tmp_path)[1]["finished"]
    assert train(tmp_path / "next")[1]["finished"]


def test_a_restart_between_two_seeds_goes_on(tmp_path, monkeypatch):
    """The record of the first says that the storage is shared."""
    monkeypatch.setattr(training._Kept, "begun", False)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    (tmp_path / "run.json").write_text("{}")
    assert train(tmp_path / "seed-1")[1]["finished"]


def test_a_checkpoint_after_the_last_step_is_refused(tmp_path):
    train(tmp_path, run=dict(stop_after=0.0))
    _, _, state, about = read_checkpoint(tmp_path)
    network = HCNN.load(checkpoints(tmp_path)[-1] / "model.safetensors")
    write_checkpoint(tmp_path, network, state, about | dict(step=99))
    with pytest.raises(ValueError, match="step-00000099 is of a run of 8"):
        train(tmp_path)


def test_two_checkpoints_are_kept_and_can_be_checked(tmp_path):
    train(tmp_path, save_minutes=0.0)
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == ["step-00000007", "step-00000008"]
    for path in checkpoints(tmp_path):
        files = sorted(p.name for p in path.iterdir())
        assert files == [
            "SHA256SUMS",
            "model.safetensors",
            "state.safetensors",
        ]
        if shutil.which("sha256sum"):
            subprocess.run(
                ["sha256sum", "--check", "--quiet", "SHA256SUMS"],
                cwd=path,
                check=True,
            )
    assert HCNN.load(path / "model.safetensors").config.K == 4


def test_by_default_a_checkpoint_is_written_every_five_minutes(
    tmp_path, monkeypatch
):
    """By a clock that goes on by a minute in each step."""
    clock, saved = [0.0], []
    advance = training._Learner.advance
    save = training._Kept.save

    def minute(self):
        clock[0] += 60.0
        return advance(self)

    def note(self, learner):
        saved.append(learner.step)
        return save(self, learner)

    monkeypatch.setattr(training._Learner, "advance", minute)
    monkeypatch.setattr(training._Kept, "save", note)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    train(tmp_path, recipe=replace(BRIEF, batch=3, epochs=1.0))
    assert saved == [0, 5, 10, 13]


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("harm", [cut, flip, Path.unlink])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "state.safetensors", "SHA256SUMS"]
)
def test_a_damaged_checkpoint_is_passed_over(whole, tmp_path, harm, name):
    train(tmp_path, save_minutes=0.0)
    newest = checkpoints(tmp_path)[-1]
    harm(newest / name)
    with pytest.warns(UserWarning, match="step-00000008 is damaged"):
        network, _ = train(tmp_path)
    assert equal(weights(network), whole[0])
    assert read_checkpoint(tmp_path)[3]["step"] == 8  # whole again


def test_a_damaged_checkpoint_is_set_aside_and_half_files_are_removed(
    tmp_path,
):
    for _ in range(4):
        train(tmp_path, run=dict(stop_after=0.0))
    newest = checkpoints(tmp_path)[-1]
    newest.rename(newest.with_name("step-00000006"))  # it is of step 4
    (newest.parent / "step-00000006.damaged").mkdir()  # once before
    (newest.parent / ".step-00000009.1a2b.partial").mkdir()
    (tmp_path / ".log.jsonl.123.partial").write_text("{")
    with pytest.warns(UserWarning, match="says that it is of step 4"):
        train(tmp_path, run=dict(stop_after=0.0))
    names = sorted(path.name for path in newest.parent.iterdir())
    assert names == [
        "step-00000003",
        "step-00000004",
        "step-00000006.damaged",
        "step-00000006.damaged1",
    ]
    assert (newest.parent / names[-1] / "state.safetensors").exists()
    assert not list(tmp_path.glob(".*.partial"))


def test_only_whole_names_are_checkpoints_and_the_number_orders_them(
    tmp_path,
):
    for name in (
        "step-100000000",
        "step-99999999",
        "step-99999999 copy 2",
        "step-00000009.damaged",
        "step-9",
        ".step-00000009.1a2b.partial",
    ):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    names = [path.name for path in checkpoints(tmp_path)]
    assert names == ["step-99999999", "step-100000000"]


@contextmanager
def permissions():
    """Permissions count: root becomes nobody for a while."""
    root = os.geteuid() == 0
    if root:
        try:
            os.seteuid(65534)
        except OSError as error:
            pytest.skip(f"root that cannot become another user: {error}")
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_checkpoint_that_cannot_be_read_is_not_taken_for_damaged(
    tmp_path, monkeypatch
):
    """Nor is a memory that is full."""
    train(tmp_path, save_minutes=0.0)
    before = checkpoints(tmp_path)
    file = before[-1] / "state.safetensors"
    monkeypatch.chdir(tmp_path)  # what is above, others may not enter
    tmp_path.chmod(0o755)
    file.chmod(0)
    with (
        permissions(),
        pytest.raises(PermissionError, match=r"could not be read .*again"),
    ):
        read_checkpoint(".")
    file.chmod(0o644)

    def full(path):
        raise MemoryError

    monkeypatch.setattr(training, "_sha256", full)
    with pytest.raises(MemoryError):
        train(tmp_path)
    assert checkpoints(tmp_path) == before


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(
    whole, tmp_path, monkeypatch
):
    train(tmp_path, run=dict(stop_after=0.0))
    real = os.listdir

    def stale(path):
        if Path(path).name == "checkpoints":
            raise OSError(errno.ESTALE, "Stale file handle")
        return real(path)

    monkeypatch.setattr(os, "listdir", stale)
    with pytest.raises(OSError, match=r"could not be read .*Stale"):
        train(tmp_path)
    monkeypatch.undo()
    assert checkpoints(tmp_path)[-1].name == "step-00000001"
    network, _ = train(tmp_path)
    assert equal(weights(network), whole[0])


def test_a_checkpoint_appears_at_once_or_not_at_all(tmp_path, monkeypatch):
    train(tmp_path, run=dict(stop_after=0.0))
    before, real = checkpoints(tmp_path), os.replace
    sync, synced = training._sync, []

    def noting(folder):
        synced.append(Path(folder))
        sync(folder)

    def refuse(source, target):
        if Path(source).is_dir():
            files = [path.name for path in Path(source).iterdir()]
            assert len(files) == 3  # it is whole before it has its name
            assert synced[-1] == Path(source)  # on the disk, too
            raise OSError("the plug was pulled")
        real(source, target)

    monkeypatch.setattr(training, "_sync", noting)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="the plug was pulled"):
        train(tmp_path)
    assert checkpoints(tmp_path) == before
    assert len(list((tmp_path / "checkpoints").iterdir())) == len(before)


def test_a_crash_while_old_checkpoints_go_leaves_whole_ones(
    tmp_path, monkeypatch, whole
):
    real = shutil.rmtree

    def crash(path, *args, **options):
        if Path(path).is_dir():
            next(Path(path).iterdir()).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", crash)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, save_minutes=0.0)
    monkeypatch.setattr(shutil, "rmtree", real)
    assert len(checkpoints(tmp_path)) == 2
    for path in checkpoints(tmp_path):
        training._read(path)
    network, _ = train(tmp_path)
    assert equal(weights(network), whole[0])
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


def test_with_all_checkpoints_damaged_nothing_is_overwritten(tmp_path):
    train(tmp_path)
    for path in checkpoints(tmp_path):
        cut(path / "state.safetensors")
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match=r"all checkpoints .* are damaged"),
    ):
        train(tmp_path)
    assert len(checkpoints(tmp_path)) == 2


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(Bomb.place),)


@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors"])
def test_a_checkpoint_cannot_run_code(tmp_path, name):
    """What came from a stranger is numbers and JSON, or is refused."""
    Bomb.place = tmp_path / "ran"
    train(tmp_path / "run", save_minutes=0.0)
    for path in checkpoints(tmp_path / "run"):
        torch.save(Bomb(), path / name)  # a pickle
        sums = [
            f"{training._sha256(p)}  {p.name}\n"
            for p in path.glob("*.safetensors")
        ]
        (path / "SHA256SUMS").write_text("".join(sums))
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match="all checkpoints"),
    ):
        train(tmp_path / "run")
    assert not Bomb.place.exists()
    pickle.loads(pickle.dumps(Bomb()))  # the bomb is one
    assert Bomb.place.exists()


def test_a_checkpoint_of_other_tensors_is_refused(tmp_path):
    train(tmp_path, run=dict(stop_after=0.0))
    _, model, state, about = read_checkpoint(tmp_path)
    del state["momentum.W3.spatial"]
    network = HCNN.load(checkpoints(tmp_path)[-1] / "model.safetensors")
    about["step"] += 1
    write_checkpoint(tmp_path, network, state, about)
    with pytest.raises(ValueError, match=r"other tensors: momentum\.W3"):
        train(tmp_path)


def test_auto_chooses_once_and_anew_on_another_kind_of_device(
    tmp_path, monkeypatch
):
    """The type changes where the device does, and only there."""
    own = replace(BRIEF, precision="auto")

    def go_on(kind, fast, **run):
        monkeypatch.setattr(runtime, "_bf16_is_faster", lambda _: fast)
        monkeypatch.setattr(training, "kind_of_device", lambda _: kind)
        return train(tmp_path, recipe=own, run=run)[1]["precision"]

    assert go_on("one", True, stop_after=0.0) == "bf16"
    assert go_on("one", False, stop_after=0.0) == "bf16"
    told = "computed in bf16 on 'one'; this is 'other', so .* in float32"
    with pytest.warns(UserWarning, match=told):
        used = go_on("other", False, stop_after=0.0)
    assert used == "bf16 then float32"
    assert go_on("other", True, stop_after=0.0) == "bf16 then float32"
    assert go_on("third", False) == "bf16 then float32"


def test_a_checkpoint_of_another_type_is_refused(tmp_path):
    train(tmp_path, run=dict(stop_after=0.0))
    data = small()
    with pytest.raises(
        ValueError, match=r"float64 .* was .*float32 .* more; exp"
    ):
        Trainer(
            build(data).double(), data, BRIEF, folder=tmp_path,
            progress=False, device="cpu",
        ).run()  # fmt: skip


@pytest.mark.parametrize(
    "options, named",
    [
        (dict(recipe=replace(BRIEF, epochs=5.0)), "recipe.epochs is 5.0"),
        (dict(recipe=replace(BRIEF, ema=0.0)), "recipe.ema is 0.0"),
        (dict(options=dict(seed=1)), "seed is 1 here and was 0"),
        (dict(network=dict(Q=4)), "config.Q is 4 here and was 3"),
        (dict(moments=dict(mean=[0.5] * 3)), "moments.mean is [0.5, 0.5,"),
        (dict(moments=dict(std=[0.5] * 3)), "moments.std is [0.5, 0.5,"),
        (dict(data=small(seed=1)), "data.sha256"),
        (dict(data=small(30)), "data.images is 30 here and was 40"),
        (dict(options=dict(test=small(9, "test"))), "data.test_sha256"),
    ],
    ids=[
        *("epochs", "ema", "seed", "config", "mean", "std", "images"),
        *("number", "test"),
    ],
)
def test_another_run_in_the_folder_is_refused_by_name(
    tmp_path, options, named
):
    train(tmp_path)
    data = options.get("data") or small()
    before = checkpoints(tmp_path)
    network = build(data, **options.get("network", {}))
    vars(network).update(options.get("moments", {}))
    with pytest.raises(ValueError, match="belongs to another run") as error:
        Trainer(
            network,
            data,
            options.get("recipe", BRIEF),
            folder=tmp_path,
            progress=False,
            device="cpu",
            **options.get("options", {}),
        ).run()
    assert named in str(error.value)
    assert checkpoints(tmp_path) == before


def test_the_digest_sees_every_image_label_and_name():
    data = small(5)
    images, labels = data.images.clone(), data.labels.clone()
    images[4, 2, 7, 7] += 1
    labels[2] += 1
    others = [
        replace(data, images=images),
        replace(data, labels=labels),
        replace(data, class_names=data.class_names[::-1]),
        data.subset(4),
    ]
    assert len({data_digest(d) for d in [data, *others]}) == 5
    same = replace(data, images=data.images.clone(), name="other")
    assert data_digest(same) == data_digest(data)


# what a run tells


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path):
    train(tmp_path, run=dict(stop_after=0.0))
    log = tmp_path / "log.jsonl"
    lines = log.read_text().splitlines()
    later = json.dumps(json.loads(lines[-1]) | dict(step=5, loss=99.0))
    log.write_text("\n".join([*lines, later, '{"step": 6, "lo']))
    _, result = train(tmp_path)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 3, 5, 8]
    assert max(row["loss"] for row in rows) < 99
    assert [row["end"] for row in rows] == [False, True, True, True]
    assert history(rows) == result["history"]
    for row in rows:
        rate = learning_rate(BRIEF, row["step"] - 1, 40)
        assert row["learning_rate"] == rate
        assert row["epoch"] == row["step"] * 16 / 40


@pytest.mark.parametrize(
    "end",
    [
        bytes(99),
        b"\xff\xfe{\n",
        b'{"step": 2, "lo',
        b"[2]\n",
        b'{"a": 2}\n',
        b"[" * 10**5,
        b'{"step": "1", "epoch": 0.4, "end": false, "loss": 1.0}\n',
        b'{"step": 1, "epoch": 0.4, "end": true, "loss": 1.0}\n',
        b'{"step": 1, "epoch": 0.4, "end": false, "loss": null}\n',
    ],
    ids=[
        "zeros",
        "noise",
        "half",
        "list",
        "other",
        "deep",
        "text",
        "again",
        "nothing",
    ],
)
def test_a_log_that_ends_in_garbage_is_read_up_to_it(tmp_path, end):
    train(tmp_path, run=dict(stop_after=0.0))
    log = tmp_path / "log.jsonl"
    log.write_bytes(log.read_bytes() + end)
    train(tmp_path)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 3, 5, 8]


def test_rows_that_are_lost_are_named_and_the_run_goes_on(whole, tmp_path):
    for _ in range(2):
        train(tmp_path, run=dict(stop_after=0.0))
    log = tmp_path / "log.jsonl"
    first, second = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(first + bytes(len(second)))
    with pytest.warns(UserWarning, match="rows from step 2 to 2 are lost"):
        network, _ = train(tmp_path)
    assert equal(weights(network), whole[0])
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 3, 5, 8]


def test_a_clock_that_stands_still_divides_nothing_by_zero(
    monkeypatch, capsys
):
    monkeypatch.setattr(training.time, "perf_counter", lambda: 1.0)
    _, result = train(progress=True)
    assert result["finished"] and "images/s" in capsys.readouterr().out


def test_the_history_has_the_mean_loss_of_each_epoch():
    rows = [
        dict(step=2, epoch=0.5, end=False, loss=3.0),
        dict(step=3, epoch=1.0, end=True, loss=6.0, accuracy=0.2),
        dict(step=6, epoch=2.0, end=True, loss=1.0, accuracy=0.4),
    ]
    assert history(rows) == [
        dict(step=3, epoch=1.0, loss=4.0, accuracy=0.2),
        dict(step=6, epoch=2.0, loss=1.0, accuracy=0.4),
    ]


def test_rows_come_every_few_steps_and_to_callbacks():
    rows, own = [], replace(BRIEF, batch=5)
    train(recipe=own, callbacks=[rows.append], log_steps=2)
    steps = [row["step"] for row in rows]
    assert steps == list(range(2, 25, 2))
    assert [row["step"] for row in rows if row["end"]] == [8, 16, 24]


@pytest.mark.parametrize("seconds, between", [(0.01, 10), (3.0, 1)])
def test_processes_talk_at_each_step_where_steps_are_slow(
    seconds, between, monkeypatch
):
    """A wish is heard before torchrun, after 30 s, kills who wished it."""
    data, clock, talks = small(), [0.0], []

    def any_of(wishes, device):
        talks.append(learner.step)
        return [bool(wish) for wish in wishes]

    learner = Trainer(
        build(data), data, replace(BRIEF, epochs=40.0), progress=False
    ).learner
    learner.begin()
    monkeypatch.setattr(training, "place", lambda: (0, 2))
    monkeypatch.setattr(training, "_any", any_of)
    monkeypatch.setattr(training.time, "perf_counter", lambda: clock[0])
    learner.talked = 0, 0.0
    for learner.step in range(1, 32):
        clock[0] += seconds
        learner.agree(False)
    assert talks == [1, *range(1 + between, 32, between)]
    learner.step = learner.steps
    assert learner.agree(True) == [True]


def test_callbacks_may_come_one_by_one():
    rows = []
    train(callbacks=(own for own in [rows.append]))
    assert len(rows) == 3


def test_a_number_is_its_value_whatever_its_type(no_shape_checks):
    for _ in range(2):  # the order is remembered
        plain = batch_indices(0, 5, 100)
        other = batch_indices(numpy.int64(0), 5, 100, seed=numpy.int32(0))
        assert torch.equal(plain, other)
        training._order.cache_clear()
    first, second = (
        training.stream("a", step).initial_seed()
        for step in (3, numpy.int64(3))
    )
    assert first == second


def test_a_seed_is_an_integer_of_any_type(tmp_path, no_shape_checks):
    data, found = small(), []
    for seed in (1, numpy.int64(1)):
        network = build(data)
        Trainer(network, data, BRIEF, seed=seed, progress=False).run()
        found.append(weights(network))
    assert equal(*found)
    with pytest.raises(ValueError, match=r"seed is 1\.0; expected an int"):
        Trainer(network, data, BRIEF, folder=tmp_path, seed=1.0)
    assert not list(tmp_path.iterdir())


def test_scores_leave_each_part_in_the_mode_it_was_in():
    network = build(small(20)).train()
    network.norm1.eval()
    before = [own.training for own in network.modules()]
    training.predict(network, small(20).images)
    assert [own.training for own in network.modules()] == before
    assert len(set(before)) == 2


def test_no_images_are_not_judged():
    with pytest.raises(
        ValueError, match="no images; expected at least one"
    ):
        training.judge(torch.zeros(0, 10), torch.zeros(0).long())


def test_an_old_checkpoint_that_is_still_open_ends_no_run(
    tmp_path, monkeypatch, whole
):
    real = shutil.rmtree

    def busy(path, ignore_errors=False, **options):
        if ignore_errors:
            return None  # as it then does on a file system that refuses
        raise OSError(errno.ENOTEMPTY, "a file is open")

    monkeypatch.setattr(shutil, "rmtree", busy)
    network, _ = train(tmp_path, save_minutes=0.0)
    assert equal(weights(network), whole[0])
    assert len(checkpoints(tmp_path)) == 2
    train(tmp_path)
    monkeypatch.setattr(shutil, "rmtree", real)
    train(tmp_path)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 2


@pytest.mark.parametrize("kept", [True, False])
def test_half_a_step_is_never_gone_on_from(
    kept, tmp_path, monkeypatch, whole
):
    real, calls = training._descend, []

    def torn(*arguments):
        real(*arguments)
        calls.append(0)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(training, "_descend", torn)
    data = small()
    network = build(data)
    folder = tmp_path if kept else None
    trainer = Trainer(network, data, BRIEF, folder=folder, progress=False)
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    if kept:
        trainer.run()
        assert equal(weights(network), whole[0])
    else:
        with pytest.raises(ValueError, match="step 3 was interrupted half"):
            trainer.run()


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 7, 5), (4, 6, 1)])
def test_polar_factors_of_several_are_those_of_each(shape):
    matrices = torch.randn(shape, generator=runtime.rng(0)).double()
    together = training.polar_factor(matrices)
    each = torch.stack([training.polar_factor(own) for own in matrices])
    torch.testing.assert_close(together, each)


def test_one_line_an_epoch_where_there_is_no_terminal(capsys):
    train(progress=True, test=small(20, "test"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(
        "loss" in line and "test" in line and "images/s" in line
        for line in lines
    )
    train(progress=False)
    assert capsys.readouterr() == ("", "")


def test_a_line_tells_rate_and_time_that_is_left(capsys, monkeypatch):
    clock = itertools.count()
    monkeypatch.setattr(
        training.time, "perf_counter", lambda: 1000.0 * next(clock)
    )
    own = replace(BRIEF, epochs=2.0, batch=10)  # of 40 images: 8 steps
    rows = []
    train(recipe=own, progress=True, callbacks=[rows.append])
    first, last = capsys.readouterr().out.splitlines()
    rate = rows[0]["images_per_second"]
    told = str(timedelta(seconds=round(40 / rate)))
    assert f"{rate:.0f} images/s, {told} left" in first and rate < 1
    assert last.endswith(", 0:00:00 left")


@pytest.mark.parametrize("into_a_file", [False, True])
def test_a_bar_on_a_terminal(into_a_file, capsys, monkeypatch):
    for own, here in ((sys.stderr, True), (sys.stdout, not into_a_file)):
        monkeypatch.setattr(
            own, "isatty", lambda here=here: here, raising=False
        )
    train(progress=True)
    out, err = capsys.readouterr()
    assert "images" in err and "loss" in err
    assert len(out.splitlines()) == 3 * into_a_file
    assert "128/128" in err.replace(" ", "").replace(".", "")


def test_tensorboard_has_the_rows(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator

    train(tmp_path, tensorboard=True, test=small(20, "test"))
    events = event_accumulator.EventAccumulator(
        str(tmp_path / "tensorboard")
    ).Reload()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    for name in ("loss", "accuracy", "learning_rate"):
        rows = [row for row in map(json.loads, lines) if name in row]
        found = events.Scalars(name)
        assert [e.step for e in found] == [row["step"] for row in rows]
        values = [row[name] for row in rows]
        assert [e.value for e in found] == pytest.approx(values, rel=1e-6)
    assert [e.step for e in events.Scalars("accuracy")] == [3, 5, 8]


def test_tensorboard_has_each_step_once_after_a_run_was_torn(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator

    def tear(row):  # behind the checkpoint of step 3
        if row["step"] == 4:
            raise KeyboardInterrupt

    options = dict(tensorboard=True, log_steps=1)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, callbacks=[tear], **options)
    assert [p.name for p in checkpoints(tmp_path)][-1] == "step-00000003"
    train(tmp_path, **options)
    events = event_accumulator.EventAccumulator(
        str(tmp_path / "tensorboard")
    ).Reload()
    steps = [event.step for event in events.Scalars("loss")]
    assert steps == list(range(1, 9))


def test_tensorboard_without_its_package_says_what_to_install(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"hcnn\[tensorboard\]"):
        train(tmp_path, tensorboard=True)


# bad input


@pytest.mark.parametrize("save_minutes", [0.0, 5.0])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, save_minutes):
    own = replace(BRIEF, learning_rate=1e30, epochs=10.0)
    with pytest.raises(
        FloatingPointError, match=r"step \d+.*is the last good checkpoint"
    ):
        train(tmp_path, recipe=own, save_minutes=save_minutes)
    path, model, state, about = read_checkpoint(tmp_path)
    for tensor in [*model.values(), *state.values()]:
        assert tensor.isfinite().all()


def test_weights_that_are_not_finite_are_not_saved(tmp_path, monkeypatch):
    """The loss of a step is that of the weights before it."""
    real = training.learning_rate

    def rate(recipe, step, n):
        return math.inf if step == 7 else real(recipe, step, n)

    monkeypatch.setattr(training, "learning_rate", rate)
    with pytest.raises(
        FloatingPointError, match="weight is not finite after step 8"
    ):
        train(tmp_path)
    assert checkpoints(tmp_path)[-1].name == "step-00000005"
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("engine", ["factorized", "fused"])
def test_the_error_names_the_step_that_went_wrong(monkeypatch, engine):
    real = training.learning_rate

    def rate(recipe, step, n):
        return math.nan if step == 5 else real(recipe, step, n)

    monkeypatch.setattr(training, "learning_rate", rate)
    data, own = small(), replace(BRIEF, batch=2)
    network = build(data)
    network.engine = engine
    trainer = Trainer(network, data, own, progress=False, device="cpu")
    with pytest.raises(FloatingPointError, match=r"step 7 .*learning rate"):
        trainer.run()


@pytest.mark.parametrize("engine", ["factorized", "fused"])
def test_a_network_that_fails_on_the_test_images_stops_the_run(
    tmp_path, engine
):
    """The last step before an evaluation spoiled it: its own loss is good."""
    own = replace(BRIEF, batch=20, learning_rate=1e30, warmup=0.0)
    data = small(20)
    network = build(data)
    network.engine = engine
    trainer = Trainer(
        network,
        data,
        own,
        folder=tmp_path,
        test=small(20, "test"),
        progress=False,
        device="cpu",
    )
    words = r"after step 1 .*last good checkpoint; begin another run"
    with pytest.raises(FloatingPointError, match=words):
        trainer.run()
    assert "NaN" not in (tmp_path / "log.jsonl").read_text()
    assert not (tmp_path / "model.safetensors").exists()


def test_a_run_that_diverged_says_so_again(tmp_path):
    """It goes on from the last good checkpoint, and fails as before."""
    wild = replace(BRIEF, learning_rate=1e30, warmup=0.0)
    words = r"step \d+.*last good checkpoint; begin another run"
    for _ in range(2):
        with pytest.raises(FloatingPointError, match=words):
            train(tmp_path, recipe=wild, save_minutes=0.0)


def test_a_network_of_other_classes_is_refused(no_shape_checks):
    data = small(9)
    network = build(replace(data, class_names=tuple("abcdefghij")))
    with pytest.raises(ValueError, match=r"has the classes .* the network"):
        Trainer(network, data, BRIEF, device="cpu")
    with pytest.raises(ValueError, match=r"^evaluate: .* the network"):
        evaluate(network, data)
    numbers = replace(data, class_names=tuple(range(10)))
    network = build(numbers)  # it keeps their names as text
    Trainer(network, numbers, BRIEF, device="cpu")
    assert evaluate(network, numbers).count == 9


def test_labels_of_no_class_are_not_judged():
    data = small(9)
    with pytest.raises(
        ValueError, match="judge: labels from 3 to 10; expected 0"
    ):
        judge(torch.zeros(9, 10), torch.tensor([3, *[10] * 8]))
    with pytest.raises(ValueError, match="labels from -1 to"):
        evaluate(build(data), replace(data, labels=data.labels - 1))


@pytest.mark.parametrize(
    "error, call, words",
    [
        (
            TypeError,
            lambda own, data: Trainer(own, data, "modern"),
            "recipe is 'modern'; expected a Recipe",
        ),
        (
            TypeError,
            lambda own, data: predict(own, data.images.numpy()),
            "predict: images is a ndarray; expected a torch.Tensor",
        ),
        (
            ValueError,
            lambda own, data: predict(own, data.images[0]),
            "images has 3 axes, shape (3, 8, 8); expected 4",
        ),
        (
            ValueError,
            lambda own, data: predict(own, data.images, batch=0),
            "batch is 0; expected a positive integer",
        ),
    ],
)
def test_slips_are_told(error, call, words, no_shape_checks):
    data = small(9)
    with pytest.raises(error, match=re.escape(words)):
        call(build(data), data)


def test_advice_fits_the_recipe(tmp_path):
    wild = replace(
        BRIEF, learning_rate=1e30, schedule="steps", precision="float32"
    )
    with pytest.raises(FloatingPointError) as caught:
        train(tmp_path, recipe=wild, save_minutes=0.0)
    words = str(caught.value)
    assert words.endswith(
        "begin another run (--out) with a learning rate (--learning-rate) "
        "below 1e+30"
    )


@pytest.mark.parametrize("key", ["device", "precisions", "seconds"])
def test_a_checkpoint_that_does_not_say_all_is_damaged(tmp_path, key):
    train(tmp_path, save_minutes=0.0, run=dict(stop_after=0.0))
    _, _, state, about = read_checkpoint(tmp_path)
    network = HCNN.load(checkpoints(tmp_path)[-1] / "model.safetensors")
    del about[key]
    about["step"] = 2
    write_checkpoint(tmp_path, network, state, about)
    with pytest.warns(UserWarning, match=f"does not say its {key}"):
        path, *_ = read_checkpoint(tmp_path)
    assert path == checkpoints(tmp_path)[-2]


@pytest.mark.parametrize(
    "key, value",
    [
        ("data", None),
        ("recipe", []),
        ("seconds", "x"),
        ("precisions", []),
        ("precisions", ["evil"]),
        ("device", 3),
    ],
)
def test_a_checkpoint_that_says_nonsense_is_damaged(tmp_path, key, value):
    train(tmp_path, save_minutes=0.0, run=dict(stop_after=0.0))
    _, _, state, about = read_checkpoint(tmp_path)
    network = HCNN.load(checkpoints(tmp_path)[-1] / "model.safetensors")
    about = about | {key: value, "step": 2}
    write_checkpoint(tmp_path, network, state, about)
    with pytest.warns(UserWarning, match=f"its {key}|no type 'evil'"):
        path, *_ = read_checkpoint(tmp_path)
    assert path == checkpoints(tmp_path)[-2]


def test_an_error_of_a_callback_is_its_own():
    def fails(row):
        raise ConnectionRefusedError("no board")

    with pytest.raises(ConnectionRefusedError, match=r"^no board$"):
        train(callbacks=[fails])


def test_a_data_set_may_be_renamed(tmp_path):
    train(tmp_path, run=dict(stop_after=0.0))
    _, result = train(tmp_path, data=replace(small(), name="another"))
    assert result["finished"]


def test_what_cannot_be_tested_is_refused_before_the_first_step(
    tmp_path, no_shape_checks
):
    grey = small(20, "test")
    grey = replace(grey, images=grey.images[:, :1].contiguous())
    none = replace(
        grey, images=grey.images[:0], labels=grey.labels[:0], factors=None
    )
    for test, words in ((grey, "1 channel|colour"), (none, "no image")):
        with pytest.raises(ValueError, match=words):
            train(tmp_path / "run", test=test)
    with pytest.raises(ValueError, match="log_steps is 0; expected 1"):
        train(tmp_path / "run", log_steps=0)
    assert not (tmp_path / "run").exists()


def test_a_full_disk_leaves_the_checkpoints_before(tmp_path, whole):
    train(tmp_path, run=dict(stop_after=0.0))
    before = checkpoints(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6000, hard))
    try:  # a file cannot grow beyond that, as if there were no room
        with pytest.raises(
            OSError, match=r"checkpoint of step 3.*make room"
        ):
            train(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert checkpoints(tmp_path) == before
    assert not list((tmp_path / "checkpoints").glob(".*"))
    network, _ = train(tmp_path)
    assert equal(weights(network), whole[0])


@pytest.mark.skipif(
    not Path("/dev/full").exists(), reason="no /dev/full: run it on Linux"
)
def test_a_full_disk_is_told_though_the_log_cannot_be_closed(tmp_path):
    data = small()

    def fill(row):
        trainer.kept.journal.file.close()
        trainer.kept.journal.file = open("/dev/full", "a")

    trainer = Trainer(
        build(data), data, BRIEF, folder=tmp_path, progress=False,
        device="cpu", callbacks=[fill], log_steps=1,
    )  # fmt: skip
    with pytest.raises(OSError, match=r"the log could not be .*make room"):
        trainer.run()


def test_a_folder_that_cannot_be_written_is_refused_at_once(
    tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=r"Trainer: the folder could not be"):
        train(tmp_path / "file")
    run = tmp_path / "run"
    train(run, run=dict(stop_after=0.0))
    before = checkpoints(run)
    monkeypatch.chdir(run)
    run.chmod(0o555)
    try:
        for name in (".", "new"):
            with (
                permissions(),
                pytest.raises(
                    PermissionError, match="change the permissions"
                ),
            ):
                train(Path(name))
    finally:
        run.chmod(0o755)
    assert checkpoints(run) == before and not (run / "new").exists()


def pictures(folder):
    """A folder of images of many sizes and modes, two classes."""
    from PIL import Image

    modes = {"L": 90, "RGB": (9, 80, 200), "RGBA": (9, 80, 20, 99)}
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for index in range(6):
            mode = list(modes)[index % 3]
            size = (9 + 3 * index, 20 - index)
            colour = modes[mode]
            image = Image.new(mode, size, colour)
            image.putpixel((label, index), 255 if mode == "L" else colour)
            image.save(folder / name / f"{index}.png")


def test_a_folder_of_mixed_images_trains_and_may_vanish(tmp_path):
    """Grey, colour and transparent ones, converted as chapter 06 says."""
    pictures(tmp_path / "pets")
    data = load_dataset(tmp_path / "pets", size=8)
    held_out = load_dataset(tmp_path / "pets", "test", size=8)
    shutil.rmtree(tmp_path / "pets")  # the images are in memory
    network = build(data, classes=2)
    result = Trainer(
        network, data, BRIEF, folder=tmp_path / "run", test=held_out,
        progress=False, device="cpu",
    ).run()  # fmt: skip
    assert result["finished"] and len(result["confusion"]) == 2
    with pytest.raises(
        FileNotFoundError, match="no data set and no folder"
    ):
        load_dataset(tmp_path / "pets", size=8)


def test_a_class_without_images_is_refused(tmp_path):
    pictures(tmp_path)
    (tmp_path / "fish").mkdir()
    with pytest.raises(ValueError, match=r"fish holds no image"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    "fault, message",
    [
        ("one class", "has 1 classes and the network 10"),
        ("classes", r"has 3 classes and the network 10.*classes=3"),
        ("test", "expected the same"),
        ("shift", "expected a shift below 8"),
        ("moments", "no mean and std"),
        ("grey", "expected one for each channel"),
        ("no folder", "tensorboard=True without a folder"),
        ("milestone", "a milestone at epoch 3 and ends at 3; expected"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(
    fault, message, no_shape_checks
):
    data, own, options = small(), BRIEF, {}
    network = build(data)
    if fault == "one class":
        zeros = torch.zeros_like(data.labels)
        data = Dataset(data.images, zeros, ("disk",), "one", "train")
    elif fault == "classes":
        names = ("a", "b", "c")
        data = Dataset(data.images, data.labels % 3, names, "3", "train")
    elif fault == "test":
        names = data.class_names[::-1]
        options = dict(test=replace(data, class_names=names))
    elif fault == "shift":
        own = replace(own, shift=8)
    elif fault == "moments":
        network = HCNN(preset("hcnn8-shapes10", **SMALL))
    elif fault == "milestone":
        times = dict(milestones=(1.0, 3.0), factors=(0.1, 0.01))
        own = replace(own, schedule="steps", **times)
    elif fault == "grey":
        grey = data.images[:, :1].contiguous()
        data = replace(data, images=grey)
    else:
        options = dict(tensorboard=True)
    with pytest.raises(ValueError, match=message):
        Trainer(network, data, own, progress=False, device="cpu", **options)


def test_a_label_beyond_the_classes_is_refused():
    data = small()
    data = replace(data, labels=data.labels + 5)
    with pytest.raises(ValueError, match=r"labels from 5 to 14"):
        Trainer(build(small()), data, BRIEF, device="cpu")


# on a GPU


@pytest.mark.gpu
def test_a_run_on_a_gpu_goes_on_and_ends(tmp_path):
    data = small(200)
    network = build(data)
    own = replace(BRIEF, precision="bf16")
    options = dict(folder=tmp_path, progress=False, test=small(50, "test"))
    first = Trainer(network, data, own, **options).run(stop_after=0.0)
    assert not first["finished"] and first["step"] == 1
    result = Trainer(build(data, 3), data, own, **options).run()
    assert result["finished"]
    again = HCNN.load(tmp_path / "model.safetensors").cuda()
    found = evaluate(again, small(50, "test"))
    assert found.accuracy == result["accuracy"]


def test_a_trainer_takes_no_random_numbers_of_its_caller():
    before = torch.get_rng_state()
    Trainer(build(small()), small(), BRIEF, device="cpu")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32])
def test_labels_of_few_bits_are_judged_like_others(kind):
    """A byte holds no product of two numbers of classes."""
    labels = torch.arange(100).repeat(3)
    scores = F.one_hot(labels).float()
    found = training.judge(scores, labels.to(kind))
    assert found.accuracy == 1 and found.confusion.diagonal().sum() == 300
