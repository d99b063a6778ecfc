"""Check the network of a plug-in by a forward pass before training."""

import torch
from torch import nn

import data
from args import Options
from utils import plugin_files
from utils.errors import UsageError


def is_from_plugin(options: Options) -> bool:
    """Return True if a plug-in defines the network or a constraint on its layers."""
    parts = options.arch_row.constructor, *(row.constraint for row in options.constraint.rows)
    return any(part is not None and not isinstance(part, str) for part in parts)


@torch.no_grad()
def check_output(model: nn.Module, name: str, spec: data.SetSpec) -> None:
    """Raise UsageError if `model` does not map a batch of images to one logit per class.

    `name` is that of the architecture. The random number generator of torch is left unchanged.
    """
    images, expected = torch.zeros(2, *spec.in_shape), (2, spec.num_classes)
    model.eval()
    with torch.random.fork_rng(devices=[]):
        try:
            found = tuple(model(images).shape)
        except Exception as error:  # the code is the user's: it can raise any type
            if plugin_files.place(error):
                raise UsageError(plugin_files.one_line(error)) from error
            reason = str(error).partition("\n")[0] or type(error).__name__
            raise UsageError(f"arch {name}: it fails for images of shape {tuple(images.shape)}: {reason}") from error
    model.train()
    if found != expected:
        raise UsageError(f"arch {name}: its output for 2 images has the shape {found}; {expected} expected")
