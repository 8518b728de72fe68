"""Multiscale hierarchical convolutional networks: the package that the book's chapters export

Modules:

- `hcnn.axes`: Axis names, shape checks and the pattern of error messages.
- `hcnn.vision`: The only import of torchvision.
- `hcnn.widgets`: A figure with sliders, in Jupyter and in the built page."""

__version__ = "0.1.0"
