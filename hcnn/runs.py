"""Training runs as folders: one model, one recipe, a row for each seed.

A run lives in a folder of its own, usually in `runs/`: for each seed a
folder of the trainer, and at the end `run.json`, which is also what an entry
of the ledger holds.
"""

import hashlib
import io
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None

import torch

from . import results, runtime
from .data import Dataset, load_dataset
from .network import (
    DEPTH,
    HCNN,
    Cascade,
    HCNNConfig,
    load_pretrained,
    preset,
    pretrained,
)
from .training import (
    Evaluation,
    Recipe,
    Trainer,
    checkpoint_about,
    checkpoints,
    data_digest,
    differences,
    evaluate,
    place,
)

NAMED = ("cifar10", "cifar100", "shapes10")
APART = 3  # correct images by which two kinds of device may differ


def datasets(
    data: str, validation: int = 0, root: str | None = None
) -> tuple[Dataset, Dataset]:
    """The images to train on, and those to test on.

    Args:
        data: name of a data set, or the path of a folder of images.
        validation: so many training images, the last ones, are set aside
            and tested on; the test set is not looked at.
        root: where CIFAR's files are.

    Raises:
        ValueError: more validation images than leave any to train on.
    """
    train = load_dataset(data, "train", root)
    if not validation:
        return train, load_dataset(data, "test", root)
    kept = len(train) - validation
    if not 0 < kept < len(train):
        raise ValueError(
            f"train: {validation} of {len(train)} images for validation; "
            f"expected 0 to {len(train) - 1}, so that some are left to "
            "train on (--validation)"
        )
    return train.subset(kept), train.subset(range(kept, len(train)))


@dataclass(frozen=True)
class Run:
    """What is trained, on what, and how.

    Args:
        model: name of a preset, such as "hcnn8-cifar10".
        recipe_name: of the recipe that `recipe` is, or was before it was
            changed.
        recipe: how.
        data: name of a data set, or the path of a folder of images.
        changes: fields of the configuration that differ from the preset.
        validation: as for `datasets`.
        root: where CIFAR's files are.
        start: a trained network whose weights this one begins with, as for
            `find_network`; None begins with those of a seed.
    """

    model: str
    recipe_name: str
    recipe: Recipe
    data: str
    changes: dict
    validation: int = 0
    root: str | None = None
    start: str | None = None

    def config(self, data: Dataset) -> HCNNConfig:
        """The preset, changed as asked, with the classes of the data."""
        fitting = dict(classes=len(data.class_names))
        return preset(self.model, **fitting | self.changes)


def default_model(data: str) -> str:
    """The small network of a data set; for a folder CIFAR-10's."""
    return f"hcnn8-{data if data in NAMED else 'cifar10'}"


def default_data(model: str | None) -> str:
    """The data set that a preset is named after; without one shapes10."""
    words = (model or "").split("-")
    return next((name for name in NAMED if name in words), "shapes10")


