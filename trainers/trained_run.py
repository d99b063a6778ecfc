"""A trained network as users of the Python API see it: its predictions, test accuracy, options and metrics."""

from collections.abc import Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import data
from args import FIELDS
from data.device_batches import DeviceBatches
from data.readers.class_names import CLASS_NAMES
from data.registry import IN_MEMORY
from data.user_images import Pixels, prepare, single_images, to_pixels
from data.user_items import Source
from models.constraints.attachment import bake
from trainers import summary
from trainers.build import batches, load_set, set_spec
from trainers.checkpoint_entries import described_spec
from trainers.load_trained import TrainedNetwork, check_classes, load_trained
from trainers.loop import evaluate, forward
from trainers.metrics import add_batch, metrics_of
from utils.config.reader import IN_CALL, Reader
from utils.distributed.runtime import Runtime, has_bf16
from utils.errors import UsageError
from utils.paths import expanded
from utils.random_state import preserved_generators
from utils.records.overview import metric_rows
from utils.records.run import Run
from utils.run_paths import locate
from utils.tables import Rows
from utils.text import combined_error


class Prediction(NamedTuple):
    """Predictions of a network for N images.

    labels: N class names, or N ints if the names are unknown.
    probabilities: float32 (N, classes) on the CPU.
    """

    labels: list[Any]
    probabilities: Tensor


class TrainedRun:
    """Trained network of a run, a checkpoint or a file of BIPROP, opened by `featherweight.load`.

    model: the network, an nn.Module in evaluation mode on the device. It maps normalised images, float32 (N, channels,
        height, width), to logits (N, classes).
    path: the run directory, or the file outside a run directory.
    epoch: the number of epochs trained, None if the file does not say.
    options: the options of the run by name, as plain values.
    classes: the class names by label, None if unknown.
    """

    model: nn.Module
    path: Path
    epoch: int | None
    options: dict[str, object]
    classes: list[str] | None

    def __init__(self, trained: TrainedNetwork, spec: data.SetSpec, device: torch.device) -> None:
        """Move a loaded network to `device`. `spec` describes its data set."""
        options = trained.options
        if options.run.precision == "auto":
            options = options.replace(precision="bf16" if has_bf16(device) and not options.needs_fp32 else "fp32")
        paths, _ = locate(trained.path)
        self._trained, self._spec, self._options = trained, spec, options
        self._runtime = Runtime(device, torch.float32).at(options.run.precision)
        self._runtime.put(trained.model)
        trained.method.before_evaluation(trained.model)
        self.model = trained.model
        self.path = trained.path if paths is None else paths.path
        self.epoch = trained.epoch
        self.options = options.flat() | {"resume": None, "evaluate": False}
        self.classes = _class_names(trained, spec)

    def plain(self) -> nn.Module:
        """Return a copy of the network in which ordinary layers have the effective weights.

        It shares no tensor with `model`. See `models.constraints.bake`.
        """
        return bake(self.model)

    @torch.no_grad()
    def predict(self, x: Any, batch_size: int | None = None) -> Prediction:
        """Return the predicted classes and their probabilities for images.

        x: the path of an image file, a PIL image, a uint8 array or tensor (H, W), (H, W, C) or (N, H, W, C), a float
            tensor (C, H, W) or (N, C, H, W) with values in [0, 1], or a list of these.
        batch_size: images per forward pass, by default that of the run's evaluation.

        The images are prepared as in evaluation: converted to grey or RGB, resized to the size of the data set, or
        resized and cropped to the centre if the images of the data set have any size, and normalised. Float images are
        rounded to 8 bits. Raises UsageError for anything else.
        """
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise UsageError(f"batch_size: {batch_size!r} given, an int >= 1 expected")
        prepared = (self._prepared(image, number) for number, image in enumerate(single_images(x)))
        logits = []
        while batch := list(islice(prepared, batch_size or self._batch_size)):
            logits.append(self._logits(batch).cpu())
        if not logits:
            raise UsageError("no images given")
        found = torch.cat(logits)
        labels = found.argmax(1).tolist()
        names = self.classes
        return Prediction(labels if names is None else [names[label] for label in labels], found.softmax(1))

    @torch.no_grad()
    def test(self, data: Any = None) -> float:
        """Return the top-1 accuracy (%) on the test set.

        data: a map-style Dataset of items (image, label) to test on instead, or the pair (train, test) that was passed
            to `featherweight.train`. Images are prepared as in `predict`.

        Raises UsageError if the test set is missing, or was passed in Python and is not passed here.
        """
        if data is not None:
            return self._test_on(data[1] if isinstance(data, tuple) else data)
        if self._options.data.set == IN_MEMORY:
            raise UsageError("data: the images of the run were passed in Python; pass the test Dataset: test(data)")
        options = self._options.replace(dry_run=None, val_split=0.0, low_data=1.0, seed=0)
        image_set = load_set(options)
        check_classes(self._trained, image_set.spec)
        test = batches(options, self._runtime, image_set, image_set.test)
        return evaluate(self.model, test, self._trained.method, self._runtime).top1

    @cached_property
    def metrics(self) -> Rows:
        """Rows of the run's metrics.csv, one per epoch, with numbers as values. Outside a run directory it is empty."""
        return metric_rows(Run(self.path)) if self.path.is_dir() else Rows()

    def __repr__(self) -> str:
        options, model = self._options, summary.kept_in_words(self.model)
        accuracy = next((row.get("test/acc@1") for row in self.metrics if row["epoch"] == self.epoch), None)
        parts = [f"{options.model.arch} on {options.data.set}", options.constraint.conv_type, model]
        parts += [f"epoch {self.epoch}"] if self.epoch is not None else []
        parts += [f"test accuracy {accuracy:.2f} %"] if accuracy is not None else []
        return f"<TrainedRun {self.path}: {', '.join(parts)}>"

    @property
    def _batch_size(self) -> int:
        """Number of images per forward pass in the run's evaluation."""
        return self._options.data.test_batch_size or self._options.data.batch_size

    def _prepared(self, image: Any, number: int) -> Pixels:
        """Return an image in the size of the data set, uint8 (height, width, channels). Errors name its `number`."""
        try:
            pixels: Pixels = prepare(to_pixels(image), self._spec).numpy()
        except UsageError as error:
            raise UsageError(f"image {number}: {error}") from error
        return pixels

    def _logits(self, images: list[Pixels]) -> Tensor:
        """Return the logits (N, classes) of a batch of prepared images, normalised as in evaluation."""
        split = data.Split(np.stack(images), np.zeros(len(images), np.int64))
        batch = DeviceBatches(
            split, self._spec, device=self._runtime.device, batch_size=len(images), seed=None, train=False
        )
        ((normalised, _),) = batch.epoch(0)
        return forward(self.model.eval(), normalised, self._runtime)

    def _test_on(self, dataset: Any) -> float:
        """Return the top-1 accuracy (%) on the items of a Dataset."""
        sums = torch.zeros(4, dtype=torch.float64, device=self._runtime.device)
        items = self._test_items(Source("test", dataset))
        while batch := list(islice(items, self._batch_size)):
            logits = self._logits([image for image, _ in batch])
            labels = torch.tensor([label for _, label in batch], device=logits.device)
            add_batch(sums, self._trained.method.loss(logits, labels), logits, labels)
        return metrics_of(sums.tolist()).top1

    def _test_items(self, source: Source) -> Iterator[tuple[Pixels, int]]:
        """Yield the prepared images and the labels of a Dataset. Raises UsageError for a label without a class."""
        for row in range(len(source)):
            pixels, label = source.item(row)
            if label >= self._spec.num_classes:
                classes = f"the network has {self._spec.num_classes} classes"
                raise UsageError(f"data: item {row} of the test Dataset has the label {label}; {classes}")
            yield self._prepared(pixels, row), label


