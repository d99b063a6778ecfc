"""What options can be: the names in other modules' tables, which `--help` lists without loading them."""

SETS = ["digits", "MNIST", "FashionMNIST", "CIFAR10", "CIFAR100", "SVHN", "BigCIFAR10", "TinyImageNet", "ImageNet"]
SETS += ["ImageFolder"]
CONVNETS = [f"Conv{size}{tail}" for size in ("2", "4", "6", "8", "4Wide", "6Wide", "8Wide") for tail in ("", "_BinAct")]
ARCHS = ["FC", "MLP", "CircuitMLP", *CONVNETS, "Conv8Wide_BinAct_ReLU", "Conv8Wide_BinAct_ReLU_Final_Act"]
ARCHS += [f"VGG_Small{tail}" for tail in ("", "_BinAct", "_noReLU_BinAct", "_bn_BinAct")]
ARCHS += ["Wide_VGG_Small", "Wide_VGG_Small_132", "LeNet5", "LeNet5_Caffe", "MNISTNet"]
EITHER = """cResNet18 cResNet20 cResNet32 cResNet44 cResNet56 cResNet110 cWideResNet18_2 ResNet18 ResNet34 ResNet50
    ResNet101"""
RESNETS = {
    "": f"{EITHER} cResNet50 cResNet101 WideResNet34_2 WideResNet50_2 WideResNet101_2",
    "_BinAct": f"""{EITHER} cResNet34 cWideResNet18_3 cifarResNet18 cifarWideResNet18_2 cifarWideResNet18_3
        WideResNet18_2 WideResNet18_3 WideResNet34_2 WideResNet34_3 WideResNet50_2""",
    "_v2": "cResNet18 ResNet18 ResNet34 ResNet50 WideResNet18 WideResNet34_2 WideResNet50_2",
    "_BinAct_v2": "cResNet18 ResNet34 ResNet50 WideResNet18_2 WideResNet34_2 WideResNet34_3 WideResNet50_2",
}
ARCHS += [f"{net}{tail}" for tail, nets in RESNETS.items() for net in nets.split()]
CONV_TYPES = ["DenseConv", "SubnetConv", "GlobalSubnetConv", "SampleSubnetConv", "FixedSubnetConv", "RGConv"]
CONV_TYPES += ["BinaryConv", "SparseConv", "ShiftQ", "ShiftPS"]
TRAINERS = ["default", "prune_score", "lottery", "ss", "binary", "sparse", "shift"]
DROPS = ["hebbian", "correlation", "magnitude", "magnitude_per_sign", "random"]
GROWS = ["hebbian", "random", "gradient", "none"]
SPREADS = ["uniform", "erdos_renyi_kernel"]
SCHEDULES = ["constant", "cubic"]
BN_TYPES = ["LearnedBatchNorm", "AffineBatchNorm", "NonAffineBatchNorm"]
INITS = ["kaiming_normal", "kaiming_uniform", "signed_constant", "unsigned_constant", "usc_bernoulli", "bernoulli"]
INITS += ["ones", "xavier_normal", "xavier_uniform", "xavier_constant", "standard", "binary"]
PIXELS = ["standard", "unit", "signed", "binary"]
NORMS = ["none", "batch_norm", "hard_invert", "soft_invert"]
READOUTS = ["pooled", "original40"]
GAINS = ["relu", "leaky_relu", "tanh", "sigmoid", "selu", "linear"]
POLICIES = ["constant_lr", "cosine_lr", "multistep_lr", "xnor_lr", "mpt132_w34_2_lr", "mpt11_w34_2_v2_lr"]
POLICIES += ["mpt11_w18_2_lr", "mpt11_w18_2_v2_lr", "cos_multi_lr", "deepshift_lr"]
COMPRESSIONS = ["none", "bf16"]
