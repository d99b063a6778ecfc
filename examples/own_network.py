"""A network of one's own, whose keyword arguments become options.

python main.py --config configs/quickstart.yml --plugin examples/own_network.py --arch MyNet --width 32
"""

from torch import nn

import featherweight as fw


@fw.register_arch("MyNet")
def my_net(
    *, num_classes: int, in_shape: tuple[int, int, int], bn_type: str = "LearnedBatchNorm", width: int = 64
) -> nn.Module:
    """Return a network of two convolutions with batch norm, and one linear layer.

    width: channels of the convolutions
    """

    def block(channels: int) -> list[nn.Module]:
        norm = nn.BatchNorm2d(width, affine=bn_type != "NonAffineBatchNorm")
        return [nn.Conv2d(channels, width, 3, padding=1, bias=False), norm, nn.ReLU()]

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes)]
    return nn.Sequential(*block(in_shape[0]), nn.MaxPool2d(2), *block(width), *head)
