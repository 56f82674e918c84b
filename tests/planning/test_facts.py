"""Counts, names, sizes and what is missing, by hand."""

import json

import numpy as np
import pytest

from eql_d2.errors import InputError
from eql_d2.planning.facts import DatasetFacts, same_names
from tests.conftest import make_lvis_json


@pytest.fixture
def facts(lvis_folder):
    """Four images of 64 x 64 with a square of 30 pixels each; the last image and its object are changed."""
    content = make_lvis_json()
    content["images"][3]["file_name"] = "absent.png"
    content["images"][3]["height"] = 128
    content["annotations"][3] = {**content["annotations"][3], "bbox": [0, 0, 10, 40], "area": 400, "image_id": 1}
    del content["annotations"][3]["segmentation"]
    (lvis_folder / "train.json").write_text(json.dumps(content))
    return DatasetFacts.of(lvis_folder / "train.json", lvis_folder / "images")


def test_numbers(facts):
    assert facts.is_lvis and facts.has_image_labels and facts.empty == ["class_2", "class_3", "class_4"]
    assert facts.without_annotations == 1 and facts.missing_files == 1 and facts.with_mask == 0.75
    assert facts.objects.tolist() == [30, 20, 30, 30] and facts.objects_of_image.tolist() == [2, 1, 1, 0]
    assert facts.image_sides.tolist() == [[64, 64]] * 3 + [[64, 128]] and facts.imbalance == 1.0
    np.testing.assert_allclose(facts.resized(128, 1000), [60, 40, 60, 60])
    np.testing.assert_allclose(facts.resized(128, 64), [30, 20, 30, 30])
    assert facts.size_shares(np.array([31.9, 32, 96, 5000])) == [0.25, 0.25, 0.5]
    assert facts.findings[1] == "4 images, 5 categories, 4 annotations"


def test_nothing_to_plan(lvis_folder):
    content = {**make_lvis_json(), "annotations": []}
    (lvis_folder / "train.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="no annotated object"):
        DatasetFacts.of(lvis_folder / "train.json", lvis_folder / "images")


def test_names_that_may_be_one_class():
    names = ["Traffic light", "traffic_light", "traffic lights", "fork", "pork", "class 1", "class 10", "bass", "bas"]
    assert same_names(names) == [
        ("Traffic light", "traffic_light"),
        ("Traffic light", "traffic lights"),
        ("traffic_light", "traffic lights"),
    ]
    assert same_names(["screwdriver", "scrwdriver"]) == [("screwdriver", "scrwdriver")]
