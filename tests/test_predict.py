"""``eql-d2 predict``: what it writes of a folder of images."""

import json

import cv2
import numpy as np
import pytest
import torch

from eql_d2 import Predictor
from eql_d2.commands import predict
from eql_d2.data.annotations import check_content, read_annotations
from eql_d2.data.builtin import register_from_config
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from tests.conftest import NUM_CLASSES, tiny_config, write_image


@pytest.fixture
def command(lvis_folder):
    """The arguments for an untrained model and 5 images of three sizes."""
    cfg = tiny_config(lvis_folder)
    register_from_config(cfg)
    (lvis_folder / "config.yaml").write_text(cfg.dump())
    torch.manual_seed(0)
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, lvis_folder / "model.pth")
    (lvis_folder / "new").mkdir()
    for i in range(5):
        write_image(lvis_folder / "new" / f"{i}.png", size=(48, 64, 80)[i % 3], seed=i)
    return ["--config-file", str(lvis_folder / "config.yaml"), "--input", str(lvis_folder / "new")]


def run(command, folder, *arguments):
    predict.main([*command, *map(str, arguments), "--opts", "MODEL.WEIGHTS", str(folder / "model.pth")])


def test_a_folder_in_every_format(lvis_folder, command, capsys):
    files = {name: lvis_folder / name for name in ("results.json", "set.json", "labels", "drawn")}
    flags = zip(("--results", "--coco", "--yolo", "--output"), files.values())
    run(command, lvis_folder, *(word for flag in flags for word in flag), "--batch-size", 2)
    assert "5 images in" in capsys.readouterr().out
    results = json.loads(files["results.json"].read_text())
    assert {record["image_id"] for record in results} == {1, 2, 3, 4, 5} and len(results) == 5 * 20
    assert {record["file_name"] for record in results} == {f"{i}.png" for i in range(5)}
    # Valid COCO, by this package's reader and by pycocotools.
    content = read_annotations(files["set.json"])
    check_content(content, files["set.json"])
    assert [(image.file_name, image.height) for image in content.images] == list(
        zip([f"{i}.png" for i in range(5)], (48, 64, 80, 48, 64))
    )
    assert [c.name for c in content.sorted_categories] == [f"class_{i}" for i in range(NUM_CLASSES)]
    from pycocotools.coco import COCO

    coco = COCO(str(files["set.json"]))
    assert coco.annToMask(coco.loadAnns([1])[0]).shape == (48, 48)
    # YOLO's boxes are the same, in shares of the image.
    assert (files["labels"] / "classes.txt").read_text().split("\n")[:2] == ["class_0", "class_1"]
    for image_id, size in ((1, 48), (3, 80)):
        of_image = [record for record in results if record["image_id"] == image_id]
        lines = [line.split() for line in (files["labels"] / f"{image_id - 1}.txt").read_text().splitlines()]
        assert [int(line[0]) + 1 for line in lines] == [record["category_id"] for record in of_image]
        boxes = np.array([line[1:] for line in lines], dtype=float)
        x, y, w, h = np.array([record["bbox"] for record in of_image]).T
        expected = np.stack([(x + w / 2) / size, (y + h / 2) / size, w / size, h / size], axis=1)
        np.testing.assert_allclose(boxes[:, :4], expected, atol=1e-6)
        np.testing.assert_allclose(boxes[:, 4], [record["score"] for record in of_image], atol=1e-6)
    assert len(list(files["drawn"].iterdir())) == 5
    # Masks are drawn the same where they were not pasted before.
    predictor = Predictor(str(lvis_folder / "config.yaml"), weights=str(lvis_folder / "model.pth"))
    image = cv2.imread(str(lvis_folder / "new" / "0.png"))
    (unpasted,) = predictor.predict([image], paste_masks=False)
    drawn = []
    for instances in (unpasted, predictor(image)):
        np.random.seed(0)  # of the colours
        drawn.append(predictor.draw(image, instances, unpasted.scores[5]))
    np.testing.assert_array_equal(*drawn)


def test_thresholds_hold_for_all_that_is_written(lvis_folder, command):
    run(command, lvis_folder, "--results", lvis_folder / "all.json")
    found = json.loads((lvis_folder / "all.json").read_text())
    category = found[0]["category_id"]
    least = sorted(record["score"] for record in found if record["category_id"] == category)[1]
    points = {"objects": 1, "precision": 1.0, "recall": 1.0, "source": "own"}
    values = [least if i + 1 == category else 1.01 for i in range(NUM_CLASSES)]
    classes = [{"id": i + 1, "name": f"class_{i}", "threshold": value, **points} for i, value in enumerate(values)]
    content = {"precision": None, "iou_type": "bbox", "iou": 0.5, "pooled": 0.5, "classes": classes}
    (lvis_folder / "thresholds.json").write_text(json.dumps(content))
    run(command, lvis_folder, "--results", lvis_folder / "some.json")
    some = json.loads((lvis_folder / "some.json").read_text())
    assert some == [record for record in found if record["category_id"] == category and record["score"] >= least]
    assert 0 < len(some) < len(found)
    run(command, lvis_folder, "--results", lvis_folder / "none.json", "--thresholds", "none")
    assert json.loads((lvis_folder / "none.json").read_text()) == found


def test_bad_input(lvis_folder, command, capsys):
    write_image(lvis_folder / "other.png")
    (lvis_folder / "other.png").rename(lvis_folder / "0.png")
    with pytest.raises(InputError, match=r"several images 0.png"):
        run([*command, str(lvis_folder / "0.png")], lvis_folder, "--output", lvis_folder / "drawn")
    (lvis_folder / "new" / "2.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2.png cannot be read as an image"):
        run(command, lvis_folder, "--results", lvis_folder / "results.json")
    with pytest.raises(SystemExit):
        run(command, lvis_folder)
    assert "nothing would be written" in capsys.readouterr().err
