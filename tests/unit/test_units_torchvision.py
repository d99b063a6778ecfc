"""Pruning of units in torchvision's classifiers: removed with equal logits, or refused for the cause stated here."""

import pytest
import torch
from torch import nn

from models.pruning import channel_cut, channel_groups
from utils.torch_compat import import_torchvision

REMOVABLE = ["alexnet", "densenet121", "efficientnet_b0", "googlenet", "inception_v3", "mnasnet0_5", "mnasnet1_0"]
REMOVABLE += ["mobilenet_v2", "mobilenet_v3_small", "regnet_x_400mf", "regnet_y_400mf", "resnet18", "resnet50"]
REMOVABLE += ["resnext50_32x4d", "squeezenet1_1", "vgg11", "vgg16_bn", "wide_resnet50_2"]
REFUSED = {
    "convnext_tiny": "features.0.1, a LayerNorm2d, has the parameter or buffer bias",
    "maxvit_t": r"blocks\S+, a LayerNorm, has the parameter or buffer bias",
    "shufflenet_v2_x0_5": "units of stage3.0.branch1.2 can be removed only together",
    "shufflenet_v2_x1_0": "units of stage2.0.branch1.2 can be removed only together",
    "swin_t": "features.0.2, a LayerNorm, has the parameter or buffer bias",
    "swin_v2_t": "features.0.2, a LayerNorm, has the parameter or buffer bias",
    "vit_b_32": "the network, a VisionTransformer, has the parameter or buffer class_token",
}
OPTIONS = {"googlenet": {"init_weights": False}, "inception_v3": {"init_weights": False}}
OPTIONS |= {"vit_b_32": {"image_size": 64}, "maxvit_t": {"input_size": (224, 224)}}
SIZES = {"inception_v3": 80}
QUICK = ("mobilenet_v2", "shufflenet_v2_x0_5", "squeezenet1_1")


def built(name):
    """Return a classifier in float64 with random batch norms. The wide layers of VGG and AlexNet are narrow."""
    torch.manual_seed(2)
    model = import_torchvision().models.get_model(name, weights=None, num_classes=7, **OPTIONS.get(name, {}))
    if name.startswith(("vgg", "alexnet")):
        wide = next(layer.in_features for layer in model.classifier if isinstance(layer, nn.Linear))
        model.classifier = nn.Sequential(nn.Linear(wide, 99), nn.ReLU(True), nn.Dropout(), nn.Linear(99, 7))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2)
            nn.init.normal_(layer.weight, 1, 0.3)
            nn.init.normal_(layer.bias)
    return model.double().eval()


def check(name):
    model, size = built(name), SIZES.get(name, 64)
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    if name in REFUSED:
        with pytest.raises(ValueError, match=f"^units cannot be pruned: {REFUSED[name]}") as refused:
            channel_groups.unit_groups(model, images[:2])
        assert "\n" not in str(refused.value)
        return
    groups = channel_groups.unit_groups(model, images[:2])
    kept = [torch.randperm(group.width) < (group.width + 1) // 2 for group in groups]
    smaller = channel_cut.compacted(model, groups, kept)
    before = sum(p.numel() for p in model.parameters())
    assert sum(p.numel() for p in smaller.parameters()) < 0.6 * before
    with torch.no_grad():
        whole = model(images)
        channel_cut.zero_units(model, groups, kept)
        zeros, after = model(images), smaller(images)
    assert (zeros - after).abs().max() < 1e-9 * zeros.abs().max()
    assert (zeros - whole).abs().max() > 1e-3 * whole.abs().max()


@pytest.mark.parametrize("name", QUICK)
def test_removing_or_zeroing_units_gives_equal_logits_or_the_classifier_is_refused(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*REMOVABLE, *REFUSED} - {*QUICK}))
def test_removing_or_zeroing_units_of_every_other_classifier_gives_equal_logits_or_is_refused(name):
    check(name)


def test_every_family_of_torchvision_is_covered():
    models = import_torchvision().models
    families = {models.get_model_builder(name).__module__ for name in models.list_models(module=models)}
    assert {models.get_model_builder(name).__module__ for name in {*REMOVABLE, *REFUSED}} == families
