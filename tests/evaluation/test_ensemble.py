"""Results files merged into one: by each rule as by hand, with experts, and the file itself if it is the only one."""

import json
import tracemalloc

import numpy as np
import pytest

from eql_d2.commands.ensemble import main
from eql_d2.data.annotations import read_annotations
from eql_d2.errors import InputError
from eql_d2.evaluation.backends import evaluate_results
from eql_d2.evaluation.by_image import by_image
from eql_d2.evaluation.ensemble import Rescoring, ResultsFile, ensemble, expert_classes, rescoring_by_group
from eql_d2.evaluation.merging import nms, weighted_boxes_fusion
from tests.evaluation.helpers import CATEGORY_IDS, box_mask, make_detections, make_ground_truth


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def without_masks(detections):
    return [{key: value for key, value in one.items() if key != "segmentation"} for one in detections]


@pytest.fixture
def truth():
    return make_ground_truth(np.random.default_rng(0))


def detections_of(truth, seed, per_image=30):
    return make_detections(np.random.default_rng(seed), truth, per_image)


@pytest.fixture
def files(tmp_path, truth):
    """Annotations, and the results of three detectors; those of the last in no order."""
    found = [detections_of(truth, seed) for seed in (1, 2, 3)]
    np.random.default_rng(4).shuffle(found[2])
    return (
        write(tmp_path / "gt.json", truth),
        [write(tmp_path / f"{i}.json", one) for i, one in enumerate(found)],
        found,
    )


def overlap(a, b):
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)


def by_hand(found, weights, method, cap, iou=0.5, sigma=0.5):
    """Merge lists of detections in plain Python: image by image, class by class, the best first."""
    merged = []
    for image in sorted({one["image_id"] for of_file in found for one in of_file}):
        of_image = []
        for category in CATEGORY_IDS:
            waiting = [
                {**one, "score": one["score"] * weight}
                for of_file, weight in zip(found, weights)
                for one in of_file
                if one["image_id"] == image and one["category_id"] == category
            ]
            while waiting:
                best = max(waiting, key=lambda one: one["score"])
                waiting.remove(best)
                of_image.append(best)
                for one in list(waiting):
                    shared = overlap(best["bbox"], one["bbox"])
                    if method == "nms" and shared > iou:
                        waiting.remove(one)
                    elif method == "soft-nms-linear" and shared > iou:
                        one["score"] *= 1 - shared
                    elif method == "soft-nms":
                        one["score"] *= np.exp(-(shared**2) / sigma)
        merged += sorted(of_image, key=lambda one: -one["score"])[:cap]
    return merged


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, 0.8)])
@pytest.mark.parametrize("cap", [25, 300])
@pytest.mark.parametrize("method", ["nms", "soft-nms", "soft-nms-linear"])
def test_as_by_hand(files, tmp_path, method, cap, weights):
    """Boxes and masks as they were written, scores to the last bits, images in order."""
    _, paths, found = files
    options = ["--method", method, "--iou", 0.4, "--sigma", 0.3, "--max-detections", cap, "--weights", *weights]
    main([str(word) for word in (*paths, *options, "--output", tmp_path / "out.json")])
    merged = json.loads((tmp_path / "out.json").read_text())
    expected = by_hand(found, weights, method, cap, iou=0.4, sigma=0.3)
    assert [one["score"] for one in merged] == pytest.approx([one["score"] for one in expected], rel=1e-12)
    for one in merged, expected:
        for detection in one:
            del detection["score"]
    assert merged == expected


