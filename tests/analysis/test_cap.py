"""AP against the cap: every point is what lvis says of the detections that the cap leaves."""

import csv
import json
import random
from collections import defaultdict

import pytest

from eql_d2.analysis import analyze
from eql_d2.analysis.cap import caps
from eql_d2.errors import InputError
from eql_d2.evaluation.backends import evaluate_results
from tests.analysis.helpers import make_run


def detections(seed, num_images=4, per_image=30):
    """Return detections of all classes near and far from the one square in each image, of random scores."""
    generator = random.Random(seed)
    found = []
    for image_id in range(1, num_images + 1):
        for _ in range(per_image):
            x, y = 10 + generator.choice([0, 3, 25]), 12 + generator.choice([0, 2, 25])
            category = generator.randint(1, 5)
            box = {"image_id": image_id, "category_id": category, "bbox": [x, y, 30, 30]}
            found.append({**box, "score": generator.random() * (0.3 if category == 2 else 1.0)})
    return found


def evaluated_run(folder, name, found, *opts):
    run = make_run(folder, name, folder, "EQL", None, "MODEL.MASK_ON", False, "TEST.DETECTIONS_PER_IMAGE", 25, *opts)
    inference = run / "inference" / f"{folder.name}_train"
    inference.mkdir(parents=True)
    (inference / "lvis_instances_results.json").write_text(json.dumps(found))
    rows = [{"id": i + 1, "name": f"class_{i}", "group": "ffcrr"[i], "bbox_AP": 1.0} for i in range(5)]
    (inference / "per_category_ap.json").write_text(json.dumps(rows))
    return run


def best_of_each_image(found, cap):
    by_image = defaultdict(list)
    for detection in found:
        by_image[detection["image_id"]].append(detection)
    return [one for group in by_image.values() for one in sorted(group, key=lambda d: -d["score"])[:cap]]


def test_caps_end_with_what_the_model_returns():
    assert caps(1000) == [10, 20, 50, 100, 200, 500, 1000]
    assert caps(300) == [10, 20, 50, 100, 200, 300] and caps(15) == [10, 15] and caps(6) == [6]


def test_every_point_is_the_reference_s_ap_of_what_is_left(lvis_folder):
    found = {name: detections(seed) for seed, name in enumerate(("first", "second"))}
    runs = [evaluated_run(lvis_folder, name, found[name]) for name in found]
    (produced,) = analyze(runs, lvis_folder / "out", only=["ap-cap"])
    with produced.csv.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["run"], row["cap"]) for row in rows] == [
        (name, cap) for name in found for cap in ("10", "20", "25", "fixed")
    ]
    seen = set()
    for row in rows:
        left = best_of_each_image(found[row["run"]], 30 if row["cap"] == "fixed" else int(row["cap"]))
        reference = evaluate_results(str(lvis_folder / "train.json"), left, backend="lvis", max_detections=-1)
        for column in ("AP", "APf"):
            assert float(row[column]) == pytest.approx(100 * reference.metrics[column], abs=1e-9)
        assert row["APr"] == row["APc"] == ""  # no rare or common object is in the images
        seen.add(row["AP"])
    assert len(seen) > 4  # the cap matters
    assert produced.png.is_file() and produced.caption.startswith("Box AP on ")
    assert "detections of each image that count" in produced.caption


def test_a_coco_format_set_has_no_fixed_ap(lvis_folder):
    content = json.loads((lvis_folder / "train.json").read_text())
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for category in content["categories"]:
        del category["frequency"]
    (lvis_folder / "train.json").write_text(json.dumps(content))
    run = evaluated_run(lvis_folder, "run", detections(0))
    (produced,) = analyze([run], lvis_folder / "out", only=["ap-cap"])
    text = produced.csv.read_text()
    assert "fixed" not in text and "run,bbox,25," in text and "of each image and class" in produced.caption


def test_detections_that_are_gone(lvis_folder):
    run = evaluated_run(lvis_folder, "run", detections(0))
    (run / "inference" / f"{lvis_folder.name}_train" / "lvis_instances_results.json").unlink()
    with pytest.raises(InputError, match=r"run has no lvis_instances_results.json in inference/.*evaluate the run"):
        analyze([run], lvis_folder / "out", only=["ap-cap"])
