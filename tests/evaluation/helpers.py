"""Random ground truth and detections, and the plain call of lvis that everything is compared with."""

import copy
import json
import math

import numpy as np
import torch
from detectron2.data import build_detection_test_loader
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util
from torch import nn

from eql_d2.evaluation.reference_backend import import_lvis

HEIGHT, WIDTH = 120, 160
TOLERANCE = 1e-12
CATEGORY_IDS = [3 * k + 2 for k in range(8)]


def box_polygon(box):
    """Return the polygon of a box ``[x, y, w, h]``."""
    x, y, w, h = box
    return [x, y, x + w, y, x + w, y + h, x, y + h]


def box_mask(box, height=HEIGHT, width=WIDTH):
    """Return the mask of a box with whole coordinates, as run lengths with counts as text."""
    x, y, w, h = (round(value) for value in box)
    mask = np.zeros((height, width), dtype=np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    encoded = mask_util.encode(mask)
    return {"size": [height, width], "counts": encoded["counts"].decode()}


def random_boxes(rng, count):
    """Return ``[count, 4]`` whole boxes within the image, from a few pixels to most of it."""
    sizes = np.exp(rng.uniform(np.log(4), np.log(110), (count, 2))).round()
    corners = (rng.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - sizes)).round()
    return np.concatenate([corners, sizes], axis=1)


def make_ground_truth(rng, num_images=10, num_classes=8, letters="rrrccfff"):
    """Return parsed LVIS annotations; ids of categories have gaps, one image is empty, letters may be ``None``."""
    category_ids = [3 * k + 2 for k in range(num_classes)]
    images, annotations = [], []
    for image_id in range(11, 11 + num_images):
        present = rng.choice(category_ids[:-1], size=3)  # no ground truth of the last category
        boxes = random_boxes(rng, 0 if image_id == 11 else int(rng.integers(1, 9)))
        for box in boxes.tolist():
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": int(rng.choice(present)),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "segmentation": [box_polygon(box)],
                }
            )
        shown = {a["category_id"] for a in annotations if a["image_id"] == image_id}
        negative = [int(c) for c in rng.choice(category_ids, size=4) if c not in shown]
        images.append(
            {
                "id": image_id,
                "height": HEIGHT,
                "width": WIDTH,
                "neg_category_ids": negative + negative[:1],  # an id twice
                # One that is shown, one that is not: the latter ignores every detection of it.
                "not_exhaustive_category_ids": sorted(shown)[:1] + [c for c in category_ids if c not in shown][:1],
            }
        )
    categories = [{"id": c, "name": f"class {c}"} for c in category_ids]
    for category, letter in zip(categories, letters or ()):
        category["frequency"] = letter
    return {"images": images, "annotations": annotations, "categories": categories}


def make_detections(rng, ground_truth, per_image=40, scores=None):
    """Return detections with box and mask: jittered ground truth, confused classes, false positives."""
    category_ids = [category["id"] for category in ground_truth["categories"]]
    detections = []
    for image in ground_truth["images"]:
        truth = [a for a in ground_truth["annotations"] if a["image_id"] == image["id"]]
        for box in random_boxes(rng, per_image):
            category_id = int(rng.choice(category_ids))
            if truth and rng.random() < 0.6:
                source = truth[rng.integers(len(truth))]
                box = np.array(source["bbox"]) + rng.integers(-4, 5, 4)
                category_id = source["category_id"] if rng.random() < 0.8 else category_id
            box[:2] = np.clip(box[:2], 0, [WIDTH - 2, HEIGHT - 2])
            box[2:] = np.clip(box[2:], 1, [WIDTH, HEIGHT] - box[:2])
            detections.append(
                {
                    "image_id": image["id"],
                    "category_id": category_id,
                    "bbox": box.tolist(),
                    "score": float(rng.random() if scores is None else rng.choice(scores)),
                    "segmentation": box_mask(box),
                }
            )
    return [detections[i] for i in rng.permutation(len(detections))]


def plain_lvis(ground_truth, detections, iou_type, tmp_path, max_detections=300):
    """Run lvis 0.5.3 as Detectron2 does and return its metrics, with NaN for -1, and AP of each category."""
    lvis = import_lvis()
    path = tmp_path / "plain.json"
    path.write_text(json.dumps(ground_truth))
    detections = copy.deepcopy(detections)
    if iou_type == "segm":
        for detection in detections:
            detection.pop("bbox", None)
    annotations = lvis.LVIS(str(path))
    evaluation = lvis.LVISEval(annotations, lvis.LVISResults(annotations, detections, max_detections), iou_type)
    evaluation.run()
    # lvis names its recalls after 300 whatever the cap was.
    metrics = {
        name.replace("@300", f"@{max_detections}"): math.nan if value == -1 else value
        for name, value in evaluation.get_results().items()
    }
    category_ap = []
    for k in range(evaluation.eval["precision"].shape[2]):
        precision = evaluation.eval["precision"][:, :, k, 0]
        category_ap.append(precision[precision > -1].mean() if (precision > -1).any() else math.nan)
    return metrics, np.array(category_ap)


def assert_equal(evaluation, metrics, category_ap):
    """Assert that an evaluation has the given metrics and AP of each category, to 1e-12."""
    assert list(evaluation.metrics) == list(metrics)
    np.testing.assert_allclose(list(evaluation.metrics.values()), list(metrics.values()), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(evaluation.category_ap, category_ap, rtol=0, atol=TOLERANCE)


class Replay(nn.Module):
    """A model that returns recorded detections; it fails after ``budget`` images, as if it had been killed."""

    def __init__(self, detections, budget=None, weight=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self._detections = detections
        self.seen = []
        self.budget = budget

    def forward(self, batch):
        outputs = []
        for image in batch:
            if self.budget is not None and len(self.seen) >= self.budget:
                raise KeyboardInterrupt
            self.seen.append(image["image_id"])
            outputs.append({"instances": to_instances(self._detections, image["image_id"])})
        return outputs


def to_instances(detections, image_id):
    """Return the detections of one image as a model gives them: corners, contiguous classes, bool masks."""
    own = [record for record in detections if record["image_id"] == image_id]
    boxes = torch.tensor([record["bbox"] for record in own]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    instances = Instances((HEIGHT, WIDTH), pred_boxes=Boxes(boxes))
    instances.scores = torch.tensor([record["score"] for record in own], dtype=torch.float32)
    instances.pred_classes = torch.tensor(
        [CATEGORY_IDS.index(record["category_id"]) for record in own], dtype=torch.int64
    )
    if own and "segmentation" in own[0]:
        masks = [mask_util.decode(record["segmentation"]) for record in own]
        instances.pred_masks = torch.from_numpy(np.stack(masks)).bool()
    return instances


def make_loader(ground_truth):
    """Return a test loader whose mapper records which images were read."""
    records = [{"image_id": image["id"]} for image in ground_truth["images"]]
    read = []

    def mapper(record):
        read.append(record["image_id"])
        return record

    return build_detection_test_loader(records, mapper=mapper, num_workers=0), read
