"""Registry of constraints, and the allowed values of their options. Importable without torch.

To add a constraint, add a file with a subclass of models.constraints.base.Constraint, a row in CONV_TYPES and a case in
tests/cases.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from utils.registry import load_object

DENSITY_START = 0.5  # initial density of the density schedules of GlobalSubnetConv and SparseConv
# Defaults of SparseConv with a prune_rate. Without one, it rewires every epoch until the end.
REWIRE_EVERY, REWIRE_UNTIL = 100, 0.75  # steps between rewirings, fraction of training after which they stop
LAYER_DENSITIES = ("uniform", "erdos_renyi_kernel")
DENSITY_SCHEDULES = ("constant", "cubic")
ROUNDINGS = {"deterministic": False, "stochastic": True}  # name -> rounds stochastically in training
SHIFT_UPDATES = {"ste": False, "crude": True}  # name -> overwrites the stored weights with their rounded values
SHIFT_INITS = {"uniform": False, "weights": True}  # name -> starts from the layer's initial weight


@dataclass(frozen=True)
class ConvType:
    """Row of CONV_TYPES, which describes one constraint on the weights of a layer.

    A conv_type is the name of a constraint. Its row states the class, its options and its needs.

    weights: description of the effective weights, for the table in docs/concepts.md.
    constraint: path "package.module:class" of the Constraint, or the class; None for unconstrained layers.
    trainer: training method of networks with this constraint, a key of trainers.registry.TRAINERS.
    density: the option prune_rate is "unused", "optional" (1 by default) or "required".
    density_falls: the density falls from DENSITY_START to prune_rate over the first prune_rate_epoch epochs.
    options: names of the command-line options that the constructor takes.
    scores: the layer has scores, which training methods for scores train.
    draws_weights: the constraint draws the initial weights itself, so that the option init has no effect.
    needs_fp32: the effective weights or inputs have more bits than bfloat16.
    freezable: with the option freeze_weights something is left to train.
    needs_ticket: the mask is that of a trained network, loaded with --pretrained.
    tensors: number of tensors of the weight's size in a layer.
    """

    weights: str
    constraint: str | Callable[..., Any] | None = None
    trainer: str = "default"
    density: str = "unused"
    density_falls: bool = False
    options: tuple[str, ...] = ()
    scores: bool = False
    draws_weights: bool = False
    needs_fp32: bool = False
    needs_ticket: bool = False
    freezable: bool = True
    tensors: int = 1

    def load(self) -> Any:
        """Import and return the constraint's class, or None for unconstrained layers."""
        return None if self.constraint is None else load_object(self.constraint)


SHIFT_OPTIONS = ("weight_bits", "rounding", "activation_bits")
CONV_TYPES: dict[str, ConvType] = {
    "DenseConv": ConvType("free"),
    "SubnetConv": ConvType(
        "±α on the fraction `prune_rate` with the largest \\|score\\| of the layer, else 0; only scores train",
        "models.constraints.subnet:SubnetWeight",
        trainer="prune_score",
        density="required",
        scores=True,
        tensors=2,
    ),
    "GlobalSubnetConv": ConvType(
        "as `SubnetConv`, with the largest \\|score\\| of all such layers together and at least one weight per layer",
        "models.constraints.subnet:GlobalSubnetWeight",
        trainer="prune_score",
        density="required",
        density_falls=True,
        scores=True,
        tensors=2,
    ),
    "SampleSubnetConv": ConvType(
        "W · B, with B drawn with probability sigmoid(score) in every forward pass",
        "models.constraints.sampled_mask:SampleSubnetWeight",
        trainer="prune_score",
        options=("score_init_constant",),
        scores=True,
        tensors=2,
    ),
    "FixedSubnetConv": ConvType(
        "W under the mask of a trained `SubnetConv` ticket (`--pretrained FILE --no-freeze-weights`); W trains",
        "models.constraints.fixed_masks:FixedSubnetWeight",
        density="required",
        needs_ticket=True,
    ),
    "RGConv": ConvType(
        "W under a fixed random mask of density `prune_rate` (default: 1); W trains",
        "models.constraints.fixed_masks:RandomMaskWeight",
        density="optional",
    ),
    "BinaryConv": ConvType(
        "1 where a real weight in [0, 1] is at least ½, else 0; the real weights train",
        "models.constraints.binary:BinaryWeight",
        trainer="binary",
        options=("initial_ones",),
        draws_weights=True,
    ),
    "SparseConv": ConvType(
        "W under a mask that changes during training; W trains",
        "models.constraints.sparse:SparseWeight",
        trainer="sparse",
        density="optional",
        freezable=False,
    ),
    "ShiftQ": ConvType(
        "W rounded to ± a power of two; W trains",
        "models.constraints.shift:ShiftQWeight",
        trainer="shift",
        options=(*SHIFT_OPTIONS, "shift_update"),
        needs_fp32=True,
        freezable=False,
    ),
    "ShiftPS": ConvType(
        "2^P · S, with the power P and the sign S (−1, 0 or 1) rounded; P and S train",
        "models.constraints.shift:ShiftPSWeight",
        trainer="shift",
        options=(*SHIFT_OPTIONS, "shift_init", "freeze_sign"),
        needs_fp32=True,
        freezable=False,
        tensors=2,
    ),
}


@dataclass(frozen=True)
class Criterion:
    """Measure by which trainer `sparse` chooses the connections to drop or to grow.

    Each row of DROP_CRITERIA and GROW_CRITERIA is a Criterion. Connections with the lowest values are dropped,
    connections with the highest values are grown.

    function: name of the function in rewiring_rules.py that returns the measure of every connection.
    strengths: statistic of each connection that training must collect, "coactivation" or "correlation", or "".
    """

    function: str
    strengths: str = ""

    def load(self) -> Any:
        """Import and return the function, which is called with (weight, strengths, gradient)."""
        return load_object(f"models.constraints.rewiring_rules:{self.function}")


HEBBIAN, RANDOM = Criterion("by_strength", "coactivation"), Criterion("by_chance")
DROP_CRITERIA = {
    "hebbian": HEBBIAN,
    "correlation": Criterion("by_strength", "correlation"),
    "magnitude": Criterion("by_magnitude"),
    "magnitude_per_sign": Criterion("by_rank"),
    "random": RANDOM,
}
GROW_CRITERIA = {"hebbian": HEBBIAN, "random": RANDOM, "gradient": Criterion("by_gradient"), "none": Criterion("equal")}


def is_fixed_point(bits: tuple[int, ...]) -> bool:
    """Return True if `bits` are a fixed-point format that float32 can hold.

    `bits` is (integer, fraction), at most 32 in total. The largest number is 2^(integer − 1) − 1. It is 0 for one
    integer bit and no exact float32 beyond 25.
    """
    return len(bits) == 2 and 2 <= bits[0] <= 25 and bits[1] >= 0 and sum(bits) <= 32


FIXED_POINT = (
    "it must be two ints: bits before the binary point, sign included (>= 2 and <= 25), and after it, together <= 32"
)
