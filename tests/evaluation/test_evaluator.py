"""Streaming, resuming, several processes, COCO sets and sets without annotations."""

import csv
import json
import logging
import multiprocessing
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluators, inference_on_dataset, print_csv_format

from eql_d2.config import AP_FIXED_DETECTIONS, get_cfg, load_config
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.evaluation import COCOEvaluator, LVISEvaluator, build_evaluator, evaluate, evaluate_results
from eql_d2.evaluation.build import fixed_detections_per_image
from tests.conftest import full_disk
from tests.evaluation.helpers import CATEGORY_IDS, Replay, make_detections, make_ground_truth, make_loader


@pytest.fixture
def scene(tmp_path):
    """A registered LVIS-format set with ids that have gaps, and detections with float32 scores."""
    rng = np.random.default_rng(0)
    ground_truth = make_ground_truth(rng, num_images=6)
    detections = make_detections(rng, ground_truth, per_image=20)
    for record in detections:
        record["score"] = float(np.float32(record["score"]))
    path = tmp_path / "gt.json"
    path.write_text(json.dumps(ground_truth))
    name = f"evaluator_{tmp_path.name}"
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=[category["name"] for category in ground_truth["categories"]],
        thing_dataset_id_to_contiguous_id={category_id: k for k, category_id in enumerate(CATEGORY_IDS)},
    )
    yield name, ground_truth, detections
    MetadataCatalog.remove(name)


def percent(ground_truth, detections, task, **options):
    """Return the metrics that an evaluator should report."""
    return {
        name: 100 * value for name, value in evaluate_results(ground_truth, detections, task, **options).metrics.items()
    }


def assert_same(results, ground_truth, detections, tasks=("bbox", "segm"), **options):
    assert list(results) == list(tasks)
    for task in tasks:
        expected = percent(ground_truth, detections, task, **options)
        assert list(results[task])[: len(expected)] == list(expected)
        actual = [results[task][name] for name in expected]
        np.testing.assert_allclose(actual, list(expected.values()), rtol=0, atol=1e-10)


@pytest.mark.parametrize("backend", ["hotcoco", "lvis"])
def test_results_and_files(scene, tmp_path, backend, caplog):
    name, ground_truth, detections = scene
    counts = CategoryFrequency.from_counts(range(8), range(10, 18), num_images=50, groups="rrrccfff")
    evaluator = LVISEvaluator(name, str(tmp_path / "out"), frequency=counts, fixed=True, backend=backend)
    model = Replay(detections).train()
    results = evaluate(model, make_loader(ground_truth)[0], evaluator)
    assert model.training
    assert_same(results, ground_truth, detections)
    fixed = percent(ground_truth, detections, "segm", fixed=True)
    assert results["segm"]["APr-fixed"] == pytest.approx(fixed["APr"])
    submission = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    assert len(submission) == len(detections)
    assert set(submission[0]) == {"image_id", "category_id", "bbox", "score", "segmentation"}
    assert_same({task: percent(ground_truth, submission, task) for task in ("bbox", "segm")}, ground_truth, detections)
    with (tmp_path / "out" / "per_category_ap.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == list("rrrccfff")
    assert [int(row["train_images"]) for row in rows] == list(range(8))
    assert [int(row["train_instances"]) for row in rows] == list(range(10, 18))
    assert {"bbox_AP", "segm_AP", "bbox_AP-fixed", "segm_AP-fixed"} < set(rows[0]) and rows[-1]["segm_AP"] == ""
    assert json.loads((tmp_path / "out" / "per_category_ap.json").read_text())[-1]["segm_AP"] is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".lock",
        "lvis_instances_results.json",
        "per_category_ap.csv",
        "per_category_ap.json",
    ]
    print_csv_format(results)


def test_models_are_asked_not_to_paste_masks(scene):
    name, ground_truth, detections = scene
    model, (loader, _) = Replay(detections), make_loader(ground_truth)
    asked = []
    evaluate(lambda batch: asked.extend(batch) or model(batch), loader, LVISEvaluator(name))
    assert [image["paste_masks"] for image in asked] == [False] * len(ground_truth["images"])
    evaluate(lambda batch: asked.extend(batch) or model(batch), loader, DatasetEvaluators([]))
    assert "paste_masks" not in asked[-1]  # any other evaluator gets what it would from Detectron2


