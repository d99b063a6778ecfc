"""Registry of training methods and optimizers, and the allowed values of their options. Importable without torch.

To add a training method, add a file with a subclass of trainers.methods.base.Method, a row in TRAINERS and a case in
tests/cases.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from utils.registry import load_object

GRAD_COMPRESSIONS = {"none": None, "bf16": "trainers.ddp:bf16"}  # name -> communication hook of DistributedDataParallel


@dataclass(frozen=True)
class Trainer:
    """Registry entry that describes a training method without importing it.

    method: path "package.module:class" of the Method, or the class.
    options: names of the command-line options that the constructor takes.
    variant_of: for a method that no conv_type selects by default: the method whose conv_types it can train.
    tables: names of the tables that its hook `tables` returns.
    """

    method: str | Callable[..., Any]
    options: tuple[str, ...] = ()
    variant_of: str = ""
    tables: tuple[str, ...] = ()

    def load(self) -> Any:
        """Import and return the class of the training method."""
        return load_object(self.method)


SPARSE_OPTIONS = (
    *("drop", "grow", "update_interval", "progress_interval", "progress_until", "drop_fraction"),
    *("keep_share", "live_share", "layer_density", "density_schedule", "sparse_hold"),
)
TRAINERS = {
    "default": Trainer("trainers.methods.default:Default"),
    "prune_score": Trainer("trainers.methods.prune_score:PruneScore", ("prune_rate_epoch",)),
    "lottery": Trainer("trainers.methods.prune_score:Lottery", ("prune_rate_epoch", "dense_epochs"), "prune_score"),
    "ss": Trainer("trainers.methods.prune_score:SparseScores", ("prune_rate_epoch", "score_l1"), "prune_score"),
    "binary": Trainer(
        "trainers.methods.binary:Binary",
        ("epsilon", "random_mag", "sweep_on", "sweep_every"),
        tables=("weight_sweep", "statistics"),
    ),
    "sparse": Trainer("trainers.methods.sparse:Sparse", ("prune_rate", *SPARSE_OPTIONS)),
    "shift": Trainer("trainers.methods.shift:Shift", tables=("shifts",)),
}


@dataclass(frozen=True)
class Optimizer:
    """Registry entry that describes an optimizer of torch without importing it.

    optimizer: path "package.module:class".
    options: names of the command-line options that have an effect, besides lr.
    tensors: number of state tensors per parameter.
    fused: torch has a fused implementation, which makes one pass over the parameters.

    Weight decay acts on scores under SGD and not under Adam, as in BIPROP: its published numbers depend on it.
    """

    optimizer: str
    options: tuple[str, ...]
    tensors: int
    fused: bool = False

    def load(self) -> Any:
        """Import and return the optimizer's class."""
        return load_object(self.optimizer)


DECAY = ("weight_decay", "no_bn_decay")
OPTIMIZERS = {
    "sgd": Optimizer("torch.optim:SGD", ("momentum", "nesterov", *DECAY), 1, fused=True),
    "adam": Optimizer("torch.optim:Adam", ("optimizer_eps",), 2, fused=True),
    "adamw": Optimizer("torch.optim:AdamW", ("optimizer_eps", *DECAY), 2, fused=True),
    "radam": Optimizer("torch.optim:RAdam", ("optimizer_eps",), 2),
    "adadelta": Optimizer("torch.optim:Adadelta", ("optimizer_eps",), 2),
}
