"""Galleries of data and of results, from a tiny data set."""

import json

import cv2
import pytest

from eql_d2.errors import InputError
from eql_d2.visualization import visualize_data, visualize_results
from tests.conftest import make_lvis_json, tiny_config
from tests.visualization.helpers import SCRIPT, Outline, browse, detection, make_run, rename_class


def files_of(lvis_folder):
    return {"annotations": lvis_folder / "train.json", "images": lvis_folder / "images"}


def config_file(lvis_folder, *opts):
    path = lvis_folder / "config.yaml"
    path.write_text(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "EQL", *opts).dump())
    return str(path)


def test_ground_truth_with_image_level_labels(lvis_folder, tmp_path):
    rename_class(lvis_folder, 3, SCRIPT)
    (first,) = visualize_data(tmp_path / "out", **files_of(lvis_folder), size=128)
    text = first.read_text()
    outline = Outline(text)
    assert SCRIPT not in text and "alert" in text
    assert outline.attributes("img", "alt")[0] == "1 object: 1 class_0 (frequent)"
    assert "Negative set (verified absent)" in text and "Not exhaustively annotated" in text
    pictures = sorted((tmp_path / "out/pictures").iterdir())
    assert len(pictures) == 4 and cv2.imread(str(pictures[0])).shape == (128, 128, 3)
    seen = browse(first, tmp_path, width=400)
    assert seen["images"] == 4 and seen["broken"] == 0 and seen["overflow"] <= 0


def test_only_one_class_and_at_most_so_many(lvis_folder, tmp_path):
    (first,) = visualize_data(tmp_path / "a", **files_of(lvis_folder), only="class_1", size=64)
    assert first.read_text().count("<article") == 2 and "objects of class_1 only" in first.read_text()
    (first,) = visualize_data(tmp_path / "b", **files_of(lvis_folder), max_images=3, per_page=2, seed=1, size=64)
    assert first.read_text().count("<article") == 2
    with pytest.raises(InputError, match="no image with an object to draw of --only rare"):
        visualize_data(tmp_path / "c", **files_of(lvis_folder), only="rare")


def test_coco_sets_have_no_image_level_labels(lvis_folder, tmp_path):
    content = make_lvis_json()
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for category in content["categories"]:
        del category["frequency"], category["image_count"]
    (lvis_folder / "train.json").write_text(json.dumps(content))
    (first,) = visualize_data(tmp_path / "out", **files_of(lvis_folder), size=64)
    assert "Negative set" not in first.read_text() and "class_0 (rare)" in first.read_text()


def test_a_config_s_data_sets_as_annotated_and_as_loaded(lvis_folder, tmp_path):
    config = config_file(lvis_folder)
    (first,) = visualize_data(tmp_path / "a", config_file=config, size=64)
    assert first.read_text().count("<article") == 4
    pages = [
        visualize_data(tmp_path / name, config_file=config, source="dataloader", seed=seed, size=64)[0].read_text()
        for name, seed in (("b", 3), ("c", 3))
    ]
    assert pages[0] == pages[1] and "as the training loader gives them" in pages[0] and "Negative set" in pages[0]
    pictures = [[path.read_bytes() for path in sorted((tmp_path / name / "pictures").iterdir())] for name in "bc"]
    assert pictures[0] == pictures[1] and len(pictures[0]) == 4


def test_what_does_not_fit_together_is_named(lvis_folder, tmp_path):
    with pytest.raises(InputError, match="--annotations needs --images"):
        visualize_data(tmp_path, annotations=lvis_folder / "train.json")
    with pytest.raises(InputError, match="--source dataloader needs --config-file"):
        visualize_data(tmp_path, **files_of(lvis_folder), source="dataloader")
    with pytest.raises(InputError, match="--max-images -1"):
        visualize_data(tmp_path, **files_of(lvis_folder), max_images=-1)
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(InputError, match="data set of the results is not known"):
        visualize_results([tmp_path / "results.json"], tmp_path / "out")


GOOD = [detection(i, (i - 1) % 2 + 1, 0.9) for i in (1, 2, 3, 4)]
BAD = [*GOOD[:2], detection(3, 4, 0.9), detection(4, 1, 0.8, box=(0, 0, 5, 5)), detection(4, 2, 0.3)]


def test_results_of_two_runs_side_by_side(lvis_folder, tmp_path):
    runs = [make_run(lvis_folder, "good", GOOD), make_run(lvis_folder, "bad", BAD, loss="SIGMOID")]
    first = visualize_results(runs, tmp_path / "out", sort="difference", size=64)
    text = first.read_text()
    Outline(text)
    order = [int(part.split(" ")[0]) for part in text.split("<h3>Image ")[1:]]
    assert order == [4, 3, 1, 2]  # the runs differ on 3 and 4; category 4 is verified absent in none of them
    assert "1 right (✓), 0 wrong (✗), 0 missed; F1 1.00" in text and "0 right (✓), 1 wrong (✗), 1 missed" in text
    assert "1 not judged" in text
    assert len(list((tmp_path / "out/pictures").iterdir())) == 12
    first = visualize_results(runs[1:], tmp_path / "b", conf_threshold=0.1, only="class_1", sort="worst", size=64)
    assert first.read_text().count("<article") == 2 and "classes: class_1 only" in first.read_text()
    with pytest.raises(InputError, match="--sort difference"):
        visualize_results(runs[:1], tmp_path / "c", sort="difference")


def test_results_files_with_annotations(lvis_folder, tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps(GOOD))
    first = visualize_results(
        [tmp_path / "mine.json"], tmp_path / "out", **files_of(lvis_folder), names=["<mine>"], best=1, size=64
    )
    text = first.read_text()
    assert "&lt;mine&gt;" in text and "the 1 best detections" in text and text.count("<article") == 4
