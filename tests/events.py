"""The event files of a run, read as TensorBoard reads them."""

from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing import event_accumulator

KINDS = {
    "scalars": "value",
    "histograms": "histogram_value",
    "images": "encoded_image_string",
    "tensors": "tensor_proto",
}
EVERYTHING = dict.fromkeys([*event_accumulator.DEFAULT_SIZE_GUIDANCE], 0)  # 0: no limit
CLOCKS = ("train/images_per_second", "train/elapsed_seconds")


def shown(logs: Path) -> dict[str, list[Any]]:
    """Return {tag: [(step, value), ...]} in the order of steps, without the tags that hold times.

    A point that is written twice occurs twice. The tags of plugins such as hparams have their content as value.
    """
    board = event_accumulator.EventAccumulator(str(logs), size_guidance=EVERYTHING).Reload()
    found: dict[str, list[Any]] = {}
    for kind, value in KINDS.items():
        read = getattr(board, kind.capitalize())
        for tag in board.Tags()[kind]:
            points = [(event.step, str(getattr(event, value))) for event in read(tag)]
            found[f"{kind}: {tag}"] = sorted(points, key=lambda point: point[0])
    for tag, metadata in board.summary_metadata.items():
        found[f"{metadata.plugin_data.plugin_name}: {tag}"] = [metadata.plugin_data.content]
    return {tag: points for tag, points in found.items() if not tag.endswith(CLOCKS)}


def hparams_sessions(logs: Path) -> int:
    """Return how many times the end of the run was written."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    events = (event for path in logs.iterdir() for event in EventFileLoader(str(path)).Load())
    return sum(value.tag == "_hparams_/session_end_info" for event in events for value in event.summary.value)
