"""Checkpoint entries that describe the network and the data set. With them a checkpoint can be used without options.

Checkpoints of earlier versions lack these entries. A resumed run does not read the entries, because its options decide.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import data
from args import Options
from data.readers.class_names import class_names
from trainers.build import network_options
from utils.errors import UsageError
from utils.text import shown


def description(options: Options, spec: data.SetSpec) -> dict[str, dict[str, Any]]:
    """Return the checkpoint entries that describe the network and the data set.

    The entries are `network` and `data`, in plain types.

    network: the keyword arguments of `models.build`, with num_classes and in_shape (channels, height, width).
    data:
        set: the name of the data set.
        classes: the class names by label, None if unknown.
        mean, std: per channel, of pixels in [0, 1].
        binary: True if pixels are rounded to 0 or 1 before mean and std are applied.
        image_size: (height, width).
        margin: evaluation resizes the shorter side to margin * image_size and crops the centre. None if all images have
            the same size.
    """
    classes = spec.classes or class_names(options.data.set, Path(options.data.data))
    return {
        "network": network_options(options, spec),
        "data": {
            "set": options.data.set,
            "classes": None if classes is None else list(classes),
            "mean": list(spec.mean),
            "std": list(spec.std),
            "binary": spec.binary,
            "image_size": list(spec.in_shape[1:]),
            "margin": spec.margin,
        },
    }


def described_spec(checkpoint: Mapping[str, Any], path: str) -> data.SetSpec | None:
    """Return the data-set description that a checkpoint stores, or None if it stores none.

    The description has image shape, classes and normalisation. Checkpoints of earlier versions of this program have
    none. `path` is for error messages. No file of the data set is read. Raises UsageError if the description is
    damaged.
    """
    if "network" not in checkpoint and "data" not in checkpoint:
        return None
    try:
        network, entry = checkpoint["network"], checkpoint["data"]
        return replace(
            data.SETS[entry["set"]],
            in_shape=tuple(network["in_shape"]),
            num_classes=network["num_classes"],
            mean=tuple(entry["mean"]),
            std=tuple(entry["std"]),
            binary=entry["binary"],
            margin=entry["margin"],
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged: its entries network and data do not describe a network") from error


def check_same_data(checkpoint: Mapping[str, Any], path: Path, spec: data.SetSpec) -> None:
    """Raise UsageError if a run is resumed with images of another description.

    `spec` describes the images passed to featherweight.train. `checkpoint`, read from `path`, describes those of the
    run.
    """
    described = described_spec(checkpoint, str(path))
    for name in ("in_shape", "num_classes", "mean", "std", "margin"):
        if described is not None and getattr(described, name) != getattr(spec, name):
            change = f"{name}: {shown(getattr(described, name))} in the run, {shown(getattr(spec, name))} now"
            raise UsageError(f"data: the images differ from those of the run: {change}; pass the same data and set")
