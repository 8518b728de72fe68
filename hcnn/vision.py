"""The only import of torchvision.

Where only a CUDA build of torchvision is to be had beside a CPU build of
torch, its compiled extension does not load, and the import stops at
"operator torchvision::nms does not exist". Data sets and transforms need
none of the extension, so declaring the signatures of the two missing
operators is enough; calling them still raises. The declaration is made only
after that failure: where the extension loads, a second one ends the process.
"""

import sys

import torch

_declared = []  # a library that is dropped takes its declarations along


def torchvision():
    """Import torchvision (about a second) and return the module."""
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in list(sys.modules):
            if name.split(".")[0] == "torchvision":
                del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        box = "Tensor dets, Tensor scores, float iou_threshold"
        for operator in ("nms", "qnms"):
            library.define(f"{operator}({box}) -> Tensor")
        _declared.append(library)
        import torchvision
    import torchvision.datasets
    import torchvision.io

    return torchvision
