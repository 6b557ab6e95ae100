"""Names of the classes of known data sets, in the order of their numbers.

CIFAR-100 and its superclasses: Krizhevsky (2009). Fashion-MNIST: Xiao, Rasul & Vollgraf, arXiv 1708.07747. Omniglot:
Lake, Salakhutdinov & Tenenbaum, Science 350 (2015).
"""

_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
CIFAR100_COARSE_NAMES = tuple(_SUPERCLASSES)
CIFAR100_FINE_NAMES = tuple(sorted(" ".join(_SUPERCLASSES.values()).split()))
"""CIFAR-100 numbers its fine classes in alphabetical order, and its superclasses too."""
_COARSE_OF = {fine: t for t, members in enumerate(_SUPERCLASSES.values()) for fine in members.split()}
CIFAR100_FINE_TO_COARSE = tuple(_COARSE_OF[fine] for fine in CIFAR100_FINE_NAMES)

FASHION_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

OMNIGLOT_ALPHABETS = (
    "Gujarati",
    "Sylheti",
    "Arcadian",
    "Tibetan",
    "Old_Church_Slavonic_(Cyrillic)",
    "Angelic",
    "Malay_(Jawi_-_Arabic)",
    "Sanskrit",
    "Cyrillic",
    "Anglo-Saxon_Futhorc",
    "Syriac_(Estrangelo)",
    "Ge_ez",
    "Japanese_(katakana)",
    "Keble",
    "Manipuri",
    "Alphabet_of_the_Magi",
    "Gurmukhi",
    "Korean",
    "Early_Aramaic",
    "Atemayar_Qelisayer",
)
"""The twenty alphabets that multi-task experiments take, in their order (Maziarz et al., arXiv 1910.04915)."""
