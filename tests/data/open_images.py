"""Open Images' files with everything in them that is awkward, and ways to put them on disk."""

import json
from pathlib import Path

from PIL import Image

from eql_d2.data.open_images_table import OpenImagesFiles

BOXES = """\
ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside
b1,xclick,/m/dog,1,0.1,0.5,0.2,0.6,0,1,0,-1,0
a0,xclick,/m/cat,1,0,1,0,1,1,0,1,0,0
b1,xclick,/m/unknown,1,0,1,0,1,0,0,1,0,0
b1,xclick,/m/cat,1,0.25,1,0,1,0,0,0,0,1
"""
LABELS = """\
ImageID,LabelName,Confidence
b1,/m/owl,0
c2,/m/animal,0
b1,/m/unknown,1
a0,/m/tree,1
"""
#: Contiguous labels 0 to 4; two classes share a name.
CLASSES = '/m/animal,Animal\n/m/cat,Cat\n/m/dog,Dog\n/m/owl,"Owl, great"\n/m/tree,Cat\n'
TREE = {
    "LabelName": "/m/root",
    "Subcategory": [
        {"LabelName": "/m/animal", "Subcategory": [{"LabelName": "/m/cat"}, {"LabelName": "/m/dog"}]},
        {"LabelName": "/m/owl"},
        {"LabelName": "/m/tree"},
    ],
}
IMAGES = {"a0": (40, 20), "b1": (20, 40), "c2": (30, 30)}  # width, height


def write_open_images(folder: Path, boxes=BOXES, labels=LABELS, classes=CLASSES, tree=TREE) -> OpenImagesFiles:
    """Write the files and the images (in ``folder/images``), and return where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"boxes.csv": boxes, "labels.csv": labels, "classes.csv": classes, "hierarchy.json": json.dumps(tree)}
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "images").mkdir(exist_ok=True)
    for image, size in IMAGES.items():
        Image.new("RGB", size).save(folder / "images" / f"{image}.jpg")
    paths = (str(folder / name) for name in ("boxes.csv", "classes.csv", "labels.csv", "hierarchy.json"))
    return OpenImagesFiles(*paths)
