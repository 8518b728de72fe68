"""The ledger of results: folders that are added, and never changed.

A measurement or a training run that is finished is a folder NAME-N in
`results/`, with `run.json` inside; a newer one gets the next number.
Pages, tables and commands read the newest.
"""

import json
import re
import shutil
import tempfile
import time
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from . import runtime

# the command that makes an entry, by the first word of its name
COMMANDS = {
    "bench": "make bench",
    "profile": "python -m benchmarks.profile",
    "tried": "python -m benchmarks.tried",
    "rate": "python -m benchmarks.rate",
    "train": "hcnn train … --record NAME",
    "ablate": "python -m benchmarks.training small",
    "compare": "python -m benchmarks.training small",
    "translate": "python -m benchmarks.translations NETWORK",
    "pictures": "python -m benchmarks.translations NETWORK --pictures",
}


class Entry(NamedTuple):
    """A folder of the ledger, and what its `run.json` holds."""

    name: str
    number: int
    path: Path
    data: dict


def record(
    name: str, data: dict, *, root: str | Path | None = None, files=()
) -> Path:
    """Add an entry to the ledger.

    Args:
        name: task, model and recipe, such as "train-hcnn8-cifar10-modern";
            of letters, digits, "-", "+" and "_".
        data: what was found, all of it JSON: configuration, a row for
            each seed, times in seconds, the command that repeats it. The
            record of the machine is added as "environment" if it is not
            there.
        root: the ledger's folder; by default the project's `results`.
        files: paths of other files that the entry keeps, such as a log.

    Returns:
        The new folder, with the next free number. It appears whole or not
        at all, and no other is touched.

    Raises:
        ValueError: a name with other characters, data that JSON has no
            word for, such as NaN or a tensor, or two files of one name.
        FileNotFoundError: a file that is not there, or no project to find
            `results` in.
    """
    check_name("record", name)
    data = {"environment": runtime.environment()} | data
    try:
        text = json.dumps(
            data, indent=1, ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"record: data of {name} is not JSON: {error}; expected dicts, "
            "lists, strings, finite numbers, booleans and None; convert "
            "tensors by .tolist()"
        ) from None
    contents = [("run.json", f"{text}\n".encode())]
    contents += [
        (path.name, path.read_bytes()) for path in map(Path, files)
    ]
    if len(dict(contents)) < len(contents):
        raise ValueError(
            f"record: files of {name} are {[name for name, _ in contents]}; "
            "expected different names, none of them run.json; rename them"
        )
    with _hidden("record", root) as hidden:
        root, beside = hidden.parent, hidden / name
        beside.mkdir()
        for file, content in contents:
            runtime.write(beside / file, content)
        taken = (entry[1] for entry in _folders(root, name))
        number = 1 + max(taken, default=0)
        while True:
            path = root / f"{name}-{number}"
            try:
                return beside.rename(path)
            except OSError:
                if not path.exists():
                    raise
                number += 1  # another was quicker, or it is no folder


def check_place(function: str, root: str | Path | None = None) -> None:
    """Refuse a ledger that may not be written.

    Raises:
        OSError: nothing can be added to it; says why.
        FileNotFoundError: no project to find `results` in.
    """
    with _hidden(function, root):
        pass


@contextmanager
def _hidden(function, root):
    """A folder in the ledger that is none of it, for a while."""
    root = _root(function, root)
    try:
        root.mkdir(parents=True, exist_ok=True)
        hidden = tempfile.TemporaryDirectory(".partial", ".", root)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{function}: nothing can be added to the ledger {root} "
            f"({error}); expected a folder that may be written; make room "
            "or change the permissions",
        ) from None
    for left in root.glob(".*.partial"):  # by processes that were killed
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > 24 * 60 * 60:
                shutil.rmtree(left, ignore_errors=True)
    with hidden as place:
        yield Path(place)


def check_name(function: str, name: str) -> str:
    """Refuse what cannot be an entry's name; else return it."""
    if not re.fullmatch(r"[\w+-]+", name, re.ASCII):
        raise ValueError(
            f"{function}: name is {name!r}; expected letters, digits, '-', "
            "'+' and '_' alone, such as 'train-hcnn8-cifar10-modern'"
        )
    return name


def entries(
    name: str | None = None, root: str | Path | None = None
) -> list[Entry]:
    """All complete entries, sorted by name and number.

    Args:
        name: only those of this name.
        root: the ledger's folder; by default the project's `results`.

    An entry whose `run.json` is missing or damaged is left out, and a
    warning names it.
    """
    found = []
    for title, number, path in _folders(_root("entries", root), name):
        try:
            data = json.loads((path / "run.json").read_text("utf-8"))
            if not isinstance(data, dict):
                raise ValueError("no JSON object")
        except (OSError, ValueError) as error:
            warnings.warn(
                f"entries: {path} is left out, its run.json is missing or "
                f"damaged ({error}); restore it, or remove the folder",
                stacklevel=2,
            )
        else:
            found.append(Entry(title, number, path, data))
    return found


def newest(name: str, root: str | Path | None = None) -> dict:
    """What the newest complete entry of a name holds.

    Raises:
        FileNotFoundError: there is none; says which command makes it.
    """
    found = entries(name, root)
    if not found:
        command = COMMANDS.get(
            name.partition("-")[0], "hcnn.results.record"
        )
        raise FileNotFoundError(
            f"newest: no entry {name}-1 or later in {_root('newest', root)}; "
            f"make it with: {command}"
        )
    return found[-1].data


def value(key: str, digits: int = 3, root: str | Path | None = None):
    """A number of the newest entry, rounded as a page shows it.

    Args:
        key: the entry's name, then the keys that lead to the number, with
            dots between: "bench-engine.training.K16.speedup". In a list
            the key is the index.
        digits: significant digits that are kept of a float.
        root: the ledger's folder; by default the project's `results`.

    Returns:
        A float, int, string or bool of Python's own, as `glue` wants it.

    Raises:
        FileNotFoundError: no entry of this name.
        KeyError: a key that is not there; names those that are.
    """
    name, *keys = key.split(".")
    found = newest(name, root)
    for index, step in enumerate(keys):
        if isinstance(found, list):
            found = {str(i): item for i, item in enumerate(found)}
        if not isinstance(found, dict) or step not in found:
            there = ", ".join(found) if isinstance(found, dict) else found
            raise KeyError(
                f"value: {'.'.join([name, *keys[:index]])} has no "
                f"{step!r}; it has {there}"
            )
        found = found[step]
    return (
        float(f"{found:.{digits}g}") if isinstance(found, float) else found
    )


def _root(function, root):
    """The ledger's folder, given or found."""
    project = runtime.repository() if root is None else None
    if root is None and project is None:
        raise FileNotFoundError(
            f"{function}: the ledger lies in the project's folder results, "
            f"and neither this package nor {Path.cwd()} is inside a copy of "
            "the project; go there, or pass root=…"
        )
    return project / "results" if root is None else Path(root)


def _folders(root, name=None):
    """(name, number, path) of every folder, or of those with a name."""
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        match = re.fullmatch(r"([\w+-]+)-(\d+)", path.name, re.ASCII)
        if match and path.is_dir() and name in (None, match[1]):
            found.append((match[1], int(match[2]), path))
    return sorted(found)