def test_detectron2_loop_temporary_folder_and_cap(scene):
    name, ground_truth, detections = scene
    evaluator = LVISEvaluator(name, max_detections=7, tasks=("bbox",))
    results = inference_on_dataset(Replay(detections), make_loader(ground_truth)[0], evaluator)
    assert_same(results, ground_truth, detections, ("bbox",), max_detections=7)


@pytest.mark.parametrize("half_a_line", [False, True])
def test_resume_after_interruption(scene, tmp_path, half_a_line):
    name, ground_truth, detections = scene
    loader, read = make_loader(ground_truth)
    with pytest.raises(KeyboardInterrupt):
        evaluate(Replay(detections, budget=4), loader, LVISEvaluator(name, str(tmp_path)))
    if half_a_line:
        path = tmp_path / "predictions" / "rank0.jsonl"
        path.write_bytes(path.read_bytes()[:-9])
    read.clear()
    model = Replay(detections)
    results = evaluate(model, loader, LVISEvaluator(name, str(tmp_path)), resume=True)
    remaining = [image["id"] for image in ground_truth["images"]][3 if half_a_line else 4 :]
    assert model.seen == remaining and read == remaining
    assert_same(results, ground_truth, detections)


def test_resume_with_any_loader(scene, tmp_path):
    name, ground_truth, detections = scene
    batches = [[{"image_id": image["id"]} for image in ground_truth["images"][i : i + 2]] for i in (0, 2, 4)]
    with pytest.raises(KeyboardInterrupt):
        evaluate(Replay(detections, budget=4), batches, LVISEvaluator(name, str(tmp_path)))
    model = Replay(detections)
    assert_same(evaluate(model, batches, LVISEvaluator(name, str(tmp_path)), resume=True), ground_truth, detections)
    assert len(model.seen) == 2


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_store_costs_the_damaged_images_alone(scene, tmp_path, seed):
    """Bytes are changed, cut out or put in anywhere; what is not damaged is used, what is is done again."""
    name, ground_truth, detections = scene
    with pytest.raises(KeyboardInterrupt):
        evaluate(Replay(detections, budget=5), make_loader(ground_truth)[0], LVISEvaluator(name, str(tmp_path)))
    path = tmp_path / "predictions" / "rank0.jsonl"
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    first_line = content.index(b"\n") + 1
    place = int(rng.integers(first_line, len(content) - 100))
    if seed < 2:
        content[place] ^= 1 << seed
    elif seed < 4:
        del content[place : place + 60]
    else:
        content[place:place] = rng.bytes(80) + b"\n" * (seed == 5)
    path.write_bytes(content)
    model = Replay(detections)
    results = evaluate(model, make_loader(ground_truth)[0], LVISEvaluator(name, str(tmp_path)), resume=True)
    assert 2 <= len(model.seen) <= 4
    assert_same(results, ground_truth, detections)
    assert len(json.loads((tmp_path / "lvis_instances_results.json").read_text())) == len(detections)


def test_predictions_that_are_lost_meanwhile(scene, tmp_path):
    """Nobody prints AP of a part: not where the store was deleted, nor where the loader left an image out."""
    name, ground_truth, detections = scene

    class Intruder(Replay):
        def forward(self, batch):
            if len(self.seen) == 4:
                (tmp_path / "predictions" / "rank0.jsonl").write_bytes(b"")
            return super().forward(batch)

    (tmp_path / "lvis_instances_results.json").write_text("earlier")
    with pytest.raises(InputError, match=r"predictions.* lacks the predictions of \d images that were processed"):
        evaluate(Intruder(detections), make_loader(ground_truth)[0], LVISEvaluator(name, str(tmp_path)))
    first, *others = [[{"image_id": image["id"]}] for image in ground_truth["images"]]
    with pytest.raises(InputError, match=r"predictions of 5 of the 6 images of .*\(image 11 is missing\)"):
        evaluate(Replay(detections), others, LVISEvaluator(name, str(tmp_path)))
    with pytest.raises(InputError, match=r"image 99 is not one of it"):
        evaluate(Replay(detections), [first, *others, [{"image_id": 99}]], LVISEvaluator(name, str(tmp_path)))
    assert (tmp_path / "lvis_instances_results.json").read_text() == "earlier"
    assert_same(
        evaluate(Replay(detections), [first, *others], LVISEvaluator(name, str(tmp_path))), ground_truth, detections
    )


