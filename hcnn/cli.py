"""The command line: `hcnn COMMAND`, or `python -m hcnn COMMAND`.

A command is a function: its arguments are the options, its docstring the
help. An error ends it with one line and exit status 2.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import Positional, arg

Saved = Annotated[Path, Positional, arg(metavar="FILE")]
Written = Annotated[
    Path | None, arg(metavar="FILE", help_behavior_hint="(default: none)")
]


def export(
    file: Saved,
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
        file: a network that HCNN.save wrote.
        onnx: the ONNX file to write. The variant (+) is not folded in it.
        folded: the folded safetensors file to write; not for (+).
        size: side in pixels of the images that the ONNX file takes, any
            number of them.
    """
    from .network import HCNN, export_onnx

    outputs = [path for path in (onnx, folded) if path is not None]
    if not outputs:
        raise ValueError(
            "export: nothing to write; name a file by --onnx, by --folded, "
            "or one by each"
        )
    if len({path.resolve() for path in (file, *outputs)}) <= len(outputs):
        raise ValueError(
            "export: FILE, --onnx and --folded are "
            f"{', '.join(map(str, (file, *outputs)))}; expected different "
            "files; choose another name"
        )
    if size < 1:
        raise ValueError(f"export: --size is {size}; expected 1 or more")
    network = HCNN.load(file)
    if folded is not None:
        small = network.fold() if isinstance(network, HCNN) else network
        small.save(folded)
    if onnx is not None:
        export_onnx(network, onnx, size)
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
        model: a preset with zero padding, such as hcnn8-cifar10.
        batch: images in a step.
        size: side of the images in pixels.
        repeats: rounds; the median counts.
        memory: measure the peak memory of a training step too.
    """
    from .bench import run

    run(model, batch, size, repeats, memory=memory)


COMMANDS = {"export": export, "bench": bench}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command; by default the one this program was called with.

    Raises:
        SystemExit: with status 2 after a line that says what was wrong,
            with 130 if interrupted.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="hcnn",
            description="Multiscale hierarchical convolutional networks.",
            args=arguments or ["--help"],
        )
    except (ValueError, OSError, ImportError, NotImplementedError) as error:
        print(f"hcnn: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
