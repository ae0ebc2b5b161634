"""The classes of public data sets, in the order of their official ids."""

from __future__ import annotations

from vitsplit.data.decoding import RGB


def _names(joined: str) -> tuple[str, ...]:
    return tuple(joined.split("|"))


ADE20K = _names(
    "wall|building|sky|floor|tree|ceiling|road|bed|windowpane|grass|cabinet|sidewalk|person|earth|door|table|mountain|"
    "plant|curtain|chair|car|water|painting|sofa|shelf|house|sea|mirror|rug|field|armchair|seat|fence|desk|rock|"
    "wardrobe|lamp|bathtub|railing|cushion|base|box|column|signboard|chest of drawers|counter|sand|sink|skyscraper|"
    "fireplace|refrigerator|grandstand|path|stairs|runway|case|pool table|pillow|screen door|stairway|river|bridge|"
    "bookcase|blind|coffee table|toilet|flower|book|hill|bench|countertop|stove|palm|kitchen island|computer|"
    "swivel chair|boat|bar|arcade machine|hovel|bus|towel|light|truck|tower|chandelier|awning|streetlight|booth|"
    "television receiver|airplane|dirt track|apparel|pole|land|bannister|escalator|ottoman|bottle|buffet|poster|stage|"
    "van|ship|fountain|conveyer belt|canopy|washer|plaything|swimming pool|stool|barrel|basket|waterfall|tent|bag|"
    "minibike|cradle|oven|ball|food|step|tank|trade name|microwave|pot|animal|bicycle|lake|dishwasher|screen|blanket|"
    "sculpture|hood|sconce|vase|traffic light|tray|ashcan|fan|pier|crt screen|plate|monitor|bulletin board|shower|"
    "radiator|glass|clock|flag"
)
"""The 150 classes of the scene parsing challenge; mask value 0 is unlabeled, value k is the k-th class."""

CITYSCAPES: dict[int, tuple[str, RGB]] = {
    7: ("road", (128, 64, 128)),
    8: ("sidewalk", (244, 35, 232)),
    11: ("building", (70, 70, 70)),
    12: ("wall", (102, 102, 156)),
    13: ("fence", (190, 153, 153)),
    17: ("pole", (153, 153, 153)),
    19: ("traffic light", (250, 170, 30)),
    20: ("traffic sign", (220, 220, 0)),
    21: ("vegetation", (107, 142, 35)),
    22: ("terrain", (152, 251, 152)),
    23: ("sky", (70, 130, 180)),
    24: ("person", (220, 20, 60)),
    25: ("rider", (255, 0, 0)),
    26: ("car", (0, 0, 142)),
    27: ("truck", (0, 0, 70)),
    28: ("bus", (0, 60, 100)),
    31: ("train", (0, 80, 100)),
    32: ("motorcycle", (0, 0, 230)),
    33: ("bicycle", (119, 11, 32)),
}
"""The 19 evaluated classes, by label id; the other ids up to 33 are ignored."""
CITYSCAPES_MAX_ID = 33

PASCAL_CONTEXT_59 = _names(
    "aeroplane|bicycle|bird|boat|bottle|bus|car|cat|chair|cow|table|dog|horse|motorbike|person|pottedplant|sheep|sofa|"
    "train|tvmonitor|bag|bed|bench|book|building|cabinet|ceiling|cloth|computer|cup|door|fence|floor|flower|food|grass|"
    "ground|keyboard|light|mountain|mouse|curtain|platform|sign|plate|road|rock|shelves|sidewalk|sky|snow|bedclothes|"
    "track|tree|truck|wall|water|window|wood"
)
"""The 59 frequent classes, by the names of ``labels.txt`` (``59_labels.txt`` spells three of them differently)."""

COCO = _names(
    "person|bicycle|car|motorcycle|airplane|bus|train|truck|boat|traffic light|fire hydrant|stop sign|parking meter|"
    "bench|bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|backpack|umbrella|handbag|tie|suitcase|frisbee|"
    "skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|bottle|wine glass|"
    "cup|fork|knife|spoon|bowl|banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|chair|couch|"
    "potted plant|bed|dining table|toilet|tv|laptop|mouse|remote|keyboard|cell phone|microwave|oven|toaster|sink|"
    "refrigerator|book|clock|vase|scissors|teddy bear|hair drier|toothbrush"
)
"""The 80 classes of COCO."""
COCO_IDS = tuple(sorted({*range(1, 91)} - {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}))
"""Their ids in the annotations."""
