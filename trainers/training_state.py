"""Progress of a training run, as stored in its checkpoints."""

from dataclasses import asdict, dataclass, field
from typing import Any

from trainers.metrics import Metrics


@dataclass
class TrainingState:
    """Progress of a training run. Field names are keys of the checkpoints' entry `state`."""

    epoch: int = 0  # finished epochs
    step: int = 0  # finished batches of the epoch in progress
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)  # over these batches, as `metrics.add_batch` has them
    train_seconds: float = 0.0  # of training steps alone
    train_images: int = 0
    seconds: float = 0.0  # with evaluation and recording
    last: dict[str, float] = field(default_factory=dict)  # held-out metrics of the last epoch
    best: dict[str, float] = field(default_factory=dict)  # held-out metrics of the best epoch, and its number
    best_train: dict[str, float] = field(default_factory=dict)  # training metrics of the epoch with the best acc@1

    def state_dict(self) -> dict[str, Any]:
        """Return the fields as plain types."""
        return asdict(self)

    def reset_best(self) -> None:
        """Forget the best epoch: the next one becomes the best."""
        self.best, self.best_train = {}, {}

    def finish_epoch(self, train: Metrics, held_out: Metrics) -> bool:
        """Count the epoch in progress as finished. Return whether its held-out top-1 accuracy exceeds the best so far.

        The first of several equal epochs stays the best.
        """
        self.epoch += 1
        self.step, self.sums = 0, [0.0] * 4
        self.last = held_out.as_dict()
        is_best = not self.best or held_out.top1 > self.best["acc@1"]
        if is_best:
            self.best = held_out.as_dict() | {"epoch": self.epoch}
        if not self.best_train or train.top1 > self.best_train["acc@1"]:
            self.best_train = train.as_dict()
        return is_best
