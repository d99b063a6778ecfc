"""The table of training methods."""

from trainers.binary import Binary
from trainers.default import Default
from trainers.method import Method
from trainers.prune_score import Lottery, PruneScore, SparseScores
from trainers.shift import Shift
from trainers.sparse import Sparse

METHODS: dict[str, type[Method]] = {
    "default": Default,
    "binary": Binary,
    "prune_score": PruneScore,
    "lottery": Lottery,
    "ss": SparseScores,
    "shift": Shift,
    "sparse": Sparse,
}