def fused_by_hand(found, weights, iou=0.55):
    """Weighted boxes fusion (arXiv 1910.13302, section 3) of one class in one image: a list of (box, score)."""
    given = [
        (one["bbox"], one["score"] * w, i) for i, (of_file, w) in enumerate(zip(found, weights)) for one in of_file
    ]
    clusters, fused = [], []
    for box, score, _ in sorted(given, key=lambda one: -one[1]):
        overlaps = [overlap(box, other) for other in fused]
        if overlaps and max(overlaps) > iou:
            place = int(np.argmax(overlaps))
            clusters[place].append((box, score))
        else:
            place = len(clusters)
            clusters.append([(box, score)])
            fused.append(None)
        boxes, scores = (np.array(part) for part in zip(*clusters[place]))
        corners = boxes + np.concatenate([np.zeros((len(boxes), 2)), boxes[:, :2]], 1)
        mean = (corners * scores[:, None]).sum(0) / scores.sum()
        fused[place] = [*mean[:2], *(mean[2:] - mean[:2])]
    scores = [np.mean([s for _, s in c]) * min(len(c), len(weights)) / sum(weights) for c in clusters]
    return sorted(zip(scores, fused), key=lambda one: -one[0])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, 0.8)])
def test_boxes_are_fused_as_by_hand(files, tmp_path, weights):
    pytest.importorskip("ensemble_boxes")
    _, paths, found = files
    rng = np.random.default_rng(5)
    for path, of_file in zip(paths, found):
        for one in of_file:  # equal overlaps of whole boxes would be told apart by rounding
            one["bbox"] = [side + rng.uniform(0.1, 0.9) for side in one["bbox"]]
        write(path, of_file)
    options = ["--method", "wbf", "--boxes-only", "--max-detections", -1, "--weights", *weights]
    main([str(word) for word in (*paths, *options, "--output", tmp_path / "out.json")])
    merged = json.loads((tmp_path / "out.json").read_text())
    assert all("segmentation" not in one for one in merged)
    for image in {one["image_id"] for one in merged}:
        for category in CATEGORY_IDS:
            mine = [one for one in merged if (one["image_id"], one["category_id"]) == (image, category)]
            own = [[o for o in f if (o["image_id"], o["category_id"]) == (image, category)] for f in found]
            expected = fused_by_hand(own, weights)
            np.testing.assert_allclose([one["score"] for one in mine], [s for s, _ in expected], rtol=1e-5)
            boxes = np.array([one["bbox"] for one in mine]).reshape(-1, 4)
            np.testing.assert_allclose(boxes, np.reshape([b for _, b in expected], (-1, 4)), rtol=0, atol=1e-3)


def test_an_ensemble_of_one_file_is_the_file(files, tmp_path):
    """What has been through the same NMS comes out as it went in, bytes of masks included, also from an ensemble."""
    _, (path, *_), _ = files
    once, twice = tmp_path / "once.json", tmp_path / "twice.json"
    ensemble([ResultsFile(path)], once, nms())
    ensemble([ResultsFile(once)], twice, nms())
    assert once.read_bytes() == twice.read_bytes() and json.loads(once.read_text())
    ensemble([ResultsFile(once), ResultsFile(once)], twice, nms())
    assert once.read_bytes() == twice.read_bytes()


def test_an_expert_counts_for_its_classes_and_votes_on_no_other(files, tmp_path, truth):
    """Of an expert that knows the ensemble's class 5 as its 1, nothing else comes in, and no score suffers."""
    _, (path, *_), found = files
    other = [{**one, "category_id": 1 if one["category_id"] == 5 else 900} for one in found[1]]
    expert = write(tmp_path / "expert.json", other)
    rule = nms()
    sources = [ResultsFile(path), ResultsFile(expert, 1.0, {1: 5})]
    ensemble(sources, tmp_path / "out.json", rule)
    merged = json.loads((tmp_path / "out.json").read_text())
    assert merged == by_hand([found[0], [one for one in found[1] if one["category_id"] == 5]], (1, 1), "nms", 300)
    pytest.importorskip("ensemble_boxes")
    for only in (sources[:1], sources):
        ensemble(only, tmp_path / f"{len(only)}.json", weighted_boxes_fusion(), max_detections=-1, boxes_only=True)
    alone, both = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (1, 2))
    rest = [[one for one in merged if one["category_id"] != 5] for merged in (alone, both)]
    assert rest[0] == rest[1] and alone != both


