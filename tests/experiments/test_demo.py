"""The demonstration: where it starts, its table, and which images and objects its picture shows."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

import eql_d2.modeling  # noqa: F401
from eql_d2.config import load_config
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.experiments import demo
from eql_d2.experiments.comparison import collect_lines
from eql_d2.experiments.spec import load_specification
from eql_d2.visualization.dataset import AnnotatedSet
from eql_d2.visualization.detections import Detections
from eql_d2.weights import in_8_bits, read_checkpoint, write_checkpoint
from tests.conftest import ROOT

RECORDS = ROOT / "docs/results/mini.jsonl"
SPECIFICATION = load_specification(demo.TABLE)


@pytest.mark.parametrize("row", SPECIFICATION.rows, ids=lambda row: row.name)
def test_every_method_starts_from_what_the_shipped_weights_hold(row, tmp_path):
    frequency = tmp_path / "frequency.json"
    CategoryFrequency.from_counts([300] * 60, num_images=1500).save(frequency)
    cfg = load_config(str(row.config), ["MODEL.DEVICE", "cpu", "MODEL.LONG_TAIL.FREQUENCY", str(frequency), *row.opts])
    assert (ROOT / cfg.MODEL.WEIGHTS).resolve() == demo.START.resolve()
    assert cfg.MODEL.LONG_TAIL.TRAINABLE == "classifier"
    parameters = {name: tuple(v.shape) for name, v in build_model(cfg).state_dict().items() if v.is_floating_point()}
    shipped = {name: tuple(v.shape) for name, v in read_checkpoint(demo.START)["model"].items()}
    differing = {name for name in {*parameters, *shipped} if parameters.get(name) != shipped.get(name)}
    # A classifier that goes on fits; one that starts anew need not.
    kept = cfg.MODEL.LONG_TAIL.INIT_CLASSIFIER == "keep"
    assert all(".classifier_loss." in name or (".cls_score." in name and not kept) for name in differing), differing


def test_the_shipped_weights_are_small_and_finite():
    assert demo.START.stat().st_size < 6e6
    model = read_checkpoint(demo.START)["model"]
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in model.values())
    # Columns of K + 1 logits: the classifier is part of it.
    assert model["roi_heads.box_predictor.cls_score.weight"].shape == (61, 256)


def test_numbers_in_8_bits_are_read_as_what_they_stand_for(tmp_path):
    generator = torch.Generator().manual_seed(0)
    filters = torch.randn(5, 3, 3, 3, generator=generator) * torch.tensor([1e-3, 1.0, 50.0, 0.0, 1.0]).view(5, 1, 1, 1)
    whole = torch.arange(6).reshape(2, 3).to(torch.int8)  # of the model, not of the form
    content = {**in_8_bits("conv", filters), **in_8_bits("bias", torch.tensor([0.1, 300.0])), "whole": whole}
    assert content["conv"].dtype == torch.int8
    write_checkpoint(tmp_path / "x.safetensors", {"model": content})
    read = read_checkpoint(tmp_path / "x.safetensors")["model"]
    assert set(read) == {"conv", "bias", "whole"} and torch.equal(read["whole"], whole)
    assert torch.equal(read["bias"], torch.tensor([0.1, 300.0]))
    step = filters.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
    assert ((read["conv"] - filters).abs() <= step * 0.501 + 1e-12).all()


def test_the_caption_says_what_three_seeds_support(monkeypatch, tmp_path):
    """Its numbers are those of docs/results/mini.jsonl, and only supported differences are called gains or losses."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))  # without the data: they may be another version's

    def differences(table, name, *metrics):
        line = next(line for line in collect_lines(table, RECORDS) if line.row.name == name)
        assert len(line.seeds) == 3
        cells = [line.cells[f"segm/{metric}"] for metric in metrics]
        return [f"{abs(cell.difference):.1f}" if cell.supported else "none" for cell in cells]

    *_, of_eql, of_others = SPECIFICATION.caveats
    eql = differences(SPECIFICATION, "eql", "AP", "APc", "APr", "APf")
    words = "EQL gains {} mask AP over sigmoid, {} in common classes, {} in rare ones, and loses {} in frequent ones"
    assert words.format(*eql) in of_eql
    methods = load_specification("mini_methods")
    (bags, bags_rare), (acsl, acsl_rare) = (differences(methods, name, "AP", "APr") for name in ("bags", "acsl"))
    assert f"gains of {bags} and {acsl} mask AP" in of_others
    assert f"{bags_rare} and {acsl_rare} in rare classes" in of_others


