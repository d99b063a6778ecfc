"""The table of training methods."""

from trainers.methods.base import Method
from trainers.methods.binary import Binary
from trainers.methods.default import Default
from trainers.methods.prune_score import Lottery, PruneScore, SparseScores
from trainers.methods.shift import Shift
from trainers.methods.sparse import Sparse

METHODS: dict[str, type[Method]] = {
    "default": Default,
    "binary": Binary,
    "prune_score": PruneScore,
    "lottery": Lottery,
    "ss": SparseScores,
    "shift": Shift,
    "sparse": Sparse,
}
