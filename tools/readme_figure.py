"""Take the README's figure from the outputs stored in chapter 03.

python tools/readme_figure.py       the last step of `make chapters`
"""

import base64
import json
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK, NAME = ROOT / "book/03-conv5d.ipynb", "fig-sizes"
PICTURE = ROOT / "book/_assets/architecture.png"


def stored() -> bytes:
    """The picture of the cell whose figure is called `fig-sizes`."""
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        figure = cell["metadata"].get("mystnb", {}).get("figure", {})
        if figure.get("name") != NAME:
            continue
        for output in cell["outputs"]:
            if "image/png" in output.get("data", {}):
                return base64.b64decode(output["data"]["image/png"])
    raise SystemExit(
        f"readme_figure: no stored figure {NAME!r} in {NOTEBOOK.name}; run "
        "`make chapters ONLY=03`"
    )


if __name__ == "__main__":
    beside = PICTURE.with_suffix(".partial")
    try:
        beside.write_bytes(stored())
        os.replace(beside, PICTURE)
    finally:
        beside.unlink(missing_ok=True)
