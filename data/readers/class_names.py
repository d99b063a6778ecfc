"""Names of the classes of each data set, in the order of their labels."""

from pathlib import Path

from data.readers import folders

DIGITS = tuple("0123456789")
# CIFAR-10: batches.meta.txt of the official archive
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# CIFAR-100: `fine_label_names` of the official archive's `meta`
CIFAR100 = tuple(  # as text: a literal tuple is formatted to 100 lines
    """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
    caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant
    flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
    motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate
    poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
    """.split()  # noqa: SIM905
)
# Fashion-MNIST: arXiv:1708.07747, table 2, spelled as in its repository
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
CLASS_NAMES = {
    "digits": DIGITS,
    "MNIST": DIGITS,
    "SVHN": DIGITS,
    "FashionMNIST": FASHION,
    "CIFAR10": CIFAR10,
    "BigCIFAR10": CIFAR10,
    "CIFAR100": CIFAR100,
}


def class_names(name: str, root: Path) -> tuple[str, ...] | None:
    """Return the class names of a data set in label order, or None if they are unknown.

    The classes of ImageNet, TinyImageNet and ImageFolder are named by the class folders under `root`. The folder names
    of ImageNet and TinyImageNet are WordNet IDs. Raises UsageError if the folders are missing.
    """
    if name in folders.FOLDERS:
        return tuple(folders.class_folders(folders.find_parts(name, root)[0]))
    return CLASS_NAMES.get(name)