def new_network(config: HCNNConfig, data: Dataset, seed: int) -> HCNN:
    """A network with the weights of a seed and the moments of its data."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return HCNN(
            config,
            mean=data.mean,
            std=data.std,
            class_names=data.class_names,
        )


_BY_CLASS = f"W{DEPTH - 1}.", f"norm{DEPTH - 1}.", f"W{DEPTH}."


def begin_with(network: HCNN, start: str | Path) -> None:
    """Give a network the weights, and the statistics, of a trained one.

    Args:
        network: changed in place. Its padding may be another; if its
            classes are, tensors with a row for each keep what they have.
        start: as for `find_network`.

    Raises:
        ValueError: a network of other tensors; the first are named.
    """
    _fill(network, find_network(start, "--start").state_dict(), start)


def _fill(network, theirs, start):
    """`begin_with`, with weights that are loaded already."""
    own, theirs = network.state_dict(), dict(theirs)
    for name in [name for name in own if name.startswith(_BY_CLASS)]:
        if name in theirs and len(own[name]) != len(theirs[name]):
            del own[name], theirs[name]
    apart = differences(
        *(
            {name: str(list(t.shape)) for name, t in tensors.items()}
            for tensors in (own, theirs)
        )
    )
    if apart:
        raise ValueError(
            f"train: {start} holds other tensors: {'; '.join(apart[:3])}"
            + (f"; and {len(apart) - 3} more" if len(apart) > 3 else "")
            + "; expected a network of the same sizes; change the model, or "
            "what it starts from (--start)"
        )
    for name, tensor in own.items():
        tensor.copy_(theirs[name])


def weights_digest(start: str | Path | None) -> str | None:
    """SHA-256 of a network's tensors, wherever it is; of None it is None.

    Args:
        start: as for `find_network`.
    """
    return _digest(_weights(start))


def _weights(start):
    """Tensors of the network that a run begins with, if there is one."""
    if start is None:
        return None
    return find_network(start, "--start").state_dict()


def _digest(weights):
    if weights is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def train(
    run: Run,
    folder: str | Path,
    seeds: Sequence[int] = (0,),
    *,
    minutes: float | None = None,
    device: str | torch.device | None = None,
    command: str | None = None,
    images: tuple[Dataset, Dataset] | None = None,
    **options,
) -> dict | None:
    """Train a network for each seed, from wherever the run stands.

    Args:
        run: what and how.
        folder: for `seed-N/` and `run.json`. Seeds that are recorded
            there already stay as they are.
        seeds: of weights, order and augmentation.
        minutes: stop when they are over, with everything saved. Each call
            takes at least one step.
        device: by default the best one.
        command: what repeats the run, for its record.
        images: to train and to test on, if they are loaded already.
        options: as for `Trainer`.

    Returns:
        What `run.json` holds now, with mean and deviation of the accuracy,
        and for each seed what `Trainer.run` returned, where it ended, and
        `wall_seconds` with all that is done beside training, None if it
        went on from a checkpoint. None if the time was over before the
        end.

    Raises:
        ValueError: as `Trainer`; no seed; minutes below 0; a folder with
            the record of another run.
    """
    begin = clock = time.monotonic()
    folder = Path(folder)
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"train: seeds are {list(seeds)}; expected different numbers, "
            "at least one (--seeds)"
        )
    if minutes is not None and not minutes >= 0:
        raise ValueError(
            f"train: minutes are {minutes}; expected 0 or more (--minutes)"
        )
    code = runtime.environment()  # that runs now, whatever is edited later
    code = {name: code[name] for name in ("commit", "dirty")}
    data, test = images or datasets(run.data, run.validation, run.root)
    weights, first = _weights(run.start), place()[0] == 0
    digest = _digest(weights)
    about = _about(run, data, test, digest)
    rows = _in_all(_recorded(folder, about) if first else None)
    for seed in seeds:
        if seed in rows:
            continue
        own = folder / f"seed-{seed}"
        whole = not checkpoints(own)  # else a part of it was another call's
        network = new_network(run.config(data), data, seed)
        if weights is not None:
            _fill(network, weights, run.start)
        if first:
            _check_beside(own, about)
        trainer = Trainer(
            network,
            data,
            run.recipe,
            folder=own,
            test=test,
            seed=seed,
            device=device,
            start=digest,
            **options,
        )
        left = None
        if minutes is not None:
            left = max(0.0, 60 * minutes - (time.monotonic() - begin))
        row = trainer.run(stop_after=left)
        if not row["finished"]:
            return None
        clock, last = time.monotonic(), clock
        ended = dict(
            command=command,
            device=str(trainer.device),
            processes=place()[1],
            environment=runtime.environment() | code,
        )
        row["wall_seconds"] = clock - last if whole else None
        if first:
            rows = _add(folder, about, row, ended)
        rows = _in_all(rows)  # and the record is written
    return _in_all(read(folder) if first else None)


def _in_all(value):
    """What the first process has, in all of them."""
    found = [value]
    if place()[1] > 1:
        torch.distributed.broadcast_object_list(found)
    return found[0]


@contextmanager
def _alone(folder):
    """One call at a time changes the record of a folder; others wait.

    On Windows, and where a file system has no locks or may not be
    written, nothing is locked.
    """
    with ExitStack() as stack:
        with suppress(OSError):
            name = folder / ".lock"
            file = stack.enter_context(open(name, "a", encoding="utf-8"))
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


_UNREADABLE = OSError, ValueError, KeyError, TypeError, RecursionError


def _check_beside(own, about):
    """Refuse a folder in which other seeds are of another run."""
    start = about["start"]
    ours = {key: about[key] for key in ("recipe", "config", "data")}
    ours |= dict(start=start and start["sha256"])
    for other in own.parent.glob("seed-*"):
        try:
            theirs = checkpoint_about(checkpoints(other)[-1])
        except (IndexError, *_UNREADABLE):
            continue  # none, or being written now: the record will tell
        images = ours["data"].keys() & theirs["data"].keys() - {*_PLACE}
        mine, known = (
            whole | dict(data={key: whole["data"][key] for key in images})
            for whole in (ours, {key: theirs.get(key) for key in ours})
        )
        if other != own and (apart := differences(mine, known)):
            raise ValueError(
                f"train: {other} belongs to another run: "
                f"{'; '.join(apart)}; expected the same for all seeds of a "
                "folder; give another folder (--out)"
            )


def _add(folder, about, row, ended):
    """Put the row of a seed into the record, beside those of others."""
    path, own = folder / "run.json", folder / f"seed-{row['seed']}"
    try:
        with _alone(folder):
            for left in folder.glob(".run.json.*.partial"):
                left.unlink(missing_ok=True)  # by a process that was killed
            rows = _recorded(folder, about) | {row["seed"]: row | ended}
            accuracies = [row["accuracy"] for row in rows.values()]
            found = about | dict(
                **ended,
                seeds=[rows[seed] for seed in sorted(rows)],
                mean=statistics.mean(accuracies),
                deviation=(
                    statistics.stdev(accuracies) if len(rows) > 1 else None
                ),
            )
            text = json.dumps(found, indent=1, ensure_ascii=False)
            runtime.write(path, f"{text}\n".encode(), "train")
    except OSError as error:
        raise OSError(
            error.errno,
            f"train: {path} could not be written ({error}); the network "
            "beside it is whole: make room or change the permissions, and "
            "give the same command again",
        ) from None
    except ValueError as error:  # another run's, begun meanwhile
        raise ValueError(
            f"{error}; move {own} there, and nothing is trained anew"
        ) from None
    return rows


def _about(run, data, test, digest):
    """What makes two runs the same, but for their seeds."""
    about = dict(
        model=run.model,
        config=asdict(run.config(data)),
        recipe_name=run.recipe_name,
        recipe=asdict(run.recipe),
        data=dict(
            source=(
                run.data
                if run.data in NAMED
                else str(Path(run.data).expanduser().resolve())
            ),
            name=data.name,
            class_names=list(data.class_names),
            images=len(data),
            sha256=data_digest(data),
            validation=run.validation,
            test_images=len(test),
            test_sha256=data_digest(test),
        ),
        start=None,
    )
    if run.start is not None:
        about["start"] = dict(source=run.start, sha256=digest)
    return json.loads(json.dumps(about))


_PLACE = "source", "name"  # where something is, and what it is called


def _recorded(folder, about):
    """Rows by seed of the run's record, if there is one."""
    try:
        data = read(folder)
    except FileNotFoundError:
        return {}
    mine, theirs = (
        {key: found.get(key) for key in about} for found in (about, data)
    )
    for own in (mine, theirs):  # images and networks may have moved
        for part in ("data", "start"):
            own[part] = {
                k: v
                for k, v in (own[part] or {}).items()
                if k not in _PLACE
            }
    if apart := differences(mine, theirs):
        raise ValueError(
            f"train: {folder} holds the record of another run: "
            f"{'; '.join(apart)}; expected the same; give another folder "
            "(--out)"
        )
    return {row["seed"]: row for row in data["seeds"]}