def test_scores_of_rare_and_common_classes_are_raised_before_merging(files, tmp_path, truth):
    """By the letters of the training set, of all files but the experts'."""
    gt, (path, other, _), found = files
    letters = {category["id"]: category["frequency"] for category in truth["categories"]}
    rescoring = rescoring_by_group(gt, {"r": Rescoring(factor=3.0), "c": Rescoring(exponent=0.5)})
    assert {category: one.factor for category, one in rescoring.items()} == {
        category: 3.0 if letter == "r" else 1.0 for category, letter in letters.items() if letter != "f"
    }
    ensemble([ResultsFile(path), ResultsFile(other, 1.0, {5: 5})], tmp_path / "out.json", nms(), rescoring)
    power = {"r": lambda s: 3 * s, "c": lambda s: s**0.5, "f": lambda s: s}
    raised = [{**one, "score": power[letters[one["category_id"]]](one["score"])} for one in found[0]]
    merged = json.loads((tmp_path / "out.json").read_text())
    assert merged == by_hand([raised, [one for one in found[1] if one["category_id"] == 5]], (1, 1), "nms", 300)


def test_memory_is_that_of_an_image(tmp_path):
    """Of two files in no order, larger than what is held."""
    images = np.random.default_rng(0).permutation(5_000)
    detections = [
        {
            "image_id": int(i),
            "category_id": 1,
            "bbox": [1, 1, 9, 9],
            "score": 0.5,
            "segmentation": {"size": [9, 9], "counts": "A" * 999},
        }
        for i in images
    ]
    path = write(tmp_path / "a.json", detections)
    tracemalloc.start()
    seen = [image for image, found in by_image([path, path]) if len(found) == 2]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == list(range(5_000))
    # The reader has a block of a megabyte, and what is decoded of it.
    assert path.stat().st_size > 5e6 and peak < 8e6


def test_masks_alone_get_their_boxes(tmp_path):
    mask = box_mask([10, 20, 30, 40])
    polygons = [[10, 20, 40, 20, 40, 60, 10, 60]]
    records = [
        {"image_id": 1, "category_id": 1, "score": 0.9, "segmentation": mask},
        {"image_id": 2, "category_id": 1, "score": 0.8, "segmentation": polygons},
    ]
    ensemble([ResultsFile(write(tmp_path / "a.json", records))], tmp_path / "out.json", nms())
    merged = json.loads((tmp_path / "out.json").read_text())
    assert [one["bbox"] for one in merged] == [[10, 20, 30, 40]] * 2
    assert [one["segmentation"] for one in merged] == [mask, polygons]
    ensemble([ResultsFile(tmp_path / "a.json")], tmp_path / "best.json", nms(), min_score=0.85)
    assert json.loads((tmp_path / "best.json").read_text()) == merged[:1]


def test_the_command(files, tmp_path, capsys, truth):
    """AP of the merged file is that of the detections merged by hand, and above that of each of them."""
    gt, paths, found = files
    output = tmp_path / "merged" / "out.json"
    classes = tmp_path / "classes.txt"
    classes.write_text("class 5\n\n14\n")
    main(
        [*map(str, paths[:2]), "--expert", str(paths[2]), str(classes), "--weights", "1", "1", "0.9"]
        + ["--annotations", str(gt), "--output", str(output), "--train-json", str(gt), "--factor", "r=1.25"]
    )
    assert capsys.readouterr().out == f"{output}: 10 images of 3 files.\n"
    rare = {category["id"] for category in truth["categories"] if category["frequency"] == "r"}
    raised = [
        [{**one, "score": one["score"] * 1.25 if one["category_id"] in rare else one["score"]} for one in of_file]
        for of_file in found[:2]
    ]
    expert = [one for one in found[2] if one["category_id"] in (5, 14)]
    expected = by_hand([*raised, expert], (1, 1, 0.9), "nms", 300)
    merged = json.loads(output.read_text())
    assert sorted(one["score"] for one in merged) == pytest.approx(sorted(one["score"] for one in expected))
    for task in ("bbox", "segm"):
        ap = evaluate_results(truth, output, task).metrics["AP"]
        assert ap == pytest.approx(evaluate_results(truth, expected, task).metrics["AP"], abs=1e-9)
        assert ap > max(evaluate_results(truth, of_file, task).metrics["AP"] for of_file in found)


