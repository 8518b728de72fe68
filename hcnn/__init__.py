"""Multiscale hierarchical convolutional networks: the package that the book's chapters export

Exported by the chapters:

- `hcnn.groups`, `hcnn.hierarchy`, `hcnn.conv5d`, `hcnn.factorized`: layers.
- `hcnn.fused`: the fast engine.
- `hcnn.data`, `hcnn.network`, `hcnn.training`: images, networks, recipes.
- `hcnn.translations`: what the attributes of a network mean.

Plain modules:

- `hcnn.cli`: the command line, with `hcnn.bench` and `hcnn.runs`.
- `hcnn.results`: the ledger of recorded results.
- `hcnn.figures`, `hcnn.widgets`: the looks of the pages.
- `hcnn.axes`, `hcnn.runtime`, `hcnn.vision`: what the others share."""

__version__ = "0.1.0"
