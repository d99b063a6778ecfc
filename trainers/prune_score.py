"""Trainer `prune_score`: BIPROP. Weights stay as drawn; gradient descent on scores chooses which are kept."""

from torch import nn

from models.constraints import constrained_layers
from trainers.method import Method


class PruneScore(Method):
    """Multi-prize tickets (Diffenderfer & Kailkhura, ICLR 2021): the constraint does the work, the loop is as ever."""

    def prepare(self, model: nn.Module) -> None:
        if not any(hasattr(layer.constraint, "scores") for layer in constrained_layers(model).values()):
            raise ValueError(
                "trainer: prune_score trains scores, and no layer has any; conv_type SubnetConv gives them"
            )

    def measures(self, model: nn.Module) -> dict[str, dict[str, float]]:
        """The density of every scored layer."""
        layers = constrained_layers(model)
        return {
            "weights": {
                f"density_{name}": layer.constraint.kept / layer.weight.numel() for name, layer in layers.items()
            }
        }