def test_two_evaluations_in_one_folder(scene, tmp_path):
    """The second, a process of its own, is refused while the first runs; both are right one after the other."""
    name, ground_truth, detections = scene
    script = (
        "import sys\n"
        "from detectron2.data import MetadataCatalog\n"
        "from eql_d2.evaluation import LVISEvaluator\n"
        "MetadataCatalog.get('second').json_file = sys.argv[1]\n"
        "LVISEvaluator('second', sys.argv[2]).reset()\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "gt.json"), str(tmp_path)]

    class Disturbed(Replay):
        def forward(self, batch):
            if len(self.seen) == 3:
                self.second = subprocess.run(command, capture_output=True, text=True)
            return super().forward(batch)

    model = Disturbed(detections)
    results = evaluate(model, make_loader(ground_truth)[0], LVISEvaluator(name, str(tmp_path)))
    assert f"InputError: {tmp_path} is in use by process {os.getpid()}" in model.second.stderr
    assert_same(results, ground_truth, detections)
    assert subprocess.run(command, capture_output=True).returncode == 0


def test_a_full_disk(scene, tmp_path):
    """One sentence wherever it gets full; what was finished is gone on with."""
    name, ground_truth, detections = scene
    out = tmp_path / "out"
    model = Replay(detections)
    with full_disk(8000), pytest.raises(InputError, match=r"rank0.jsonl cannot be written \(File too large\); free"):
        evaluate(model, make_loader(ground_truth)[0], LVISEvaluator(name, str(out)), resume=True)
    finished = len(model.seen) - 1
    assert 0 < finished < 5
    batches = [[{"image_id": image["id"]}] for image in ground_truth["images"]]
    with pytest.raises(KeyboardInterrupt):  # when all images are done
        evaluate(Replay(detections, budget=6 - finished), [*batches, batches[-1]], LVISEvaluator(name, str(out)), True)
    with full_disk(9000), pytest.raises(InputError, match=r"lvis_instances_results.json cannot be written \(File too"):
        evaluate(Replay(detections), batches, LVISEvaluator(name, str(out)), resume=True)
    assert sorted(path.name for path in out.iterdir()) == [".lock", "predictions"]
    model = Replay(detections)
    results = evaluate(model, make_loader(ground_truth)[0], LVISEvaluator(name, str(tmp_path / "out")), resume=True)
    assert model.seen == []
    assert_same(results, ground_truth, detections)


@pytest.mark.parametrize("what", ["weights", "fingerprint", "no resume"])
def test_stale_predictions_are_not_used(scene, tmp_path, what):
    name, ground_truth, detections = scene
    with pytest.raises(KeyboardInterrupt):
        evaluate(Replay(detections[::2], budget=4), make_loader(ground_truth)[0], LVISEvaluator(name, str(tmp_path)))
    model = Replay(detections, weight=2.0 if what == "weights" else 1.0)
    evaluator = LVISEvaluator(name, str(tmp_path), fingerprint="other" if what == "fingerprint" else "")
    results = evaluate(model, make_loader(ground_truth)[0], evaluator, resume=what != "no resume")
    assert len(model.seen) == 6
    assert_same(results, ground_truth, detections)


def test_set_without_annotations(scene, tmp_path, caplog):
    name, ground_truth, detections = scene
    without = {key: value for key, value in ground_truth.items() if key != "annotations"}
    for content in (without, {**ground_truth, "annotations": []}):
        (tmp_path / "gt.json").write_text(json.dumps(content, indent=1))
        with caplog.at_level(logging.WARNING, "detectron2.eql_d2.evaluation"):
            evaluator = LVISEvaluator(name, str(tmp_path))
            assert evaluate(Replay(detections), make_loader(ground_truth)[0], evaluator) == {}
        assert "has no annotations, so no AP is computed" in caplog.text
        assert len(json.loads((tmp_path / "lvis_instances_results.json").read_text())) == len(detections)
        caplog.clear()


def test_no_detections_and_no_masks(scene, tmp_path, caplog):
    name, ground_truth, detections = scene
    results = evaluate(Replay([]), make_loader(ground_truth)[0], LVISEvaluator(name, str(tmp_path)))
    assert results["bbox"]["AP"] == results["segm"]["AP"] == 0
    boxes = [{key: value for key, value in record.items() if key != "segmentation"} for record in detections]
    results = evaluate(Replay(boxes), make_loader(ground_truth)[0], LVISEvaluator(name, str(tmp_path)))
    assert_same(results, ground_truth, detections, ("bbox",))


def test_metadata_without_id_map(scene, tmp_path):
    name, ground_truth, detections = scene
    MetadataCatalog.get(name).thing_dataset_id_to_contiguous_id.clear()
    results = evaluate(Replay(detections), make_loader(ground_truth)[0], LVISEvaluator(name, str(tmp_path)))
    assert_same(results, ground_truth, detections)


def test_wrong_training_set_and_missing_json(scene, tmp_path):
    name, _, _ = scene
    with pytest.raises(InputError, match=r"3 categories.*has 8"):
        LVISEvaluator(name, frequency=CategoryFrequency.from_counts([1, 2, 3], num_images=9))
    with pytest.raises(InputError, match="no such file"):
        LVISEvaluator(name, json_file=str(tmp_path / "absent.json"))


def test_build_evaluator(scene, tmp_path, caplog):
    name, ground_truth, detections = scene
    MetadataCatalog.get(name).evaluator_type = "lvis"
    cfg = get_cfg()
    cfg.TEST.DETECTIONS_PER_IMAGE = 9
    cfg.MODEL.LONG_TAIL.EVALUATOR = "lvis"
    evaluator = build_evaluator(cfg, name, str(tmp_path))
    assert type(evaluator) is LVISEvaluator and evaluator.backend == "lvis" and evaluator.tasks == ("bbox",)
    results = evaluate(Replay(detections), make_loader(ground_truth)[0], evaluator)
    assert_same(results, ground_truth, detections, ("bbox",), max_detections=9)
    assert (tmp_path / "lvis_instances_results.json").is_file()
    cfg.MODEL.LONG_TAIL.AP_FIXED = cfg.MODEL.MASK_ON = True
    cfg.TEST.DETECTIONS_PER_IMAGE = 1000
    with caplog.at_level(logging.WARNING, "detectron2.eql_d2.evaluation"):
        evaluator = build_evaluator(cfg, name, str(tmp_path))
    assert "need at least TEST.DETECTIONS_PER_IMAGE 13334" in caplog.text  # 8 classes with 10,000 each, 6 images
    assert evaluator.fixed and evaluator.max_detections == 300 and evaluator.tasks == ("bbox", "segm")
    caplog.clear()
    cfg.TEST.DETECTIONS_PER_IMAGE = 13334
    assert build_evaluator(cfg, name, str(tmp_path)).max_detections == 300
    assert "AP-fixed" not in caplog.text
    cfg.MODEL.LONG_TAIL.AP_FIXED = False
    assert build_evaluator(cfg, name, str(tmp_path)).max_detections == 300, "whatever the model returns"
    with pytest.raises(InputError, match="evaluator_type None"):
        build_evaluator(cfg, "never registered", str(tmp_path))


@pytest.mark.parametrize(
    "before, after",
    [((300, 300), (3000, 300)), ((100, 300), (3000, 100)), ((60, 15), (60, 15)), ((5000, 300), (5000, 300))],
)
def test_ap_fixed_makes_the_model_return_enough(before, after):
    """Pairs of TEST.DETECTIONS_PER_IMAGE and AP_CAP: AP counts what it would count without AP_FIXED."""
    opts = ["TEST.DETECTIONS_PER_IMAGE", before[0], "MODEL.LONG_TAIL.AP_CAP", before[1], "MODEL.LONG_TAIL.AP_FIXED"]
    plain, fixed = load_config("", [*opts, False]), load_config("", [*opts, True])
    assert before == (plain.TEST.DETECTIONS_PER_IMAGE, plain.MODEL.LONG_TAIL.AP_CAP)
    assert after == (fixed.TEST.DETECTIONS_PER_IMAGE, fixed.MODEL.LONG_TAIL.AP_CAP)
    assert min(before) == min(after)


def test_enough_for_both_versions_of_lvis():
    assert fixed_detections_per_image(1230, 5000) == 2460 and fixed_detections_per_image(1203, 19809) == 608
    assert AP_FIXED_DETECTIONS >= 2460


def test_coco_set(scene, tmp_path):
    name, ground_truth, detections = scene
    MetadataCatalog.get(name).evaluator_type = "coco"
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    frequency = CategoryFrequency.from_counts([1, 5, 9, 20, 60, 200, 300, 400], num_images=500)
    evaluator = build_evaluator(cfg, name, str(tmp_path), frequency)
    assert type(evaluator) is COCOEvaluator
    results = evaluate(Replay(detections), make_loader(ground_truth)[0], evaluator)
    letters = dict(zip(CATEGORY_IDS, "rrrccfff"))
    options = {"protocol": "coco", "max_detections": 100, "groups": letters}
    assert_same(results, ground_truth, detections, **options)
    assert (tmp_path / "coco_instances_results.json").is_file() and (tmp_path / "per_category_ap.csv").is_file()


def run_rank(rank, folder):
    """One of three processes that go on with an evaluation: two images are left for rank 1, none for rank 2."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/init", rank=rank, world_size=3)
    ground_truth = json.loads((folder / "gt.json").read_text())
    detections = json.loads((folder / "detections.json").read_text())
    MetadataCatalog.get("ranks").json_file = str(folder / "gt.json")
    evaluator = LVISEvaluator("ranks", str(folder / "out"))
    images = [{"image_id": image["id"]} for image in ground_truth["images"]]
    model = Replay(detections, weight=1.0 + rank)  # as buffers may be that processes do not share
    results = evaluate(model, [[image] for image in (images[:4], images[4:], [])[rank]], evaluator, resume=True)
    (folder / f"results{rank}.json").write_text(json.dumps([results, model.seen]))
    # Without an output folder: a temporary one that all share.
    everything = [[image] for image in images[rank::3]]
    np.testing.assert_equal(evaluate(Replay(detections), everything, LVISEvaluator("ranks")), results)
    dist.destroy_process_group()


def test_processes(scene, tmp_path):
    """Three processes, one without an image, go on after a run on more; the results file is that of one process."""
    name, ground_truth, detections = scene
    alone = evaluate(Replay(detections), make_loader(ground_truth)[0], LVISEvaluator(name, str(tmp_path / "alone")))
    (tmp_path / "detections.json").write_text(json.dumps(detections))
    MetadataCatalog.get("ranks").json_file = str(tmp_path / "gt.json")
    with pytest.raises(KeyboardInterrupt):
        loader = make_loader(ground_truth)[0]
        evaluate(Replay(detections, budget=3), loader, LVISEvaluator("ranks", str(tmp_path / "out")))
    predictions = tmp_path / "out" / "predictions"
    (predictions / "rank0.jsonl").rename(predictions / "rank5.jsonl")
    # The server imports once what each process needs; it starts before the evaluator's threads exist in it.
    multiprocessing.set_forkserver_preload(["eql_d2.evaluation.evaluator", "tests.evaluation.test_evaluator"])
    torch.multiprocessing.start_processes(run_rank, (tmp_path,), nprocs=3, start_method="forkserver")
    outcomes = [json.loads((tmp_path / f"results{rank}.json").read_text()) for rank in range(3)]
    assert [len(seen) for _, seen in outcomes] == [1, 2, 0]
    assert outcomes[1][0] == outcomes[2][0] == {}
    np.testing.assert_equal(outcomes[0][0], {task: dict(values) for task, values in alone.items()})
    files = [tmp_path / folder / "lvis_instances_results.json" for folder in ("alone", "out")]
    assert files[0].read_bytes() == files[1].read_bytes()
