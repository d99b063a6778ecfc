"""Parts that several families share: normalisation by name and by rank."""

from torch import nn

from utils.choose import pick

# AffineBatchNorm and LearnedBatchNorm are one layer: BIPROP told them apart by class only.
BN_TYPES = {"LearnedBatchNorm": True, "AffineBatchNorm": True, "NonAffineBatchNorm": False}
BatchNorm = (nn.BatchNorm1d, nn.BatchNorm2d)


def batch_norm(kind: str, channels: int, *, spatial: bool) -> nn.Module:
    """BatchNorm over (B, channels, H, W) when spatial, else (B, channels); `kind` says whether it has weight and bias.

    Raises ValueError for an unknown kind.
    """
    layer = nn.BatchNorm2d if spatial else nn.BatchNorm1d
    return layer(channels, affine=pick(BN_TYPES, kind, "bn_type"))
