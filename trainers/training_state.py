"""Progress of a training run, as stored in its checkpoints."""

from dataclasses import dataclass, field

from trainers.metrics import Metrics


@dataclass
class TrainingState:
    """Progress of a training run.

    Checkpoints store it in the entry `state`, with the field names as keys.
    """

    epoch: int = 0  # finished epochs
    step: int = 0  # finished batches of the epoch in progress
    sums: list[float] = field(default_factory=lambda: [0.0] * 4)  # [loss, hits, …] over these batches, see `add_batch`
    train_seconds: float = 0.0  # without evaluation and recording
    train_images: int = 0
    seconds: float = 0.0  # with evaluation and tables
    last: dict[str, float] = field(default_factory=dict)  # held-out metrics of the last epoch
    best: dict[str, float] = field(default_factory=dict)  # held-out metrics and number of the best epoch
    best_train: dict[str, float] = field(default_factory=dict)  # training metrics of the epoch with the best acc@1

    def reset_best(self) -> None:
        """Forget the best epoch, so that the next finished epoch becomes the best one."""
        self.best, self.best_train = {}, {}

    def finish_epoch(self, train: Metrics, held_out: Metrics) -> bool:
        """Count the current epoch as finished and record its metrics.

        Return True if the epoch is the best so far. The best epoch is the first with the highest held-out top-1
        accuracy.
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
