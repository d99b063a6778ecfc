"""Statistics of a network for trainer `binary`: samples of layer outputs, and a table of the parameters."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from models.activations import make_activation
from models.layers import HardInvert, SoftInvert
from models.registry import ACTIVATIONS
from utils.records.epoch_tables import TableRow
from utils.torch_compat import AnyBatchNorm

SAMPLE_SIZE = 65_536  # largest number of values per output, 256 KiB in float32
SAMPLED_MODULES: tuple[type[nn.Module], ...] = (
    AnyBatchNorm,
    HardInvert,
    SoftInvert,
    *(type(make_activation(name)) for name in ACTIVATIONS),
)


class OutputSampler:
    """Recorder of sample values from the outputs of activation and normalisation layers, for histograms.

    It records all such layers in the forward passes between `attach` and `detach`. `samples` holds (name, values) pairs
    in the order of the forward passes. The `samples` passed to the constructor come first. Of a large output only every
    n-th value is kept.
    """

    def __init__(self, samples: Iterable[tuple[str, Tensor]] = ()) -> None:
        self.samples = [*samples]
        self._hooks: list[RemovableHandle] = []

    def attach(self, model: nn.Module, step: int) -> None:
        """Record sample values of the layers' outputs in every forward pass, until `detach` is called.

        Forward hooks on `model` do so. `step` is the number of the batch within the epoch, and becomes part of the
        samples' names.
        """
        for name, module in model.named_modules():
            if isinstance(module, SAMPLED_MODULES):
                sample = partial(self._sample, f"{name}.output/batch_{step}")
                self._hooks.append(module.register_forward_hook(sample))

    def detach(self) -> None:
        """Remove the forward hooks, so that no more layer outputs are recorded."""
        while self._hooks:
            self._hooks.pop().remove()

    def _sample(self, name: str, _module: nn.Module, _input: object, output: Tensor) -> None:
        values = output.detach().flatten()
        every = -(-len(values) // SAMPLE_SIZE)  # rounded up
        self.samples.append((name, values[::every].clone()))


@torch.no_grad()
def parameter_statistics(model: nn.Module) -> list[TableRow]:
    """Return statistics of the parameters, one table row per parameter tensor.

    A row has size, mean, standard deviation, number and share of values ≥ ½. The column `v` holds the clamped parameter
    of a soft inverter, and is empty for other parameters.
    """
    rows: list[TableRow] = []
    for name, parameter in model.named_parameters():
        values = parameter.double()
        ones = int((values >= 0.5).sum())
        module = model.get_submodule(name.rpartition(".")[0])
        rows.append(
            {
                "tensor": name,
                "units": values.numel(),
                "mean": float(values.mean()),
                "std": float(values.std(unbiased=False)),
                "ones": ones,
                "share_of_ones": ones / values.numel(),
                "v": float(values.clamp(0, 1)) if isinstance(module, SoftInvert) else "",
            }
        )
    return rows
