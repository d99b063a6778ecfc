"""The one place where torchvision is imported, so that a build that does not match torch's still imports."""

from types import ModuleType

import torch

# torchvision registers shape functions for these on import, and fails where its compiled operators are absent:
# "operator torchvision::nms does not exist" (its CUDA build beside a CPU build of torch). We call none of them.
MISSING_OPERATORS = ("nms", "qnms")
LIBRARIES: list[torch.library.Library] = []  # a Library's registrations end with the object


def import_torchvision() -> ModuleType:
    """torchvision, with its operators' names registered first where its own library did not bring them.

    Raises ImportError when torchvision is not installed.
    """
    try:
        import torchvision
    except RuntimeError as error:  # tried first: names registered twice would break a build that has its operators
        if "torchvision::" not in str(error):
            raise
        register_missing_operators()
        import torchvision
    return torchvision


def import_transforms() -> ModuleType:
    """torchvision.transforms.v2. Raises ImportError when torchvision is not installed."""
    import_torchvision()
    from torchvision.transforms import v2

    return v2


def register_missing_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    LIBRARIES.append(library)
    for name in MISSING_OPERATORS:
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
