"""The table of training methods."""

from trainers.default import Default
from trainers.method import Method
from trainers.prune_score import Lottery, PruneScore, SparseScores
from trainers.sparse import Sparse

METHODS: dict[str, type[Method]] = {
    "default": Default,
    "prune_score": PruneScore,
    "lottery": Lottery,
    "ss": SparseScores,
    "sparse": Sparse,
}
