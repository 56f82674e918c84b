"""Open Images: streamed evaluation, results files, groups of classes, and hotcoco as another opinion."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.structures import Boxes, Instances

from eql_d2.commands.evaluate import main as evaluate_command
from eql_d2.config import get_cfg
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.open_images_files import open_images_table
from eql_d2.data.open_images_table import OpenImagesFiles
from eql_d2.errors import InputError
from eql_d2.evaluation import OpenImagesEvaluator, build_evaluator, evaluate, open_images_ap
from eql_d2.evaluation.open_images_results import (
    COLUMNS,
    countable_detections,
    expanded,
    group_of_classes,
    results_ap,
    summarize_groups,
)
from tests.evaluation.test_open_images import EXPECTED, RANDOM

LABELS = [entry["label"] for entry in RANDOM["classes"]]
SIZE = 200


def named(kind):
    """Return the golden case of a kind."""
    return next(case for case in RANDOM["cases"] if case["name"].rpartition("_")[0] == kind)


def write_csv(path, header, rows):
    path.write_text("\n".join([",".join(header), *(",".join(map(str, row)) for row in rows)]) + "\n")
    return str(path)


def write_case(folder: Path, case, labels=LABELS):
    """Write a golden case as the official files and return them, and its predictions as a results file."""
    folder.mkdir(exist_ok=True)
    (folder / "hierarchy.json").write_text(json.dumps(case["hierarchy"]))
    columns = RANDOM["columns"]
    (folder / "classes.csv").write_text("".join(f"{label},{label}\n" for label in labels))
    files = OpenImagesFiles(
        boxes=write_csv(folder / "boxes.csv", columns["boxes"], case["boxes"]),
        classes=str(folder / "classes.csv"),
        image_labels=write_csv(folder / "labels.csv", columns["image_labels"], case["image_labels"]),
        hierarchy=str(folder / "hierarchy.json"),
    )
    return files, write_csv(folder / "results.csv", COLUMNS, case["predictions"])


def assert_ap(ap, case, weight=1.0, labels=LABELS):
    expected = case[EXPECTED[weight]]["ap_per_class"]
    wanted = [np.nan if expected.get(label) is None else expected[label] for label in labels]
    np.testing.assert_allclose(ap, wanted, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", RANDOM["cases"], ids=lambda case: case["name"])
def test_files_equal_the_official_evaluation(case, tmp_path):
    if not case["boxes"]:
        case = {**case, "boxes": [["an image", "/other", 0, 1, 0, 1, 0]]}
    files, results = write_case(tmp_path, case)
    for weight in EXPECTED:
        assert_ap(results_ap(open_images_table(files), results, weight), case, weight)


@pytest.fixture
def scene(tmp_path):
    """A registered data set of the case with everything in it, and its predictions as a model gives them."""
    case = named("mixed")
    files, _ = write_case(tmp_path, case)
    name = f"oid_{tmp_path.name}"
    MetadataCatalog.get(name).set(open_images_files=files, evaluator_type="open_images", has_annotations=True)
    yield name, case, open_images_table(files)
    MetadataCatalog.remove(name)


class Replay(torch.nn.Module):
    """Gives the predictions of a case, in pixels of square images; fails after some images."""

    def __init__(self, case, table, limit=10**6):
        super().__init__()
        self.case, self.table, self.limit = case, table, limit

    def forward(self, inputs):
        self.limit -= 1
        if self.limit < 0:
            raise RuntimeError("interrupted")
        image_id = self.table.image_id(inputs[0]["image_id"])
        rows = [row for row in self.case["predictions"] if row[0] == image_id]
        instances = Instances((SIZE, SIZE))
        corners = np.array([[x1, y1, x2, y2] for *_, x1, x2, y1, y2 in rows]).reshape(-1, 4)
        instances.pred_boxes = Boxes(torch.from_numpy(corners * SIZE))
        instances.scores = torch.tensor([row[2] for row in rows], dtype=torch.float64)
        instances.pred_classes = torch.tensor([LABELS.index(row[1]) for row in rows], dtype=torch.int64)
        return [{"instances": instances}]


def loader(table):
    return build_detection_test_loader([{"image_id": row} for row in range(len(table))], mapper=dict, num_workers=0)


def counts(instances=range(12), images=None):
    images = range(12) if images is None else images
    return CategoryFrequency.from_counts(list(images), list(instances), num_images=50)


def test_a_streamed_evaluation(scene, tmp_path):
    name, case, table = scene
    evaluator = OpenImagesEvaluator(name, str(tmp_path / "out"), frequency=counts(instances=range(12, 0, -1)))
    results = evaluate(Replay(case, table), loader(table), evaluator)
    expected = case["expected"]
    assert results["oid"]["AP"] == pytest.approx(100 * expected["mAP"], abs=1e-6)
    ap = np.array([np.nan if value is None else value for value in map(expected["ap_per_class"].get, LABELS)])
    assert list(results["oid"]) == ["AP", "AP-1-rarest", "AP-2", "AP-3", "AP-4", "AP-5-most-frequent"]
    # Twelve classes in five groups: 3, 3, 2, 2, 2; the last of the list is the rarest here.
    assert results["oid"]["AP-1-rarest"] == pytest.approx(100 * np.nanmean(ap[-3:]), abs=1e-6)
    assert results["oid"]["AP-5-most-frequent"] == pytest.approx(100 * np.nanmean(ap[:2]), abs=1e-6)
    assert_ap(results_ap(table, tmp_path / "out/open_images_results.csv"), case)
    assert not (tmp_path / "out/predictions").exists()
    with (tmp_path / "out/per_category_ap.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == LABELS
    assert [row["fifth"] for row in rows] == [*["5-most-frequent"] * 2, *"443322", *["2"], *["1-rarest"] * 3]
    assert rows[0]["train_instances"] == "12" and rows[0]["group"] == "r"
    assert [float(row["oid_AP"] or "nan") for row in rows] == pytest.approx(100 * ap, abs=1e-6, nan_ok=True)


def test_going_on_after_an_interruption(scene, tmp_path):
    name, case, table = scene
    with pytest.raises(RuntimeError, match="interrupted"):
        evaluate(Replay(case, table, limit=2), loader(table), OpenImagesEvaluator(name, str(tmp_path / "out")))
    model = Replay(case, table, limit=len(table) - 2)
    results = evaluate(model, loader(table), OpenImagesEvaluator(name, str(tmp_path / "out")), resume=True)
    assert model.limit == 0, "the images that were there already are not computed again"
    assert list(results["oid"]) == ["AP"], "without training counts there are no groups"
    assert results["oid"]["AP"] == pytest.approx(100 * case["expected"]["mAP"], abs=1e-6)


def test_the_evaluator_of_a_config(scene, tmp_path):
    name, case, table = scene
    cfg = get_cfg()
    counts().save(tmp_path / "frequency.json")
    cfg.MODEL.LONG_TAIL.FREQUENCY = str(tmp_path / "frequency.json")
    cfg.MODEL.LONG_TAIL.OPEN_IMAGES.GROUP_OF_WEIGHT = 0.5
    evaluator = build_evaluator(cfg, name, str(tmp_path / "out"))
    results = evaluate(Replay(case, table), loader(table), evaluator)
    assert results["oid"]["AP"] == pytest.approx(100 * case[EXPECTED[0.5]]["mAP"], abs=1e-6)
    cfg.MODEL.LONG_TAIL.OPEN_IMAGES.GROUP_BY = "boxes"
    with pytest.raises(InputError, match=r"OPEN_IMAGES.GROUP_BY is 'boxes'; there are instances and images"):
        build_evaluator(cfg, name, str(tmp_path / "out"))
    with pytest.raises(InputError, match=r"The training set has 3 categories, but oid_.* has 12"):
        OpenImagesEvaluator(name, frequency=CategoryFrequency.from_counts([1, 2, 3], num_images=9))


def test_groups_are_of_boxes_or_of_images_and_the_rarest_come_first():
    frequency = counts(instances=range(12), images=range(11, -1, -1))
    assert group_of_classes(frequency).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 4]
    assert group_of_classes(frequency, "images").tolist() == [4, 4, 3, 3, 2, 2, 1, 1, 1, 0, 0, 0]
    of_500 = CategoryFrequency.from_counts(range(500, 0, -1), range(1, 501), num_images=500)
    groups = group_of_classes(of_500)
    assert np.bincount(groups).tolist() == [100] * 5 and groups[:100].tolist() == [0] * 100
    metrics = summarize_groups(np.array([np.nan] * 100 + [0.5] * 400), groups)
    assert np.isnan(metrics["AP-1-rarest"]) and metrics["AP"] == metrics["AP-2"] == 0.5


def test_the_tool(tmp_path, capsys):
    case = named("hierarchy_group_of")
    files, results = write_case(tmp_path, case)
    options = ["--classes", files.classes, "--image-labels", files.image_labels, "--hierarchy", files.hierarchy]
    command = [results, "--annotations", files.boxes, *options]
    evaluate_command([*command, "--group-of-weight", "0"])
    printed = capsys.readouterr().out
    expected = f"{100 * case[EXPECTED[0.0]]['mAP']:.2f}"
    assert printed == (
        f"Open Images challenge protocol, AP at IoU 0.5 in percent\n\n|  | AP |\n| --- | --- |\n| box | {expected} |\n"
    )
    table, picture = tmp_path / "ap.json", tmp_path / "ap.png"
    training = ["--train-json", files.boxes, "--group-by", "images"]
    evaluate_command([*command, "--per-category", str(table), "--plot", str(picture), *training])
    assert "| AP-1-rarest | AP-2 | AP-3 | AP-4 | AP-5-most-frequent |" in capsys.readouterr().out
    rows = json.loads(table.read_text())
    assert_ap([np.nan if row["oid_AP"] is None else row["oid_AP"] / 100 for row in rows], case)
    assert picture.read_bytes().startswith(b"\x89PNG")
    for wrong, message in (
        ([*command, "--fixed"], r"--fixed cannot be used with annotations of Open Images \(CSV\)"),
        ([results, "--annotations", files.boxes], r"name the list of classes with --classes"),
        ([results, "--annotations", "a.json", "--classes", "b"], r"--classes cannot be used with annotations in LVIS"),
        ([*command, "--per-category", "ap.txt"], r"--per-category ap.txt must end in .csv or .json"),
    ):
        with pytest.raises(InputError, match=message):
            evaluate_command(wrong)


def test_bad_results(tmp_path):
    files, results = write_case(tmp_path, RANDOM["cases"][0])
    table = open_images_table(files)
    good = Path(results).read_text()
    for text, message in (
        (good.replace("Score", "Confidence"), "has no column Score"),
        (good + "img00,/x/01,nan,0,1,0,1\n", "results.csv has a detection with a number that is not finite"),
        (good + "img00,/x/01,high,0,1,0,1\n", r"could not convert string 'high'"),
    ):
        Path(results).write_text(text)
        with pytest.raises(InputError, match=message):
            results_ap(table, results)
    Path(results).write_text(",".join(COLUMNS) + "\n")
    assert set(results_ap(table, results)[~np.isnan(results_ap(table, results))]) == {0.0}
    with pytest.raises(InputError, match="weight of group-of boxes is -1"):
        results_ap(table, results, -1)


def test_random_scenes_equal_the_rows_form(tmp_path):
    """Many images and tied scores: the files' form gives what the golden seam gives."""
    rng = np.random.default_rng(5)
    tree = named("hierarchy")["hierarchy"]

    def corners(count):
        return np.sort(rng.random((count, 2, 2)).round(2), axis=2).reshape(count, 4).tolist()

    def names(count):
        return [f"{number:03d}" for number in rng.integers(0, 40, count)], rng.choice(LABELS, count).tolist()

    boxes = [[*row, *box, int(group)] for *row, box, group in zip(*names(300), corners(300), rng.random(300) < 0.2)]
    labels = [[*row, int(present)] for *row, present in zip(*names(200), rng.integers(0, 2, 200))]
    scores = rng.permutation(2000) / 2000
    predictions = [[*row, score, *box] for *row, score, box in zip(*names(2000), scores.tolist(), corners(2000))]
    case = {"boxes": boxes, "image_labels": labels, "predictions": predictions, "hierarchy": tree}
    files, results = write_case(tmp_path, case)
    for weight in (1.0, 0.5, 0.0):
        expected, mean = open_images_ap(boxes, labels, predictions, tree, weight)
        ap = results_ap(open_images_table(files), results, weight)
        wanted = [np.nan if expected.get(label) is None else expected[label] for label in LABELS]
        np.testing.assert_allclose(ap, wanted, rtol=0, atol=1e-12)
        assert np.nanmean(ap) == pytest.approx(mean)


