"""Multi-layer perceptron: FC (LeNet-300-100) and MLP with its widths, bias, activation and norm as arguments."""

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from models.activations import ACTIVATIONS
from models.blocks import batch_norm
from utils.choose import pick


class MLP(nn.Module):
    """(B, C, H, W) images, flattened, through hidden layers to (B, num_classes) logits."""

    def __init__(
        self,
        *,
        num_classes: int,
        in_shape: tuple[int, int, int],
        bn_type: str = "LearnedBatchNorm",
        width_mult: float = 1.0,
        hidden: Sequence[int] = (300, 100),
        bias: bool = False,
        activation: str = "relu",
        norm: str = "none",
    ) -> None:
        super().__init__()
        if norm not in ("none", "batch_norm"):
            raise ValueError(f"norm: {norm!r} is unknown; one of none, batch_norm")
        make_activation = pick(ACTIVATIONS, activation, "activation")
        layers: list[nn.Module] = []
        width = prod(in_shape)
        for units in (max(1, int(h * width_mult)) for h in hidden):
            layers.append(nn.Linear(width, units, bias=bias))
            if norm == "batch_norm":
                layers.append(batch_norm(bn_type, units, spatial=False))
            layers.append(make_activation())
            width = units
        layers.append(nn.Linear(width, num_classes, bias=bias))
        self.linear = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1))