def test_the_table_has_every_method_and_its_difference_to_its_baseline():
    results = {
        row.name: {
            kind: {metric: float(i) if metric != "APr" else None for metric in demo.METRICS} for kind in demo.KINDS
        }
        for i, row in enumerate(SPECIFICATION.rows)
    }
    lines = demo.comparison_table(SPECIFICATION, results).splitlines()
    labels = {row.name: row.label for row in SPECIFICATION.rows}
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}
    names = list(labels)
    for row in SPECIFICATION.rows:
        value = f"{names.index(row.name)}.0"
        assert rows[row.label] == [value, "n/a", value, value] * 2
        if row.baseline not in ("", row.name):
            difference = f"{names.index(row.name) - names.index(row.baseline):+.1f}"
            assert rows[f"{row.label} - {labels[row.baseline]}"] == [difference, "n/a", difference, difference] * 2


def test_the_picture_shows_the_images_with_most_rare_then_common_objects_found(tmp_path):
    """Six images with one rare and one common object each; what is found of them decides, not what is there."""
    boxes = {1: [4, 4, 20, 20], 2: [40, 40, 20, 20]}
    categories = [{"id": 1, "name": "seldom", "frequency": "r"}, {"id": 2, "name": "usual", "frequency": "c"}]
    images, annotations = [], []
    for i in range(1, 7):
        name = f"{i}.png"
        cv2.imwrite(str(tmp_path / name), np.full((64, 64, 3), 20 * i, np.uint8))
        record = {"id": i, "file_name": name, "height": 64, "width": 64}
        images.append({**record, "neg_category_ids": [], "not_exhaustive_category_ids": []})
        for category_id, box in boxes.items():
            one = {"id": len(annotations) + 1, "image_id": i, "category_id": category_id, "bbox": box, "area": 400}
            left, top, right, bottom = box[0], box[1], box[0] + box[2], box[1] + box[3]
            annotations.append({**one, "segmentation": [[left, top, right, top, right, bottom, left, bottom]]})
    for category in categories:
        category.update(image_count=5, instance_count=5)
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))

    def result(image_id, category_id):
        return {"image_id": image_id, "category_id": category_id, "bbox": boxes[category_id], "score": 0.5}

    wrong = {"image_id": 1, "category_id": 1, "bbox": [30, 4, 20, 20], "score": 0.9}
    found = {"a": [result(5, 1), result(5, 2), result(3, 1), wrong], "b": [result(6, 2), result(5, 1), result(2, 2)]}
    annotated = AnnotatedSet.from_files(tmp_path / "val.json", tmp_path)
    models = []
    for name, detections in found.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(detections))
        models.append(Detections.read(tmp_path / f"{name}.json", name, annotated))
    demo.draw_detections(annotated, models, tmp_path / "picture.jpg")
    picture = cv2.imread(str(tmp_path / "picture.jpg"))
    side = demo.PANEL_SIZE + 4
    assert picture.shape == (3 * side, 3 * side, 3)
    # Image 5 (two rare, one common), then 3 (one rare), then 2 (one common, before 6); told by their gray.
    greys = [np.median(picture[side * i : side * (i + 1), side * 2 + side // 2 :]) for i in range(3)]
    np.testing.assert_allclose(greys, [100, 60, 40], atol=2)