@pytest.mark.parametrize("text, expected", [('{"7": "class 5", "9": 14}', {7: 5, 9: 14}), ('{"7": "14"}', {7: 14})])
def test_classes_of_an_expert(files, tmp_path, text, expected):
    path = tmp_path / "classes.json"
    path.write_text(text)
    assert expert_classes(path, read_annotations(files[0])) == expected


BAD = {
    "nothing": ([], "nothing to merge"),
    "weights": (["{a}", "--weights", "1", "2"], "--weights 1.0 2.0 must be 1 numbers above 0"),
    "no weight": (["{a}", "--weights", "0"], "above 0"),
    "iou": (["{a}", "--iou", "1.5"], "--iou is 1.5"),
    "sigma": (["{a}", "--sigma", "0"], "--sigma is 0.0"),
    "factor": (["{a}", "--factor", "x=2", "--train-json", "{gt}"], "--factor x=2 must be r, c or f"),
    "exponent": (["{a}", "--exponent", "r=no", "--train-json", "{gt}"], "--exponent r=no must be"),
    "groups": (["{a}", "--factor", "r=2"], "--train-json"),
    "fused masks": (["{a}", "--method", "wbf"], "a fused box has no mask; add --boxes-only"),
    "some masks": (["{a}", "{boxes}"], "a.json has masks and .*boxes.json has detections without"),
    "no box": (["{bare}"], "bare.json: a detection of image 1 has neither a box nor a mask"),
    "image id": (["{half}"], "half.json: image_id 1.5 of a detection is no whole number"),
    "another set": (["{half}", "--annotations", "{gt}"], "image_id 1.5 of a detection is not in the annotations"),
    "damaged": (["{damaged}"], "damaged.json is not valid json"),
    "no classes": (["{a}", "--expert", "{a}", "{empty}"], "empty.txt names no class"),
    "absent classes": (["{a}", "--expert", "{a}", "absent"], "absent, the classes of an expert, cannot be read"),
    "a name": (["{a}", "--expert", "{a}", "{names}"], "names.txt names the class 'clas 5'; name the annotations"),
    "no such": (["{a}", "--expert", "{a}", "{names}", "--annotations", "{gt}"], "Did you mean 'class 5'"),
    "a list": (["{a}", "--expert", "{a}", "{damaged}"], "damaged.json must be a json object"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(files, tmp_path, case):
    gt, _, (found, *_) = files
    detection = {"image_id": 1, "category_id": 1, "score": 0.5}
    paths = {
        "gt": gt,
        "a": write(tmp_path / "a.json", found),
        "boxes": write(tmp_path / "boxes.json", without_masks(found)),
        "bare": write(tmp_path / "bare.json", [detection]),
        "half": write(tmp_path / "half.json", [{**detection, "image_id": 1.5, "bbox": [1, 2, 3, 4]}]),
        "damaged": tmp_path / "damaged.json",
        "empty": tmp_path / "empty.txt",
        "names": tmp_path / "names.txt",
    }
    paths["damaged"].write_text(json.dumps(found)[:300])
    paths["empty"].write_text("\n")
    paths["names"].write_text("clas 5\n")
    arguments, words = BAD[case]
    output = tmp_path / "out.json"
    with pytest.raises(InputError, match=words):
        main([*(word.format(**paths) for word in arguments), "--output", str(output)])
    assert not output.exists() and not list(tmp_path.glob("*.tmp*"))
