"""Residual networks: CIFAR and ImageNet stems, basic and bottleneck blocks, wide, v2 and binary-activation relatives.

Sources: He et al., CVPR 2016 (blocks, depths, CIFAR networks of 20 to 110 layers); Zagoruyko & Komodakis, BMVC 2016
(wide). Parameters have the names of BIPROP's checkpoints. Below, `act` is the activation and `sc` the shortcut: the
identity, or a 1×1 convolution and a norm if the stride or the width changes. By the `norm` of its plan, a block is

    basic       v1        act(bn2(conv2(act(bn1(conv1 x)))) + sc x)
                v2        act(bn2(conv2(act(bn1(conv1 x))) + sc x))
                v2_twice  act(bn2(bn2(conv2(act(bn1(conv1 x)))) + sc x))
    bottleneck  v1        act(bn3(conv3(act(bn2(conv2(act(bn1(conv1 x))))))) + sc x)
                v2        act(bn4(bn3(conv3(act(bn2(conv2(act(bn1(conv1 x))))))) + sc x))

v2_twice is BIPROP's ImageNet v2 with ReLU: the same bn2 acts before and after the addition, and updates its running
statistics twice per step. BIPROP's checkpoints were trained with it, so it stays. In BIPROP, v2 bottlenecks fail,
because their norm is narrower than the sum. Only the binary one of base_width 128 has a bn4 of the right width. Here
all v2 bottlenecks have it.
"""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from models.activations import make_activation
from models.layers import batch_norm, require_size, scaled
from models.registry import READOUTS, ResNetPlan
from utils.registry import lookup

Norm = Callable[[int], nn.Module]  # channels -> layer


