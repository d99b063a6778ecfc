"""Multi-layer perceptrons: FC (LeNet-300-100), MLP, and CircuitMLP, whose norms follow the activations."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from models.activations import make_activation
from models.registry import ACTIVATIONS, MLP_NORMS
from utils.registry import load_object, lookup


class MLP(nn.Module):
    """Multi-layer perceptron that maps flattened images to logits.

    Images have the shape (B, C, H, W), logits (B, num_classes). A hidden block has a linear layer, a norm, an
    activation, and a dropout if the probability `dropout` is above 0. The output layer is linear alone. With
    `norm_last`, each norm follows its activation, and the output layer has both too (Agrawal & Karlupia, "Learning
    Digital Circuits", arXiv 1909.00052). `hidden` has the widths of the hidden layers, which `width_mult` multiplies.

    Raises ValueError if `norm` or `activation` is unknown.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_shape: tuple[int, int, int],
        bn_type: str,
        width_mult: float,
        hidden: Sequence[int] = (300, 100),
        bias: bool = False,
        activation: str = "relu",
        norm: str = "none",
        dropout: float = 0.0,
        norm_last: bool = False,
    ) -> None:
        super().__init__()
        make_norm = lookup(MLP_NORMS, norm, "norm")
        lookup(ACTIVATIONS, activation, "activation")  # a network without hidden layers would not notice a wrong name
        widths = [prod(in_shape), *(max(1, int(h * width_mult)) for h in hidden), num_classes]
        layers: list[nn.Module] = []
        for i, (width, units) in enumerate(pairwise(widths), 1):
            layers.append(nn.Linear(width, units, bias=bias))
            is_output = i == len(widths) - 1
            if is_output and not norm_last:
                break
            norms = [load_object(make_norm)(bn_type, units)] if make_norm else []
            act = make_activation(activation)
            layers += [act, *norms] if norm_last else [*norms, act]
            if dropout and not is_output:
                layers.append(nn.Dropout(dropout))
        self.linear = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(x.flatten(1))
        return logits
