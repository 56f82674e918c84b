"""Operating thresholds: the best F1 or a precision of each class, on what the annotations let be judged."""

import json

import numpy as np
import pytest

from eql_d2.commands import thresholds as command
from eql_d2.errors import InputError
from eql_d2.evaluation.thresholds import Thresholds, fit_thresholds
from eql_d2.predictor import Predictor
from tests.conftest import NUM_CLASSES, make_lvis_json
from tests.engine.test_bad_input import run_tiny

BOX, ELSEWHERE = [10.0, 12.0, 30.0, 30.0], [45.0, 45.0, 15.0, 15.0]


def coco_content(num_images=12):
    """Category i % 2 + 1 has an object at BOX in image i + 1; no image-level sets, so that every class is judged."""
    content = make_lvis_json(num_images)
    for image in content["images"]:
        image.pop("neg_category_ids")
        image.pop("not_exhaustive_category_ids")
    content["categories"] = [{"id": c["id"], "name": c["name"]} for c in content["categories"]]
    return content


def detection(image, category, score, box=BOX):
    return {"image_id": image, "category_id": category, "score": score, "bbox": list(box)}


def slow_f1(scores, hits, objects):
    """The best threshold by trying each score."""
    values = {
        t: 2 * hits[scores >= t].sum() / ((scores >= t).sum() + objects) for t in sorted(set(scores), reverse=True)
    }
    return max(values, key=values.get)


def test_f1_and_precision_by_trying_every_threshold():
    content, generator = coco_content(40), np.random.default_rng(3)
    results, judged = [], {1: [], 2: []}
    for image in range(1, 41):
        for category in (1, 2):
            is_there = (image - 1) % 2 + 1 == category
            for is_hit, box in ((True, BOX), (False, ELSEWHERE)):
                score = round(float(generator.beta(4, 2) if is_hit and is_there else generator.beta(2, 4)), 1)
                results.append(detection(image, category, score, box))
                judged[category].append((score, is_hit and is_there))
    found = fit_thresholds(content, results)
    strict = fit_thresholds(content, results, precision=0.8)
    for category in (1, 2):
        scores, hits = (np.array(part) for part in zip(*judged[category]))
        point, at = found.classes[category - 1], strict.classes[category - 1]
        assert point.threshold == slow_f1(scores, hits, 20) and point.source == "own" and point.objects == 20
        shown = hits[scores >= point.threshold]
        assert point.precision == pytest.approx(shown.mean()) and point.recall == pytest.approx(shown.sum() / 20)
        assert at.precision >= 0.8 > hits[scores >= at.threshold - 0.1].mean()
    pooled_scores, pooled_hits = (np.array(part) for part in zip(*judged[1], *judged[2]))
    assert found.pooled == slow_f1(pooled_scores, pooled_hits, 40)
    assert [point.threshold for point in found.classes[2:]] == [found.pooled] * 3
    assert {point.source for point in found.classes[2:]} == {"pooled"} and found.classes[4].recall is None


def test_detections_that_lvis_does_not_judge_do_not_count():
    """Class 3 is verified in no image of the example: what is found there is neither right nor wrong."""
    content = make_lvis_json(12, negatives=((),))
    results = [detection(i, (i - 1) % 2 + 1, 0.5) for i in range(1, 13)]
    results += [detection(i, 3, 0.9) for i in range(1, 13)] + [detection(2, 1, 0.8)]  # class 1 is not verified there
    found = fit_thresholds(content, results)
    assert found.classes[0].threshold == 0.5 and found.classes[0].precision == 1 == found.classes[0].recall
    assert found.classes[2].precision is None


def test_nothing_is_shown_of_a_class_that_does_not_reach_the_precision():
    content = coco_content()
    results = [detection(i, 1, 0.9, ELSEWHERE) for i in range(1, 13)] + [detection(i, 2, 0.7) for i in range(2, 13, 2)]
    first, second, *_ = fit_thresholds(content, results, precision=0.5).classes
    assert first.threshold > 1 and first.precision is None and first.recall == 0
    assert second.threshold == 0.7 and second.recall == 1
    assert fit_thresholds(content, [], min_objects=0).pooled > 1


def test_saved_and_read(tmp_path):
    found = fit_thresholds(coco_content(), [detection(1, 1, 0.5)], precision=0.5)
    found.save(tmp_path / "thresholds.json")
    assert Thresholds.load(tmp_path / "thresholds.json") == found
    with pytest.raises(InputError, match=r"absent.json: there is no such file; eql-d2 thresholds writes one"):
        Thresholds.load(tmp_path / "absent.json")
    (tmp_path / "other.json").write_text('{"classes": [{"name": "x"}]}')
    with pytest.raises(InputError, match=r"other.json holds no thresholds"):
        Thresholds.load(tmp_path / "other.json")
    for options in ({"precision": 0}, {"iou": 1.5}):
        with pytest.raises(InputError, match=r"lies above 0 and is at most 1"):
            fit_thresholds(coco_content(), [], **options)


def test_from_a_run_to_its_predictor(lvis_folder, capsys):
    """The command finds the run's detections and data; the predictor finds the file beside the weights."""
    run_tiny(lvis_folder, "SOLVER.MAX_ITER", 1)
    output = lvis_folder / "output"
    command.main([str(output), "--min-objects", "1"])
    found = Thresholds.load(output / "thresholds.json")
    assert found.iou_type == "segm" and [point.objects for point in found.classes] == [2, 2, 0, 0, 0]
    assert "5 classes, 2 with a threshold of their own" in capsys.readouterr().out
    config, weights = str(output / "config.yaml"), str(output / "model_final.pth")
    every = Predictor(config, weights, thresholds=None)
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    instances = every(image)
    label = int(instances.pred_classes.mode().values)  # of its detections only the best will pass
    values = [0.0] * NUM_CLASSES
    values[label] = float(instances.scores[instances.pred_classes == label].max())
    content = json.loads((output / "thresholds.json").read_text())
    for point, value in zip(content["classes"], values):
        point["threshold"] = value
    (output / "thresholds.json").write_text(json.dumps(content))
    shown = Predictor(config, weights)(image)
    expected = [s >= values[c] for s, c in zip(instances.scores.tolist(), instances.pred_classes.tolist())]
    assert every.thresholds is None and 0 < sum(expected) < len(instances)
    assert shown.scores.tolist() == instances.scores[np.flatnonzero(expected)].tolist()
    content["classes"].pop()
    (output / "thresholds.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"thresholds of 4 classes, but MODEL.ROI_HEADS.NUM_CLASSES is 5"):
        Predictor(config, weights)
    with pytest.raises(InputError, match=r"a file needs --annotations and --output"):
        command.main([str(output / "absent.json")])