def _conv(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, width, kernel, stride=stride, padding=kernel // 2, bias=False)


class _Block(nn.Module):
    """Base class of the residual blocks, with their activation and their shortcut connection.

    The names of the modules are those of BIPROP's checkpoints.
    """

    def __init__(self, plan: ResNetPlan) -> None:
        super().__init__()
        self.act = make_activation(plan.act)
        self.shortcut_name = "shortcut" if plan.stem == "cifar" else "downsample"

    def _add_shortcut(self, channels: int, out: int, stride: int, norm: Norm) -> None:
        layers = () if (stride, channels) == (1, out) else (_conv(channels, out, 1, stride), norm(out))
        self.add_module(self.shortcut_name, nn.Sequential(*layers))

    def _shortcut(self, x: Tensor) -> Tensor:
        shortcut: Tensor = getattr(self, self.shortcut_name)(x)
        return shortcut


class BasicBlock(_Block):
    """Residual block of two 3×3 convolutions.

    Maps (B, channels, H, W) to (B, width, H / stride, W / stride).
    """

    expansion = 1

    def __init__(self, plan: ResNetPlan, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__(plan)
        self.conv1 = _conv(channels, width, 3, stride)
        self.bn1 = norm(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = norm(width)
        self._add_shortcut(channels, width, stride, norm)
        self.norm = plan.norm

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.act(self.bn1(self.conv1(x))))
        if self.norm != "v2":
            y = self.bn2(y)
        y += self._shortcut(x)
        if self.norm != "v1":
            y = self.bn2(y)
        out: Tensor = self.act(y)
        return out


class Bottleneck(_Block):
    """Residual block of a 1×1, a 3×3 and a 1×1 convolution.

    Maps (B, channels, H, W) to (B, 4 · width, H / stride, W / stride).
    """

    expansion = 4

    def __init__(self, plan: ResNetPlan, channels: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__(plan)
        out, middle = self.expansion * width, scaled(width, plan.base_width / 64)
        self.conv1 = _conv(channels, middle, 1)
        self.bn1 = norm(middle)
        self.conv2 = _conv(middle, middle, 3, stride)
        self.bn2 = norm(middle)
        self.conv3 = _conv(middle, out, 1)
        self.bn3 = norm(out)
        self._add_shortcut(channels, out, stride, norm)
        self.bn4 = nn.Identity() if plan.norm == "v1" else norm(out)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.bn1(self.conv1(x)))
        y = self.act(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self._shortcut(x)
        out: Tensor = self.act(self.bn4(y))
        return out


class ResNet(nn.Module):
    """Residual network with the stem, blocks and widths of a plan.

    Maps (B, C, H, W) images to (B, num_classes) logits.

    `readout="pooled"` averages each channel over the image before the last layer. `readout="original40"` is the
    read-out of BIPROP's cResNet20 to cResNet110, without which BIPROP's checkpoints lose accuracy. A pool of 4 leaves
    2×2 positions of a 32×32 image, and the network returns (B, 4 · num_classes) logits, with index
    4 · class + position.

    `head_bias` gives the last layer a bias, as in BIPROP with a dense last layer (`--last-layer-dense`). No other layer
    has a bias. `width_mult` multiplies the width of every stage.

    Raises ValueError if the image is too small for the strides and pools, if `width_mult` leaves a layer without
    channels, or if the read-out does not fit the plan or the image.
    """

    def __init__(
        self,
        *,
        plan: ResNetPlan,
        num_classes: int,
        in_shape: tuple[int, int, int],
        bn_type: str,
        width_mult: float,
        readout: str = "pooled",
        head_bias: bool = False,
    ) -> None:
        super().__init__()
        require_size(in_shape, plan.halvings, "halvings")
        _check_readout(readout, plan, in_shape)
        widths = [scaled(width, width_mult) for width in plan.widths]
        norm = partial(batch_norm, bn_type, spatial=True)
        imagenet = plan.stem == "imagenet"
        self.conv1 = _conv(in_shape[0], widths[0], 7, 2) if imagenet else _conv(in_shape[0], widths[0], 3)
        self.bn1 = norm(widths[0])
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if imagenet else nn.Identity()
        self.act = make_activation(plan.act)
        self.stages = [f"layer{i}" for i in range(1, len(widths) + 1)]
        channels = widths[0]
        for name, depth, width in zip(self.stages, plan.depths, widths, strict=True):
            stage, channels = _stage(plan, channels, width, depth, 1 if name == "layer1" else 2, norm)
            self.add_module(name, stage)
        self.fc = nn.Linear(channels, num_classes, bias=head_bias)
        self.pool_before_norm = plan.norm != "v1"
        self.pooled = readout == "pooled"

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.bn1(self.pool(x)) if self.pool_before_norm else self.pool(self.bn1(x))
        # BIPROP's ResNet18 pools after its ReLU. ReLU is monotone, so the order gives equal values for 1/4 of the work.
        x = self.act(x)
        for stage in self.stages:
            x = getattr(self, stage)(x)
        logits: Tensor = (
            self.fc(x.mean((2, 3))) if self.pooled else self.fc(F.avg_pool2d(x, 4).flatten(2).mT).mT.flatten(1)
        )
        return logits


def _stage(
    plan: ResNetPlan, channels: int, width: int, depth: int, stride: int, norm: Norm
) -> tuple[nn.Sequential, int]:
    """Build a stage of residual blocks, and return the stage with its number of output channels.

    The stage has `depth` blocks, of which only the first has `stride`.
    """
    block = Bottleneck if plan.bottleneck else BasicBlock
    out = width * block.expansion
    first = block(plan, channels, width, stride, norm)
    return nn.Sequential(first, *(block(plan, out, width, 1, norm) for _ in range(depth - 1))), out


def _check_readout(readout: str, plan: ResNetPlan, in_shape: tuple[int, int, int]) -> None:
    lookup(dict.fromkeys(READOUTS), readout, "readout")
    if readout == "original40" and len(plan.widths) != 3:
        raise ValueError("readout: original40 is only for cResNet20, 32, 44, 56 and 110 and their _BinAct")
    if readout == "original40" and tuple(in_shape[1:]) != (32, 32):
        raise ValueError(f"readout: original40 needs 32x32 images, not {in_shape[1]}x{in_shape[2]}")
