"""Put networks of the ledger into the package: python tools/ship.py NAME ENTRY.

Without arguments it writes the README's table of them again.

The newest entry of a training run gives `hcnn/weights/NAME.safetensors`, and
`hcnn/weights/index.json` says where it is from. With several seeds it is the
network of the first: none is chosen by its accuracy.
"""

import argparse
import hashlib
import json
from pathlib import Path

from hcnn import results, runs
from hcnn.network import HCNN
from hcnn.runtime import write

ROOT = Path(__file__).resolve().parent.parent
README, WEIGHTS = ROOT / "README.md", ROOT / "hcnn" / "weights"
TABLE = "<!-- networks, by tools/ship.py -->"  # stands before and behind
LARGEST = 2 * 10**6  # bytes: it lives in the repository


def ship(name: str, entry: str, root=None, weights: Path = WEIGHTS) -> Path:
    """Copy the network of the newest entry; returns the new file."""
    found = results.entries(entry, root)
    if not found:
        known = {own.name for own in results.entries(root=root)}
        raise SystemExit(
            f"ship: no entry is named {entry!r}; expected one of "
            f"{', '.join(sorted(known))}, without its number"
        )
    newest = found[-1]
    if newest.data["data"]["validation"]:
        raise ValueError(
            f"ship: {newest.path.name} was tested on training images that "
            "were set aside; expected a run that the test set judged"
        )
    row = newest.data["seeds"][0]
    content = runs.model_path(newest.path, row["seed"]).read_bytes()
    if len(content) > LARGEST:
        raise ValueError(
            f"ship: {name} has {len(content):,} bytes; expected at most "
            f"{LARGEST:,}; larger ones do not belong into the repository"
        )
    index = json.loads((weights / "index.json").read_text("utf-8"))
    index[name] = dict(
        entry=newest.path.name,
        seed=row["seed"],
        accuracy=row["accuracy"],
        data=newest.data["data"]["name"],
        test_sha256=newest.data["data"]["test_sha256"],
        sha256=hashlib.sha256(content).hexdigest(),
    )
    path = weights / f"{name}.safetensors"
    write(path, content, "ship")
    text = json.dumps(dict(sorted(index.items())), indent=1)
    write(weights / "index.json", f"{text}\n".encode(), "ship")
    return path


def epochs(data: dict) -> str:
    """How many, and after which other network's."""
    count, start = data["recipe"]["epochs"], data.get("start")
    return f"{count:g}" + (f", after `{start['source']}`" if start else "")


def readme(text: str, root=None, weights: Path = WEIGHTS) -> str:
    """The README with the table of the networks that come along."""
    kept = {own.path.name: own.data for own in results.entries(root=root)}
    index = json.loads((weights / "index.json").read_text("utf-8"))
    head = "network", "tested on", "test accuracy", "epochs", "parameters"
    rows = [(*head, "before folding"), ("---",) * 6]
    for name, about in index.items():
        own = HCNN.load(weights / f"{name}.safetensors")
        rows.append((
            f"`{name}`", about["data"], f"{100 * about['accuracy']:.2f} %",
            epochs(kept[about["entry"]]),
            f"{own.parameter_count():,d}",
            f"{own.parameter_count(folded=False):,d}",
        ))  # fmt: skip
    lines = (f"| {' | '.join(row)} |" for row in rows)
    before, _, behind = text.split(TABLE)
    return TABLE.join((before, "\n" + "\n".join(lines) + "\n", behind))


def main() -> None:
    parser = argparse.ArgumentParser(
        "python tools/ship.py", description=__doc__
    )
    parser.add_argument(
        "network",
        nargs="*",
        metavar="NAME ENTRY",
        help="of the network, as users will call it, and of the ledger, "
        "without its number",
    )
    chosen = parser.parse_args().network
    if len(chosen) not in (0, 2):
        parser.error(f"{len(chosen)} names; expected NAME ENTRY, or none")
    if chosen:
        print(ship(*chosen))
    write(README, readme(README.read_text("utf-8")).encode(), "ship")


if __name__ == "__main__":
    main()
