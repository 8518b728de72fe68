"""The command line: `hcnn COMMAND`, or `python -m hcnn COMMAND`.

A command is a function: its arguments are the options, its docstring the
help. An error ends it with one line and exit status 2.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg


EXPECTED = (
    ValueError,
    OSError,
    ImportError,
    ArithmeticError,
    NotImplementedError,
)
UNFINISHED = 3  # exit status of a run that stopped because time was over


def _or(words, metavar=None):
    """What stands in the help where None is the default."""
    return arg(metavar=metavar, help_behavior_hint=f"(default: {words})")


OURS = "the recipe's"
THEIRS = "the model's"
Written = Annotated[Path | None, _or("none", "FILE")]
Number = Annotated[float | None, _or(OURS, "X")]
Whole = Annotated[int | None, _or(OURS, "N")]
Numbers = Annotated[tuple[float, ...] | None, _or(OURS, "[X …]")]
Switch = Annotated[bool | None, _or(OURS, "True|False")]


@dataclass(frozen=True)
class RecipeChanges:
    """Changes of the recipe; its fields are explained in chapter 08."""

    epochs: Number = None
    """Passes over all images."""
    batch: Whole = None
    """Images in a step, of all processes together."""
    optimizer: Annotated[
        Literal["sgd", "muon"] | None, _or(OURS, "NAME")
    ] = None
    """sgd or muon."""
    learning_rate: Number = None
    """The highest."""
    schedule: Annotated[
        Literal["steps", "one-cycle"] | None, _or(OURS, "NAME")
    ] = None
    """steps or one-cycle."""
    milestones: Numbers = None
    """Epochs at which the schedule "steps" changes the rate."""
    factors: Numbers = None
    """Share of the rate from each milestone on, a number for each."""
    warmup: Number = None
    """Share of the steps in which "one-cycle" rises."""
    final: Number = None
    """Share of the rate that "one-cycle" ends with."""
    momentum: Number = None
    """Share of the last step that is kept."""
    nesterov: Switch = None
    """Look ahead by the momentum."""
    weight_decay: Number = None
    """Times the weight: sgd adds it to the gradient, muon shrinks by it."""
    decay: Annotated[
        Literal["all", "kernels"] | None, _or(OURS, "NAME")
    ] = None
    """Which parameters decay, all or kernels."""
    label_smoothing: Number = None
    """Share of a label given to all classes alike."""
    ema: Number = None
    """Decay of a weight average, 0 for none."""
    shift: Whole = None
    """Images move by up to this many pixels."""
    flip: Switch = None
    """Half of the images are mirrored."""
    precision: Annotated[
        Literal["auto", "bf16", "float32"] | None, _or(OURS, "NAME")
    ] = None
    """auto, bf16 or float32."""


@dataclass(frozen=True)
class ModelChanges:
    """Changes of the model; its fields are explained in chapter 07."""

    K: Annotated[int | None, _or(THEIRS, "N")] = None
    """Values of an attribute when it is made."""
    Q: Annotated[int | None, _or(THEIRS, "N")] = None
    """Factors of a filter."""
    support: Annotated[tuple[int, int] | None, _or(THEIRS, "N N")] = None
    """Of the filters along both attributes."""
    padding: Annotated[
        Literal["zero", "periodic"] | None, _or(THEIRS, "NAME")
    ] = None
    """zero or periodic."""
    plus: Annotated[bool | None, _or(THEIRS, "True|False")] = None
    """The variant (+)."""
    output_norm: Annotated[bool | None, _or(THEIRS, "True|False")] = None
    """A normalization after each layer."""


def train(
    *,
    data: Annotated[
        str | None, _or("the model's; shapes10", "NAME|FOLDER")
    ] = None,
    model: Annotated[
        str | None, _or("hcnn8-DATA; hcnn8-cifar10 for a folder", "PRESET")
    ] = None,
    recipe: str = "quick",
    start: Annotated[
        str | None, _or("random weights", "NAME|FOLDER|FILE")
    ] = None,
    out: Annotated[
        Path | None, _or("runs/MODEL[-FOLDER]-RECIPE", "FOLDER")
    ] = None,
    seeds: tuple[int, ...] = (0,),
    validation: int = 0,
    minutes: Annotated[float | None, _or("no limit", "X")] = None,
    device: Annotated[str | None, _or("the best one", "NAME")] = None,
    record: Annotated[str | None, _or("none", "NAME")] = None,
    tensorboard: bool = False,
    recipe_changes: OmitArgPrefixes[RecipeChanges] = RecipeChanges(),
    model_changes: OmitArgPrefixes[ModelChanges] = ModelChanges(),
) -> None:
    """Train a network, or go on with a run that stopped.

    The same command goes on from the newest checkpoint in its folder.
    SIGTERM saves and ends it, with status 143. With many GPUs or machines,
    as in chapter 08: `torchrun --nproc-per-node N -m hcnn train …`

    Args:
        data: cifar10, cifar100, shapes10, or a folder with a folder of
            images for each class, which are brought to 32 x 32 pixels.
            HCNN_DATA says where CIFAR is.
        model: a preset, such as hcnn-cifar10 or hcnn8-cifar10-periodic.
        recipe: paper, authors, modern or quick, which ends after a quarter
            of an epoch and is for shapes10.
        start: begin with a network's weights; its padding and its
            classes may be others.
        out: folder of the run.
        seeds: one network is trained for each.
        validation: set this many training images aside, and test on
            them instead of the test set.
        minutes: save and stop after this many, with status 3 (under torchrun
            0, for which any other is a failure).
        device: cpu, cuda or cuda:N.
        record: name of the entry to add to the project's ledger at the
            end.
        tensorboard: write event files into the folder, too.
    """
    from . import runs, runtime
    from .training import distributed, place, under_torchrun
    from .training import recipe as known

    if device is not None and under_torchrun():
        raise ValueError(
            f"train: --device {device} under torchrun; expected none: each "
            "process takes its own GPU; CUDA_VISIBLE_DEVICES= hides them"
        )
    device = _checked(device)
    if record is not None:  # before hours of training
        runs.results.entries(runs.results.check_name("train", record))
        if not under_torchrun() or os.environ["RANK"] == "0":
            runs.results.check_place("train")
    changes, config = (
        {k: v for k, v in asdict(own).items() if v is not None}
        for own in (recipe_changes, model_changes)
    )
    own = known(recipe, **changes)
    if own.schedule == "steps" and (
        idle := {"warmup", "final"} & {*changes}
    ):
        name = min(idle)
        raise ValueError(
            f"train: --{name} {changes[name]:g} with the schedule 'steps'; "
            "expected it with 'one-cycle' alone; leave it out"
        )
    if data is None:
        data = runs.default_data(model)
        if not under_torchrun() or os.environ["RANK"] == "0":
            drawn = ", drawn images" * (data == "shapes10")
            print(f"no --data named: using {data}{drawn}")
    model = model or runs.default_model(data)
    title = (
        None
        if data in runs.NAMED
        else Path(data).expanduser().resolve().name
    )
    name = "-".join(filter(None, (model, title, recipe)))
    folder = out or Path("runs", name)
    if title is not None:
        _check_outside(folder, Path(data).expanduser())
    runtime.keep_memory()
    with distributed() as best:
        done = runs.train(
            runs.Run(
                model=model,
                recipe_name=recipe,
                recipe=own,
                data=data,
                changes=config,
                validation=validation,
                start=start,
            ),
            folder,
            seeds,
            minutes=minutes,
            device=device or best,
            command=_command(),
            tensorboard=tensorboard,
        )
        first = place()[0] == 0
    if done is None:
        if first:
            print(f"{folder}: saved; the same command goes on")
        if not under_torchrun():  # which would take it for a failure
            sys.exit(UNFINISHED)
    if done is None or not first:
        return
    for row in done["seeds"]:
        print(
            f"seed {row['seed']}: {100 * row['accuracy']:.2f} % of "
            f"{done['data']['test_images']:,} images, "
            f"{100 * row['mirror_accuracy']:.2f} % with mirror images, "
            f"{row['images_per_second']:.0f} images/s, "
            f"{row['steps']:,} steps"
        )
    if recipe == "quick" and data != "shapes10":
        print("quick is a first try; --recipe modern is for such images")
    if record is not None:
        print(runs.record(folder, record))
    print(f"{folder}: finished; see hcnn evaluate {folder}")


def _check_outside(folder, images):
    """Refuse a run among class folders, for one of which it would pass."""
    splits = [images / name for name in ("train", "test", "val")]
    for place in splits if splits[0].is_dir() else [images]:
        if folder.resolve().is_relative_to(place.resolve()):
            raise ValueError(
                f"train: the run's folder {folder} lies among the classes "
                f"of {place} and would be taken for one; expected another "
                "place; name one by --out"
            )


def _checked(device):
    """A device that is here, or an error that says which are."""
    if device is None:
        return None
    import torch

    gpus = torch.cuda.device_count()
    known = ["cpu", "cuda", *(f"cuda:{i}" for i in range(gpus))]
    if device not in known[: None if gpus else 1]:
        raise ValueError(
            f"--device is {device!r}; expected one that is here: "
            f"{', '.join(known[: None if gpus else 1])}"
        )
    return device


def _command():
    """What was typed."""
    from .training import under_torchrun

    words, known = ["hcnn", *_typed], os.environ
    if under_torchrun():
        words = [
            *("torchrun", "--nnodes", known.get("GROUP_WORLD_SIZE", "1")),
            *("--nproc-per-node", known.get("LOCAL_WORLD_SIZE", "1")),
            *("-m", "hcnn", *_typed),
        ]
    return shlex.join(words)


_typed: list[str] = []


def evaluate(
    folder: Annotated[Path, Positional, arg(metavar="NAME|FOLDER")],
    /,
    *,
    data: Annotated[str | None, _or("as recorded", "FOLDER")] = None,
    device: Annotated[str | None, _or("the best one", "NAME")] = None,
) -> None:
    """Evaluate the networks of a finished run on its test images again.

    Prints what is found beside what was recorded. On another machine, or
    after a run of several processes, a few images may differ; more than 3
    are an error, or any on the same.

    Args:
        folder: one that hcnn train wrote; an entry of the ledger, such as
            results/train-hcnn8-cifar10-short-1; or the name of a network
            that comes with the package, as hcnn info prints it.
        data: where the images are, if they have moved.
        device: cpu, cuda or cuda:N.
    """
    from . import runs

    def tell(row, plain, mirrored):
        print(
            f"seed {row['seed']}: {100 * plain.accuracy:.2f} % "
            f"({plain.correct:,} of {plain.count:,} images; recorded "
            f"{100 * row['accuracy']:.2f} %), with mirror images "
            f"{100 * mirrored.accuracy:.2f} %",
            flush=True,
        )

    found = runs.evaluate_run(
        folder, data=data, device=_checked(device), tell=tell
    )
    for row in found:
        apart = abs(row["correct"] - row["recorded"])
        if apart > row["may_differ"]:
            raise ValueError(
                f"evaluate: seed {row['seed']} has {row['correct']} correct "
                f"images and had {row['recorded']}; expected at most "
                f"{row['may_differ']} apart; the network has changed"
            )


def predict(
    images: Annotated[
        tuple[Path, ...],
        Positional,
        arg(metavar="IMAGE…", help_behavior_hint="(required)"),
    ],
    /,
    *,
    model: str,
    top: int = 3,
    size: int = 32,
) -> None:
    """Say what is on images: class names and probabilities.

    Args:
        images: files of any usual kind; the middle square is taken.
        model: a network that comes with the package (hcnn info lists
            them), the folder of a run, or the file of a network.
        top: classes to name for each image.
        size: side in pixels that images are brought to; that of the
            training images.
    """
    import torch

    from . import runs
    from .data import read_image
    from .training import predict as scores_of

    for name, value in (("top", top), ("size", size)):
        if value < 1:
            raise ValueError(
                f"predict: --{name} is {value}; expected 1 or more"
            )
    if not images:
        raise ValueError(
            "predict: no image; name at least one file before --model"
        )
    network = runs.find_network(model)
    if network.config.channels != 3:
        raise ValueError(
            f"predict: the network has colours: {network.config.channels}; "
            "image files have 3; expected a network of 3; call "
            "hcnn.training.predict on a tensor instead"
        )
    pixels = torch.stack([read_image(path, size) for path in images])
    shares = scores_of(network, pixels).softmax(1)
    names = network.class_names or range(network.config.classes)
    for path, row in zip(images, shares, strict=True):
        best = row.sort(descending=True)
        told = ", ".join(
            f"{names[k]} {100 * share:.1f} %"
            for share, k in zip(
                best.values[:top].tolist(),
                best.indices[:top].tolist(),
                strict=True,
            )
        )
        print(f"{path}: {told}")


def info() -> None:
    """Show devices, data sets, networks and runs that are found here."""
    from .runs import overview

    print(overview())


def translate(
    image: Annotated[Path, Positional, arg(metavar="IMAGE")],
    /,
    *,
    depth: int = 11,
    tau: Annotated[tuple[int, ...] | None, _or("all", "[N …]")] = None,
    model: Annotated[str | None, _or("one that ships", "NAME")] = None,
    data: Annotated[str | None, _or("the model's", "NAME|FOLDER")] = None,
    out: Annotated[Path | None, _or("IMAGE-jJ.png", "FILE")] = None,
    smooth: int = 2,
    share: float = 0.9,
    size: int = 32,
    device: Annotated[
        str | None, _or("the best one; the CPU searches", "NAME")
    ] = None,
    arrays: Path = Path("runs/arrays"),
) -> None:
    """Show what images an image becomes along an attribute.

    The array of a layer is translated by tau, and the training image whose
    array is nearest is found. Writes them side by side as a PNG: above the
    images, in the middle the arrays looked for, below those found. The
    arrays of all training images are computed the first time, and kept.

    Args:
        image: a file of any usual kind; the middle square is taken.
        depth: of the layer, 3 to 11.
        tau: translations, 0 to K/2 - 1.
        model: a network that comes with the package, the folder of a run,
            or the file of a network; one with periodic padding.
        data: the images to search: cifar10, cifar100, shapes10 or a
            folder. HCNN_DATA says where CIFAR is.
        out: the PNG, which is replaced if it exists.
        smooth: samples of the attribute that are averaged.
        share: a distance is called small if this share of images have one
            as small to their nearest neighbour.
        size: side in pixels that the image is brought to; that of the
            training images.
        device: cpu, cuda or cuda:N.
        arrays: folder in which arrays are kept.
    """
    import torch

    from . import runs
    from .data import load_dataset, read_image
    from .runtime import write
    from .translations import (
        attribute_arrays,
        open_index,
        small_distance,
        smooth_attribute,
        store_arrays,
        translate_attribute,
        translated_neighbours,
    )

    out = out or Path(f"{image.stem}-j{depth}.png")
    if not 0 <= share <= 1 or size < 1 or tau == ():
        raise ValueError(
            f"translate: --share is {share}, --size {size}, --tau {tau}; "
            "expected 0 to 1, 1 or more, and at least one number"
        )
    same = out.resolve() == image.resolve()
    if same or out.is_dir() or not out.parent.is_dir():
        raise ValueError(
            f"translate: --out is {out}; expected another file than the "
            "image, in a folder that exists"
        )
    pixels, where = read_image(image, size), _checked(device)
    model, data = runs.network_to_search(model, data)
    network = runs.find_network(model)
    with torch.no_grad():
        standard = network.standardize(pixels[None])
        array = attribute_arrays(network, standard, [depth])[depth]
        array = smooth_attribute(array, smooth)
    taus = tuple(range(array.shape[1])) if tau is None else tau
    wanted = [translate_attribute(array, t) for t in taus]
    images = load_dataset(data, "train", size=size)
    with _progress(len(images)) as tell:
        folder = store_arrays(
            network, images, arrays, device=where, tell=tell
        )
    index = open_index(folder, depth, smooth, images, device=where or "cpu")
    own = (images.images == pixels).flatten(1).all(1).nonzero().flatten()
    exclude = torch.cat([own, torch.tensor([-1])])[:1]
    found = translated_neighbours(index, array, taus, exclude=exclude)
    near, far = found.indices[0, :, 0], found.distances[0, :, 0]
    small = small_distance(index, share)
    near_by = max(small, 1e-5 * array.norm().item())  # equal but rounding
    print(
        f"{model}, {len(images):,} images of {images.name}, depth {depth}"
    )
    for t, which, distance in zip(
        taus, near.tolist(), far.tolist(), strict=True
    ):
        name = images.class_names[images.labels[which]]
        note = (
            "" if distance <= near_by else ", not small: no image is near"
        )
        print(
            f"tau {t}: {name}, image {which}, distance "
            f"{distance / (small or 1.0):.2f}{note}"
        )
    if small:
        print(f"in units of {small:.4g}, within which {share:.0%} of them")
        print("have their nearest neighbour")
    write(
        out,
        runs.strip(
            [pixels, *images.images[near]],
            [array[0], *torch.cat(wanted)],
            [array[0], *index[near]],
        ),
        "translate",
    )
    print(out)


@contextmanager
def _progress(total):
    """A bar on a terminal for something that counts up to `total`."""
    from tqdm import tqdm

    with tqdm(
        total=total,
        unit="image",
        desc="arrays",
        leave=False,
        delay=1,
        disable=None,
    ) as bar:
        yield lambda done: bar.update(done - bar.n)


def export(
    model: Annotated[str, Positional, arg(metavar="NAME|FOLDER|FILE")],
    /,
    *,
    onnx: Written = None,
    folded: Written = None,
    size: int = 32,
) -> None:
    """Write a saved network for other programs.

    ONNX is for other languages and runtimes. The folded file has the
    filters and bias maps alone, and HCNN.load reads it. A file that exists
    is replaced.

    Args:
        model: a network that comes with the package (hcnn info lists
            them), the folder of a run, or a file that HCNN.save wrote.
        onnx: the ONNX file to write. The variant (+) is not folded in it.
        folded: the folded safetensors file to write; not for (+).
        size: side in pixels of the images that the ONNX file takes, any
            number of them.
    """
    from .network import HCNN, export_onnx
    from .runs import find_network, model_path, read

    outputs = [path for path in (onnx, folded) if path is not None]
    if not outputs:
        raise ValueError(
            "export: nothing to write; name a file by --onnx, by --folded, "
            "or one by each"
        )
    if size < 1:
        raise ValueError(f"export: --size is {size}; expected 1 or more")
    network, kept = find_network(model), [Path(model)]
    if kept[0].is_dir():  # a run, whose networks stay as they were trained
        seeds = [row["seed"] for row in read(kept[0])["seeds"]]
        kept = [model_path(kept[0], seed) for seed in seeds]
    named = [path.resolve() for path in (*kept, *outputs)]
    if len(set(named)) < len(named):
        raise ValueError(
            "export: the network, --onnx and --folded are "
            f"{', '.join(map(str, (model, *outputs)))}; expected different "
            "files, none of them a network of the run; choose another name"
        )
    for path in outputs:
        if path.is_dir():
            raise ValueError(
                f"export: {path} is a folder; expected the name of a file; "
                "add one"
            )
    small = network
    if folded is not None and isinstance(network, HCNN):
        small = network.fold()  # before a file is written: (+) has none
    if onnx is not None:
        export_onnx(network, onnx, size)
    if folded is not None:
        small.save(folded)
    for path in outputs:
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")


def bench(
    *,
    model: str = "hcnn-cifar10",
    batch: int = 4,
    size: int = 32,
    repeats: int = 5,
    memory: bool = True,
) -> None:
    """Time training and inference on this machine, in under a minute.

    The table has the graph of the published code beside this package, and
    how near that comes to what the machine can do.

    Args:
        model: a preset with zero padding and the paper's strides, such as
            hcnn8-cifar10; its layers' outputs are not normalized.
        batch: images in a step.
        size: side of the images in pixels.
        repeats: rounds; the median counts.
        memory: measure the peak memory of a training step too.
    """
    from .bench import run

    run(model, batch, size, repeats, memory=memory)


COMMANDS = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "info": info,
    "translate": translate,
    "bench": bench,
    "export": export,
}


def _smaller(arguments):
    """What needs less memory, by options that the command has."""
    ways = dict(
        train="a smaller --batch or --model",
        bench="a smaller --batch, --size or --model",
        predict="a smaller --size or fewer images at a time",
        translate="a smaller --size or --device cpu",
        export="a smaller --size",
    )
    return f"take {ways.get((*arguments, '')[0], '--device cpu')}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; by default the one this program was called with.

    Raises:
        SystemExit: with status 2 after a line that says what was wrong,
            with 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _typed[:] = arguments
    if arguments == ["--version"]:
        from .runtime import version

        print(f"hcnn {version('hcnn') or '(a copy)'}")
        return
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="hcnn",
            description="Multiscale hierarchical convolutional networks. "
            "hcnn --version shows the version.",
            args=arguments or ["--help"],
        )
    except EXPECTED as error:
        print(f"hcnn: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        words = " ".join(str(error).split())
        known = "out of memory", "ALLOC_FAILED", "allocate memory"
        if not isinstance(error, MemoryError) and not any(
            own in words for own in known
        ):
            raise
        print(
            f"hcnn: out of memory ({words[:100]}…); expected room for what "
            f"was asked; {_smaller(arguments)}",
            file=sys.stderr,
        )
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
