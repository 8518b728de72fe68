"""The command line: help, exit status, one line for an error, whole files."""

import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy
import pytest
import torch
from torch.testing import assert_close

from hcnn import __version__, cli
from hcnn.network import HCNN, load_pretrained, preset
from hcnn.runtime import repository, rng


def hcnn(*arguments, program=("-m", "hcnn"), **environment):
    """Run the command as a shell does."""
    return subprocess.run(
        [sys.executable, *program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )


@pytest.fixture
def saved(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = HCNN(preset("hcnn8-cifar10", Q=3))
        own(torch.randn(4, 3, 8, 8, generator=rng(0)))
    own.save(tmp_path / "network.safetensors")
    return tmp_path / "network.safetensors"


def refused(capsys, *arguments):
    """The line that a command leaves when it ends with status 2."""
    with pytest.raises(SystemExit) as caught:
        cli.main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    assert err.count("\n") == 1 and err.startswith("hcnn: ")
    return err


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help_fits_the_screen_and_tells_the_defaults(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*filter(None, [command]), "--help"])
    text = capsys.readouterr().out
    assert caught.value.code == 0
    assert text.startswith(
        f"usage: {' '.join(filter(None, ['hcnn', command]))}"
    )
    assert text.count("\n") < {None: 45, "train": 90, "translate": 45}.get(
        command, 30
    )
    if command is None:
        for name in cli.COMMANDS:
            assert f"• {name}" in text
        return
    words = re.sub(r"[│\s]+", " ", text)
    options = re.findall(r"^[│ ]+(--[A-Za-z-]*[A-Za-z])", text, re.M)
    assert options or command == "info", text
    required = command == "predict"  # its --model
    assert words.count("(default: ") == len(options) - required
    assert "None" not in words and "{" not in words


def test_no_command_is_a_request_for_help(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 0
    assert "• export" in capsys.readouterr().out


def test_help_needs_no_torch():
    code = (
        "import sys; from hcnn.cli import main\n"
        "try: main(['export', '--help'])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    done = hcnn(program=("-c", code))
    assert done.returncode == 0, done.stderr
    assert "--onnx FILE" in done.stdout


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["exprt"], "export"),
        (["export"], "NAME|FOLDER|FILE"),
        (["export", "a", "--siz", "3"], "--size"),
        (["export", "a", "--size", "x"], "--size"),
        (["bench", "--batch", "1.5"], "--batch"),
    ],
)
def test_a_mistyped_option_ends_with_status_2_and_a_hint(arguments, words):
    done = hcnn(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert words in done.stderr and "Traceback" not in done.stderr


def test_the_program_and_the_module_are_the_same_command():
    program = Path(sys.executable).with_name("hcnn")
    assert program.exists(), "mend with: make install"
    calls = [program], [sys.executable, "-m", "hcnn"]
    for call in calls:
        done = subprocess.run(
            [*call, "export", "nowhere.safetensors", "--onnx", "a.onnx"],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith(
            "hcnn: model is 'nowhere.safetensors'; expected a folder that "
            "hcnn train wrote, a file, or a network that comes with the "
            "package: hcnn8-"
        )


def test_the_version_is_that_of_the_package(capsys):
    cli.main(["--version"])
    told = capsys.readouterr().out
    assert told in (f"hcnn {__version__}\n", "hcnn (a copy)\n")


@pytest.mark.parametrize(
    "module, needed", [("figures", "matplotlib"), ("widgets", "ipywidgets")]
)
def test_what_pages_need_is_named(module, needed, monkeypatch):
    monkeypatch.setitem(sys.modules, needed, None)
    monkeypatch.delitem(sys.modules, f"hcnn.{module}", raising=False)
    words = rf'hcnn\.{module}: .*pip install "hcnn\[book\]"'
    with pytest.raises(ImportError, match=words):
        importlib.import_module(f"hcnn.{module}")


def test_export_writes_both_files_and_tells_their_size(saved, capsys):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx, folded = saved.with_name("a.onnx"), saved.with_name("b")
    options = f"--onnx={onnx}", f"--folded={folded}", "--size=8"
    cli.main(["export", f"{saved}", *options])
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        f"{path}: {path.stat().st_size / 1e6:.2f} MB"
        for path in (onnx, folded)
    ]
    assert err == ""
    x = torch.randn(3, 3, 8, 8, generator=rng(1))
    with torch.no_grad():
        expected, small = HCNN.load(saved)(x), HCNN.load(folded)(x)
    session = onnxruntime.InferenceSession(onnx)
    (scores,) = session.run(None, {"images": x.numpy()})
    for found in (small, torch.from_numpy(scores)):
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < 1e-4
    about = session.get_modelmeta().custom_metadata_map["hcnn"]
    assert json.loads(about)["config"]["Q"] == 3
    # what was folded is folded again, the same
    cli.main(["export", f"{folded}", f"--folded={saved}"])
    assert saved.read_bytes() == folded.read_bytes()


def test_export_takes_the_name_of_a_network_that_ships(tmp_path):
    cli.main(["export", "hcnn8-shapes10", "--folded", f"{tmp_path / 'a'}"])
    x = torch.randn(2, 3, 32, 32, generator=rng(1))
    with torch.no_grad():
        expected = load_pretrained("hcnn8-shapes10")(x)
        found = HCNN.load(tmp_path / "a")(x)
    assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_refused_export_leaves_nothing(saved, capsys):
    folder, before = saved.parent, saved.read_bytes()
    other, plus = folder / "a", folder / "plus.safetensors"
    HCNN(preset("hcnn8-plus-cifar10", Q=3)).save(plus)
    there = {path.name for path in folder.iterdir()}
    for arguments, words in [
        ([saved], "nothing to write; name a file by --onnx, by --folded"),
        ([saved, "--folded", saved], "expected different files"),
        (
            [saved, "--folded", folder / "x/../network.safetensors"],
            "expected different files",
        ),
        ([saved, "--folded", other, "--onnx", other], "different files"),
        ([saved, "--onnx", other, "--size", 0], "--size is 0; expected 1"),
        (
            [saved, "--folded", folder],
            f"{folder} is a folder; expected the",
        ),
        (
            [saved, "--folded", other, "--onnx", folder / "new/b"],
            f"no folder {folder / 'new'}",
        ),
        (
            [plus, "--onnx", other, "--folded", folder / "b"],
            "expected a plain layer",
        ),
        (
            [saved, "--folded", folder / "new/a"],
            f"save: no folder {folder / 'new'} for a; make it first",
        ),
        ([folder / "none", "--onnx", other], "expected a folder that hcnn"),
        ([folder, "--onnx", other], "run.json"),
        ([__file__, "--onnx", other], "is no whole safetensors file"),
    ]:
        assert words in refused(capsys, "export", *arguments)
        assert {path.name for path in folder.iterdir()} == there
        assert saved.read_bytes() == before


def test_export_spares_the_network_of_a_run(tmp_path, capsys):
    entry = repository() / "results" / "train-hcnn8-shapes10-quick-5"
    run = shutil.copytree(entry, tmp_path / "run")
    trained = run / "model-0.safetensors"
    before = trained.read_bytes()
    line = refused(capsys, "export", run, "--folded", trained)
    assert "none of them a network of the run" in line
    assert trained.read_bytes() == before
    cli.main(["export", f"{run}", "--folded", f"{run / 'small'}"])
    assert (run / "small").is_file() and trained.read_bytes() == before


def test_export_says_how_to_get_what_onnx_needs(saved, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = refused(capsys, "export", saved, "--onnx", saved.parent / "a")
    assert line.endswith('pip install "hcnn[export]"\n')


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate …"),
        RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: 12 bytes"
        ),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
        MemoryError(),
    ],
)
def test_too_little_memory_is_told_in_a_line(error, monkeypatch, capsys):
    def info():
        raise error

    monkeypatch.setitem(cli.COMMANDS, "info", info)
    line = refused(capsys, "info")
    assert line.startswith("hcnn: out of memory (")
    assert line.endswith("take --device cpu\n")