@pytest.mark.filterwarnings("ignore:hotcoco:UserWarning")
@pytest.mark.parametrize("case", RANDOM["cases"], ids=lambda case: case["name"])
def test_hotcoco_agrees_where_matching_does_not_matter(case, tmp_path):
    """hotcoco gives a detection whose best box is taken the next free one, so each box here is alone in its class.

    It expands nothing and knows no unverified classes: it is given what counts.
    """
    hotcoco = pytest.importorskip("hotcoco")
    seen = set()
    alone = [row for row in case["boxes"] if not ((row[0], row[1]) in seen or seen.add((row[0], row[1])))]
    flat = {"LabelName": "/x/root", "Subcategory": [{"LabelName": label} for label in LABELS]}
    case = {**case, "boxes": alone or [["img00", "/other", 0, 1, 0, 1, 0]], "hierarchy": flat}
    files, results = write_case(tmp_path, case)
    table = open_images_table(files)
    truth, verified = expanded(table)
    found = countable_detections(table, results, verified)
    images = [{"id": row + 1, "width": 1000, "height": 1000, "file_name": ""} for row in range(len(table))]

    def records(rows, **more):
        for k, (image, label, (x1, y1, x2, y2)) in enumerate(zip(rows.image, rows.label, 1000 * rows.corners)):
            bbox = [float(value) for value in (x1, y1, x2 - x1, y2 - y1)]
            record = {"id": k + 1, "image_id": int(image) + 1, "category_id": int(label) + 1, "bbox": bbox}
            yield {**record, **{key: column[k].item() for key, column in more.items()}, "area": bbox[2] * bbox[3]}

    categories = [{"id": k + 1, "name": label} for k, label in enumerate(LABELS)]
    annotations = [{**one, "iscrowd": 0} for one in records(truth, is_group_of=truth.is_group_of)]
    if not annotations or not len(found.image):
        return
    ground_truth = hotcoco.COCO({"images": images, "annotations": annotations, "categories": categories})
    detections = ground_truth.load_res(list(records(found, score=found.score)))
    evaluation = hotcoco.COCOeval(ground_truth, detections, "bbox", oid_style=True)
    evaluation.run()
    theirs = evaluation.results(per_class=True)["per_class"]
    ours = results_ap(table, results)
    for label, ap in zip(LABELS, ours):
        if not np.isnan(ap):
            assert theirs[label] == pytest.approx(ap, abs=1e-6), label