def open_run(path: str | Path, *, best: bool, device: str | torch.device, changes: dict[str, Any]) -> TrainedRun:
    """Load a trained network onto a device. The arguments are those of `featherweight.load`.

    The states of the random number generators are restored.
    """
    changes, chosen = checked_changes(changes), chosen_device(device)
    with preserved_generators():
        trained = load_trained(expanded(str(path), existing=True), best=best, **changes)
        described = None if "set" in changes else described_spec(trained.content, str(trained.path))
        return TrainedRun(trained, described or set_spec(trained.options), chosen)


def chosen_device(device: str | torch.device) -> torch.device:
    """Return a device of torch, given its name. "auto" is a GPU if there is one.

    Raises UsageError if the device does not exist.
    """
    try:
        chosen = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    except RuntimeError:
        raise UsageError(f"device: {device!r} given; cpu, cuda, cuda:0 or auto expected") from None
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if chosen.type not in ("cpu", "cuda") or (chosen.type == "cuda" and (chosen.index or 0) >= count):
        raise UsageError(f"device: {device} is not available here; it has {count} GPUs; device='cpu' needs none")
    return chosen


def checked_changes(changes: dict[str, Any]) -> dict[str, Any]:
    """Return options by name, cast to their types. Raises UsageError with one line per problem."""
    reader = Reader(FIELDS, (), {})
    for name, value in changes.items():
        reader.take(name, str(value) if isinstance(value, Path) else value, IN_CALL)
    if reader.problems:
        raise combined_error(reader.problems)
    return {name: getattr(reader.values, name) for name in changes}


def _class_names(trained: TrainedNetwork, spec: data.SetSpec) -> list[str] | None:
    """Return the class names that a checkpoint stores, or those of its registered data set, or None."""
    entry = trained.content.get("data")
    stored = entry.get("classes") if isinstance(entry, dict) else CLASS_NAMES.get(trained.options.data.set)
    names = [str(name) for name in stored] if isinstance(stored, list | tuple) else []
    return names if len(names) == spec.num_classes else None