def test_what_needs_less_memory_are_options_of_the_command():
    for name, function in cli.COMMANDS.items():
        words = cli._smaller([name])
        known = set(inspect.signature(function).parameters)
        if name == "train":
            changes = cli.RecipeChanges, cli.ModelChanges
            known |= {f.name for c in changes for f in fields(c)}
        named = re.findall(r"--([a-z]+)", words)
        if name != "info":
            assert named and set(named) <= known, (name, words)


@pytest.mark.parametrize(
    "words",
    [
        "shape '[3]' is invalid for input of size 4",
        "CUDA error: an illegal memory access was encountered",
    ],
)
def test_another_error_of_torch_is_not_hidden(words, monkeypatch):
    def info():
        raise RuntimeError(words)

    monkeypatch.setitem(cli.COMMANDS, "info", info)
    with pytest.raises(RuntimeError, match=re.escape(words)):
        cli.main(["info"])


def test_bench_is_called_with_the_options(monkeypatch):
    from hcnn import bench

    seen = []
    monkeypatch.setattr(
        bench, "run", lambda *a, **k: seen.append((*a, *k.values()))
    )
    cli.main(["bench"])
    cli.main(
        "bench --model hcnn8-cifar10 --batch 2 --size 8 --repeats 1 "
        "--no-memory".split()
    )
    assert seen == [
        ("hcnn-cifar10", 4, 32, 5, True),
        ("hcnn8-cifar10", 2, 8, 1, False),
    ]


