"""Put networks of the ledger into the package: python tools/ship.py NAME ENTRY.

The newest entry of a training run gives `hcnn/weights/NAME.safetensors`, and
`hcnn/weights/index.json` says where it is from. With several seeds it is the
network of the first: none is chosen by its accuracy.
"""

import argparse
import hashlib
import json
from pathlib import Path

from hcnn import results, runs
from hcnn.runtime import write

WEIGHTS = Path(__file__).resolve().parent.parent / "hcnn" / "weights"
LARGEST = 2 * 10**6  # bytes: it lives in the repository


def ship(name: str, entry: str, root=None, weights: Path = WEIGHTS) -> Path:
    """Copy the network of the newest entry; returns the new file."""
    *_, newest = results.entries(entry, root)
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
        sha256=hashlib.sha256(content).hexdigest(),
    )
    path = weights / f"{name}.safetensors"
    write(path, content, "ship")
    text = json.dumps(dict(sorted(index.items())), indent=1)
    write(weights / "index.json", f"{text}\n".encode(), "ship")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        "python tools/ship.py", description=__doc__
    )
    parser.add_argument(
        "name", help="of the network, as users will call it"
    )
    parser.add_argument("entry", help="of the ledger, without its number")
    chosen = parser.parse_args()
    print(ship(chosen.name, chosen.entry))


if __name__ == "__main__":
    main()