def record(folder: str | Path, name: str, root=None) -> Path:
    """Make a finished run an entry of the ledger, networks and logs too.

    Args:
        folder: of the run.
        name: of the entry, such as "train-hcnn8-cifar10-modern".
        root: the ledger's folder, by default the project's.

    Returns:
        The entry's folder: `run.json`, and for each seed
        `model-N.safetensors` and `log-N.jsonl`. If the run was recorded
        before, it is that entry.
    """
    with _alone(Path(folder)):
        return _record(folder, name, root)


def _record(folder, name, root):
    data = read(folder)
    for entry in results.entries(name, root):
        if entry.data == data:
            return entry.path
    with tempfile.TemporaryDirectory() as place:
        files = []
        for row in data["seeds"]:
            own = Path(folder, f"seed-{row['seed']}")
            for file in ("model.safetensors", "log.jsonl"):
                stem, dot, suffix = file.partition(".")
                copy = Path(place, f"{stem}-{row['seed']}{dot}{suffix}")
                copy.write_bytes((own / file).read_bytes())
                files.append(copy)
        try:
            return results.record(name, data, root=root, files=files)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{error.strerror or error}; the run in {folder} is whole, "
                "and the same command records it",
            ) from None


def read(folder: str | Path) -> dict:
    """What a finished run or an entry of the ledger says of itself.

    Raises:
        FileNotFoundError: there is no `run.json`.
        ValueError: it is damaged, or not that of a training run.
    """
    path = Path(folder, "run.json")
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"runs: no {path}; expected the folder of a finished training "
            "run; if it is not finished, give its hcnn train again"
        ) from None
    try:
        data = json.loads(content.decode("utf-8"))
        _check(data)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError(
            f"runs: {path} is not the record of a training run ({error!r}); "
            "expected one that hcnn train wrote"
        ) from None
    return data


