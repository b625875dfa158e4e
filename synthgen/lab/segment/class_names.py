"""Names and numbers of the classes of data sets that others publish."""

from __future__ import annotations

VOC = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
CITYSCAPES = {
    7: "road",
    8: "sidewalk",
    11: "building",
    12: "wall",
    13: "fence",
    17: "pole",
    19: "traffic light",
    20: "traffic sign",
    21: "vegetation",
    22: "terrain",
    23: "sky",
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
"""The 19 classes that are evaluated, by their number in ``labelIds``."""

CITYSCAPES_27 = CITYSCAPES | {
    9: "parking",
    10: "rail track",
    14: "guard rail",
    15: "bridge",
    16: "tunnel",
    18: "polegroup",
    29: "caravan",
    30: "trailer",
}
"""All from 7 on, which papers without training compare (PiCIE, DiffSeg, LS)."""

CONTEXT = (
    *VOC[:10],
    *("table", *VOC[11:]),
    *("bag", "bed", "bench", "book", "building", "cabinet", "ceiling", "cloth", "computer", "cup"),
    *("door", "fence", "floor", "flower", "food", "grass", "ground", "keyboard", "light"),
    *("mountain", "mouse", "curtain", "platform", "sign", "plate", "road", "rock", "shelves"),
    *("sidewalk", "sky", "snow", "bedclothes", "track", "tree", "truck", "wall", "water"),
    *("window", "wood"),
)
"""The 59 classes of PASCAL Context, in the order of ``59_labels.txt``."""

STUFF_27 = (
    *("electronic", "appliance", "food", "furniture", "indoor", "kitchen", "accessory", "animal"),
    *("outdoor", "person", "sports", "vehicle", "ceiling", "floor", "food (stuff)"),
    *("furniture (stuff)", "raw material", "textile", "wall", "window", "building", "ground"),
    *("plant", "sky", "solid", "structural", "water"),
)
"""COCO-Stuff's 27 supercategories, in PiCIE's order: 12 of things, 15 of stuff."""

_THINGS = (9, 1), (11, 8), (8, 6), (7, 10), (6, 8), (10, 10), (5, 8), (2, 10), (3, 10), (0, 6)
_STUFF = (
    *(17, 17, 22, 20, 20, 22, 15, 25, 16, 13, 12, 12, 17, 17, 23, 15, 15, 17, 15, 21),
    *(15, 25, 13, 13, 13, 13, 13, 22, 26, 14, 14, 15, 22, 21, 21, 24, 20, 22, 15, 17),
    *(16, 15, 22, 24, 21, 17, 25, 16, 21, 17, 22, 16, 21, 21, 25, 21, 26, 21, 24, 20),
    *(17, 14, 21, 26, 15, 23, 20, 21, 24, 15, 24, 22, 25, 15, 20, 17, 17, 22, 14, 18),
    *(18, 18, 18, 18, 18, 18, 26, 26, 19, 19, 24),
)
STUFF_27_OF: tuple[int, ...] = (
    *(coarse for coarse, num in (*_THINGS, (1, 6), (4, 8)) for _ in range(num)),
    *_STUFF,
)
"""Supercategory of each of COCO-Stuff's 182 numbers (PiCIE), those of things first."""

_STUFF_NAMES = (
    *("banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage"),
    *("cardboard", "carpet", "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds"),
    *("counter", "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff", "fence"),
    *("floor-marble", "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog"),
    *("food-other", "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill"),
    *("house", "leaves", "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud"),
    *("napkin", "net", "paper", "pavement", "pillow", "plant-other", "plastic", "platform"),
    *("playingfield", "railing", "railroad", "river", "road", "rock", "roof", "rug", "salad"),
    *("sand", "sea", "shelf", "sky-other", "skyscraper", "snow", "solid-other", "stairs"),
    *("stone", "straw", "structural-other", "table", "tent", "textile-other", "towel", "tree"),
    *("vegetable", "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone"),
    *("wall-tile", "wall-wood", "water-other", "waterdrops", "window-blind", "window-other"),
    "wood",
)


def stuff_171() -> dict[int, str]:
    """COCO-Stuff's classes by their number in stuffthingmaps: 80 things, 91 of stuff from 91 on.

    >>> names = stuff_171()
    >>> len(names), names[0], names[89], names[91], names[181]
    (171, 'person', 'toothbrush', 'banner', 'wood')
    """
    from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

    things = FasterRCNN_ResNet50_FPN_Weights.DEFAULT.meta["categories"][1:]
    names = {number: name for number, name in enumerate(things) if name != "N/A"}
    return names | dict(enumerate(_STUFF_NAMES, start=91))