def test_the_defaults_of_bench_are_those_of_its_function():
    from inspect import signature

    from hcnn import bench

    ours, theirs = (signature(f).parameters for f in (cli.bench, bench.run))
    assert set(ours) <= set(theirs)
    for name in ours:
        assert ours[name].default == theirs[name].default


def test_errors_of_several_lines_become_one(capsys, monkeypatch):
    def broken():
        """Fail."""
        raise OSError("the disk\n   is full")

    monkeypatch.setitem(cli.COMMANDS, "broken", broken)
    assert refused(capsys, "broken") == "hcnn: the disk is full\n"


def test_an_interrupted_command_is_silent(capsys, monkeypatch):
    def waiting():
        """Wait."""
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "waiting", waiting)
    with pytest.raises(SystemExit) as caught:
        cli.main(["waiting"])
    assert caught.value.code == 130
    assert capsys.readouterr() == ("", "")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A periodic network, a folder of images to search, one to ask for."""
    from PIL import Image

    from hcnn.data import shapes10

    folder, data = tmp_path_factory.mktemp("translate"), shapes10(30)
    for i, image in enumerate(data.images):
        own = folder / "images" / data.class_names[data.labels[i]]
        own.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        picture.save(own / f"{i}.png")
    picture.convert("L").resize((50, 40)).save(folder / "grey.png")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for padding in ("periodic", "zero"):
            own = HCNN(
                preset("hcnn8-shapes10", Q=3, padding=padding),
                mean=data.mean,
                std=data.std,
            )
            own.train()(own.standardize(data.images))
            own.save(folder / f"{padding}.safetensors")
    return folder


def test_translate_draws_each_translation(searched, tmp_path, capsys):
    from PIL import Image

    from hcnn.data import load_dataset, read_image
    from hcnn.translations import attribute_array, translate_attribute

    options = [
        "--model", searched / "periodic.safetensors",
        "--data", searched / "images", "--depth", "7",
        "--arrays", tmp_path / "arrays",
    ]  # fmt: skip
    out = tmp_path / "a.png"
    command = "translate", searched / "grey.png", *options, "--out", out
    cli.main([*map(str, command)])
    told = capsys.readouterr().out
    assert [line[:5] for line in told.splitlines()[1:5]] == [
        f"tau {tau}" for tau in range(4)
    ]
    # each line, and each picture, is what a search by hand finds
    data = load_dataset(searched / "images", "train")
    network = HCNN.load(searched / "periodic.safetensors")
    pixels = read_image(searched / "grey.png", 32)

    @torch.no_grad()
    def arrays_of(images):
        return attribute_array(network, network.standardize(images), 7)

    (array,), known = arrays_of(pixels[None]), arrays_of(data.images)
    columns = [(pixels, array, array)]
    small = float(re.search(r"in units of (\S+),", told)[1])
    for tau, line in enumerate(told.splitlines()[1:5]):
        wanted = translate_attribute(array[None], tau)[0]
        far = (known - wanted).norm(dim=(1, 2))
        which = int(far.argmin())
        name = data.class_names[data.labels[which]]
        start = f"tau {tau}: {name}, image {which}, distance "
        assert line.startswith(start)
        units = float(line.removeprefix(start).partition(",")[0])
        assert abs(units - far[which].item() / small) < 0.006
        columns.append((data.images[which], wanted, known[which]))
    with Image.open(out) as picture:
        wide, sheet = picture.size, torch.tensor(numpy.array(picture))
    for column, (image, wanted, there) in enumerate(columns):
        left, top = 8 + 136 * column, 8
        for own in (image, wanted, there):
            if own.ndim == 3:
                tile = own.permute(1, 2, 0)
            else:
                low, high = own.min(), own.max()
                tile = (255 * (own - low) / (high - low)).round()
                tile = tile[..., None].expand(-1, -1, 3)
            tall = 128 * tile.shape[0] // tile.shape[1]
            y = (torch.arange(tall) + 0.5) * tile.shape[0] / tall
            x = (torch.arange(128) + 0.5) * tile.shape[1] / 128
            tile = tile[y.long()][:, x.long()]
            shown = sheet[top : top + tall, left : left + 128]
            assert (shown.float() - tile.float()).abs().max() <= 1
            top += tall + 8
    (kept,) = (tmp_path / "arrays").iterdir()
    time = (kept / "about.json").stat().st_mtime_ns
    cli.main([*map(str, command), "--tau", "1", "3", "--share", "0"])
    told = capsys.readouterr().out
    assert told.splitlines()[1].startswith("tau 1: ")
    assert "no image is near" in told
    assert (kept / "about.json").stat().st_mtime_ns == time
    with Image.open(out) as picture:
        assert picture.size[0] < wide[0] and picture.size[1] == wide[1]


def test_translate_says_what_is_wrong(searched, tmp_path, capsys):
    image, arrays = searched / "grey.png", ("--arrays", tmp_path / "a")
    model = "--model", searched / "periodic.safetensors"
    data = "--data", searched / "images"
    for wrong, message in (
        ((*model, *data, "--tau", "4"), "expected 0 to 3"),
        ((*model, *data, "--depth", "2"), "expected 3 to 11"),
        ((*model, *data, "--smooth", "9"), "expected 1 to 4"),
        ((*model, *data, "--share", "2"), "expected 0 to 1"),
        ((*model, *data, "--size", "0"), "--size 0"),
        ((*model, *data, "--tau"), "at least one number"),
        ((*model, *data, "--out", image), "another file"),
        ((*model, *data, "--out", "nowhere/a.png"), "a folder that exists"),
        ((*model, *data, "--out", tmp_path), "another file"),
        (model, "does not say what it was trained on"),
        (("--model", "hcnn8-shpes10"), "comes with the package"),
        ((*data, "--model", "nothing"), "comes with the package"),
    ):
        line = refused(capsys, "translate", image, *wrong, *arrays)
        assert message in line
    assert "there is no file" in refused(
        capsys, "translate", searched / "phto.png", *model, *data
    )
    assert "cannot be read" in refused(
        capsys, "translate", searched / "zero.safetensors", *model, *data
    )


def test_translate_warns_of_zero_padding(searched, tmp_path):
    done = hcnn(
        "translate", searched / "grey.png",
        "--model", searched / "zero.safetensors",
        "--data", searched / "images", "--arrays", tmp_path / "arrays",
        "--out", tmp_path / "a.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "attributes have ends" in done.stderr


def test_translate_leaves_out_the_image_itself_and_bears_copies(
    searched, tmp_path, capsys
):
    from shutil import copy

    folder = tmp_path / "images"
    (image, *_) = sorted((searched / "images" / "disk").iterdir())
    stars = sorted((searched / "images" / "star").iterdir())
    for split in ("train", "test"):
        for name in ("one", "two"):
            (folder / split / name).mkdir(parents=True)
            copy(stars[0], folder / split / name)
    for copies in range(2):  # the image alone, then with a copy
        copy(image, folder / "train" / "one" / f"{copies}.png")
        cli.main([
            "translate", str(image), "--tau", "0", "--share", "0",
            "--model", str(searched / "periodic.safetensors"),
            "--data", str(tmp_path / "images"),
            "--arrays", str(tmp_path / "arrays"),
            "--out", str(tmp_path / "a.png"),
        ])  # fmt: skip
        told = capsys.readouterr().out
        assert ("distance 0.00" in told) == bool(copies), told
        assert ("no image is near" in told) != bool(copies), told
        assert "in units of" not in told  # two images are equal


def test_the_network_that_is_searched_by_default(monkeypatch):
    from hcnn import runs

    about = {name: dict(data=name.split("-")[1]) for name in runs.PERIODIC}
    monkeypatch.setattr(runs, "pretrained", lambda: about)
    monkeypatch.setenv("HCNN_DATA", "somewhere")
    best = "hcnn-cifar10-periodic"
    drawn = "hcnn8-shapes10-periodic"
    assert runs.network_to_search(None, None) == (best, "cifar10")
    assert runs.network_to_search(None, "a/folder") == (best, "a/folder")
    assert runs.network_to_search(None, "shapes10") == (drawn, "shapes10")
    assert runs.network_to_search(drawn, None) == (drawn, "shapes10")
    monkeypatch.delenv("HCNN_DATA")
    assert runs.network_to_search(None, None) == (drawn, "shapes10")
    assert runs.network_to_search(None, "a/folder") == (best, "a/folder")
    assert runs.network_to_search(None, "cifar10") == (best, "cifar10")
    with pytest.raises(ValueError, match="no network with periodic"):
        runs.network_to_search(None, "cifar100")