def _check(data):
    """Has a record what is read of it?"""
    about = data["data"]
    for name, kind in (
        ("source", str),
        ("test_sha256", str),
        ("validation", int),
    ):
        if not isinstance(about[name], kind):
            raise TypeError(f"data.{name} is {about[name]!r}")
    data["seeds"][0]
    for row in data["seeds"]:
        for name, kind in (("seed", int), ("accuracy", (int, float))):
            if not isinstance(row[name], kind):
                raise TypeError(f"{name} of a seed is {row[name]!r}")
        both = data | row
        both["device"], both["environment"]["packages"]["torch"]
        both["environment"]["hardware"]


def model_path(folder: str | Path, seed: int) -> Path:
    """The file of a seed's network, in a run or in an entry."""
    for path in (
        Path(folder, f"seed-{seed}", "model.safetensors"),
        Path(folder, f"model-{seed}.safetensors"),
    ):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"runs: {folder} has no network of seed {seed}; expected "
        f"model-{seed}.safetensors, or seed-{seed}/model.safetensors; this "
        "entry of the ledger keeps figures alone"
    )


def find_network(model: str | Path, option: str = "model") -> Cascade:
    """A network by the name it ships under, its run's folder, or its file.

    Of a run with several seeds it is that of the first. Errors name the
    `option` that said so.

    Raises:
        ValueError: none of these; names those that ship.
    """
    path = Path(model)
    if path.is_file():
        return HCNN.load(path)
    if path.is_dir():
        return HCNN.load(model_path(path, read(path)["seeds"][0]["seed"]))
    if str(model) in pretrained():
        return load_pretrained(str(model))
    raise ValueError(
        f"{option} is {str(model)!r}; expected a folder that hcnn "
        "train wrote, a file, or a network that comes with the package: "
        f"{', '.join(pretrained()) or 'there is none'}"
    )


PERIODIC = (
    "hcnn-cifar10-periodic",
    "hcnn8-cifar10-periodic",
    "hcnn8-shapes10-periodic",
)


def network_to_search(
    model: str | None, data: str | None
) -> tuple[str, str]:
    """A network whose attributes are translated, and the images to search.

    Args:
        model: as for `find_network`; None for the best of `PERIODIC` that
            ships and whose images are at hand.
        data: as for `datasets`; None for those it was trained on.

    Raises:
        ValueError: there is no such network, or no images are known.
    """
    shipped = pretrained()
    if model is None:
        cifar = bool(os.environ.get("HCNN_DATA"))
        for name in PERIODIC:
            own = shipped.get(name, {}).get("data")
            if (
                own
                and (data not in NAMED or data == own)
                and (data or cifar or own == "shapes10")
            ):
                model = name
                break
        else:
            raise ValueError(
                f"translate: no network with periodic padding comes with the "
                f"package for {data or 'the data at hand'}; expected --model "
                "and a folder that hcnn train wrote, or a file"
            )
    if data is None and Path(model).is_dir():
        data = read(model)["data"]["source"]
    elif data is None and model in shipped:
        data = shipped[model]["data"]
    elif data is None and Path(model).is_file():
        raise ValueError(
            f"translate: the file {model} does not say what it was trained "
            "on; expected --data and a name or a folder of images to search"
        )
    return model, data or NAMED[-1]


def strip(*rows: Sequence[torch.Tensor], side: int = 128) -> bytes:
    """A PNG of rows of pictures, all of one width.

    Args:
        rows: of images (3, h, w) of bytes, or of arrays (b, c), each in
            its own grey scale, white the highest; equally many in each.
        side: width of a picture in pixels; values of arrays are squares.
    """
    from PIL import Image

    gap, pictures = side // 16, []
    for row in rows:
        pictures.append([])
        for values in row:
            if values.ndim == 3:
                pixels = values.permute(1, 2, 0)
            else:
                low, high = values.min(), values.max()
                pixels = (
                    255 * (values - low) / (high - low).clamp(min=1e-30)
                )
                pixels = pixels.round().byte()
            tall, wide = pixels.shape[:2]
            pictures[-1].append(
                Image.fromarray(pixels.numpy())
                .convert("RGB")
                .resize(
                    (side, max(1, side * tall // wide)),
                    Image.Resampling.NEAREST,
                )
            )
    heights = [gap + max(own.height for own in row) for row in pictures]
    size = gap + len(rows[0]) * (side + gap), gap + sum(heights)
    sheet, y = Image.new("RGB", size, "white"), gap
    for row, height in zip(pictures, heights, strict=True):
        for x, picture in enumerate(row):
            sheet.paste(picture, (gap + x * (side + gap), y))
        y += height
    buffer = io.BytesIO()
    sheet.save(buffer, format="png")
    return buffer.getvalue()


def evaluate_run(
    folder: str | Path,
    *,
    data: str | None = None,
    root: str | None = None,
    device: str | torch.device | None = None,
    tell: Callable[[dict, Evaluation, Evaluation], None] | None = None,
) -> list[dict]:
    """Evaluate the networks of a finished run or an entry once more.

    Args:
        folder: of the run; or the name of a network that comes along.
        data: where its images are, if they have moved: their folder, of
            CIFAR the one that holds its official folder.
        root: where CIFAR's files are.
        device: by default the best one.
        tell: called for each seed with its recorded row, and what was
            found now, plain and with mirror images.

    Returns:
        For each seed `seed`, images `recorded` as correct, those `correct`
        now, their `count`, and by how many the two may differ: by none
        where hardware and PyTorch are those of the record, and one process
        trained it.

    Raises:
        ValueError: the images are not those of the record, or there is
            no such run.
    """
    shipped = str(folder) in pretrained() and not Path(folder).exists()
    if not shipped and not Path(folder).exists():
        raise ValueError(
            f"evaluate: {str(folder)!r} is no folder, and no network that "
            "comes with the package; expected a finished run, an entry of "
            f"results/, or one of {', '.join(pretrained()) or 'none'}"
        )
    record, found = (_shipped if shipped else read)(folder), []
    about, device = record["data"], device or runtime.best_device()
    source = data or about["source"]
    if data and data not in NAMED and about["source"].startswith("cifar"):
        source, root = about["source"], data
    if about["validation"]:
        _, images = datasets(source, about["validation"], root)
    else:
        images = load_dataset(source, "test", root)
    if about["test_sha256"] != data_digest(images):
        raise ValueError(
            f"evaluate: {images.name} has other test images than those of "
            f"{folder}; expected the same, byte for byte; look at HCNN_DATA "
            "or the folder"
        )
    here = dict(environment=runtime.environment(), device=str(device))
    for row in record["seeds"]:
        if shipped:  # nothing is known of the machine of its record
            network, exact = load_pretrained(str(folder)), False
        else:
            network = HCNN.load(model_path(folder, row["seed"]))
            exact = _same_kind(record | row, here)
        plain = evaluate(network.to(device), images)
        if tell:
            tell(row, plain, evaluate(network, images, mirror=True))
        found.append(
            dict(
                seed=row["seed"],
                recorded=round(row["accuracy"] * plain.count),
                correct=plain.correct,
                count=plain.count,
                may_differ=0 if exact else APART,
            )
        )
    return found


def _shipped(name):
    """Of a network that comes along, what `evaluate_run` reads."""
    about = pretrained()[str(name)]
    row = dict(seed=about["seed"], accuracy=about["accuracy"])
    data = dict(
        source=about["data"], validation=0, test_sha256=about["test_sha256"]
    )
    return dict(data=data, seeds=[row])


def _same_kind(then, now):
    """Is what decides the last digits of a sum as it was?"""
    if then.get("processes", 1) > 1:  # each evaluated batches of its own
        return False
    old, new = then["environment"], now["environment"]
    keys = "hardware gpu threads avx512_bf16 amx capability cuda cudnn"
    keys += " onednn_max_cpu_isa"
    kinds = (torch.device(own["device"]).type for own in (then, now))
    return (
        len(set(kinds)) == 1
        and old["packages"]["torch"] == new["packages"]["torch"]
        and all(old[k] == new[k] for k in keys.split() if k in old)
    )


def overview() -> str:
    """Devices, data sets, shipped networks and runs, as lines of text."""
    machine, device = runtime.environment(), runtime.best_device()
    with runtime.autocast(device):
        short = torch.is_autocast_enabled(device.type)
    sections = {
        "data sets": map(_data_line, NAMED),
        "networks that come with the package": (
            f"{name}: {100 * about['accuracy']:.2f} %, {about['entry']}, "
            f"sha256 {about['sha256'][:12]}"
            for name, about in pretrained().items()
        ),
        "runs in runs/": map(_run_line, sorted(Path("runs").glob("*/*/"))),
    }
    lines = [
        f"hcnn {runtime.version('hcnn') or '(a copy)'}, "
        f"torch {torch.__version__}, Python {machine['python']}",
        f"processor: {machine['hardware']}; threads: {machine['threads']}",
        f"GPU: {', '.join(machine['gpu'] or ['none'])}",
        f"trains on {device} in {'bf16' if short else 'float32'}",
    ]
    for title, found in sections.items():
        lines.append(f"{title}:")
        lines += [f"  {line}" for line in found if line] or ["  none"]
    return "\n".join(lines)


def _data_line(name):
    if name == "shapes10":
        return "shapes10: drawn when it is asked for"
    lost = f"{name}: not found; HCNN_DATA says where its files are"
    if not os.environ.get("HCNN_DATA"):
        return lost
    try:
        data = load_dataset(name, "test")
    except FileNotFoundError:
        return lost
    except (OSError, ValueError) as error:
        return f"{name}: {error}"
    classes = len(data.class_names)
    return f"{name}: {len(data):,} test images of {classes} classes"


def _run_line(folder):
    kept = checkpoints(folder)
    if not kept:
        return None
    step = int(kept[-1].name.removeprefix("step-"))
    try:
        digest = (kept[-1] / "SHA256SUMS").read_text("ascii")[:12]
    except (OSError, ValueError) as error:
        digest = f"unreadable ({error})"
    try:
        rows = read(folder.parent)["seeds"]
    except (OSError, ValueError):
        rows = []
    done = any(folder.name == f"seed-{row['seed']}" for row in rows)
    return (
        f"{folder.parent}, {folder.name.replace('-', ' ')}, "
        f"{'finished' if done else 'not finished'}: step {step:,}, "
        f"sha256 {digest}"
    )
