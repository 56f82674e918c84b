"""What a segmentation is, told without decoding it, against what decoding says."""

import json

import pytest

from eql_d2.data.annotations import Annotation, decode_segmentation, is_plainly_polygons, is_valid_polygon
from eql_d2.data.lvis import load_lvis
from tests.data.conftest import annotation

TRIANGLE = [1, 2.5, 9, -2, 9, 9]
SEGMENTATIONS = [
    [TRIANGLE],
    [TRIANGLE, TRIANGLE + [3, 4]],
    [TRIANGLE] * 5,
    [TRIANGLE[:4]],
    [TRIANGLE + [1]],
    [TRIANGLE, TRIANGLE[:5]],
    [TRIANGLE[:4], TRIANGLE],
    [[], TRIANGLE],
    [TRIANGLE, []],
    [[]],
    [],
    None,
    {"size": [4, 4], "counts": "04c0"},
]
NO_SEGMENTATIONS = ["none", 3, [3], TRIANGLE, [[TRIANGLE]], [TRIANGLE, 3], [["1", 2, 3, 4, 5, 6]], [[True] * 6]]
NO_SEGMENTATIONS += [[[None] * 6], {"a": 1}, [{"a": 1}]]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
def test_plain_polygons_are_those_that_decoding_finds_valid(segmentation, indent):
    encoded = json.dumps(segmentation, indent=indent).encode()
    decoded = decode_segmentation(Annotation(1, 1, 1, (0, 0, 1, 1), encoded), "a.json")
    valid = isinstance(decoded, list) and all(map(is_valid_polygon, decoded))
    assert is_plainly_polygons(encoded) == valid


@pytest.mark.parametrize("segmentation", NO_SEGMENTATIONS)
def test_what_is_no_list_of_polygons_is_never_taken_for_one(segmentation):
    assert not is_plainly_polygons(json.dumps(segmentation).encode())


def test_polygons_in_every_spelling_are_read_as_floats(save, content):
    text = "[[1, 2.5, 1e1, 2E0,\t-3.0, 0.125],\n [1, 1, 2, 1, 2, 2]]"
    content["annotations"] = [annotation(1, 12, 4), annotation(2, 12, 4, segmentation="HERE"), annotation(3, 25, 4)]
    del content["annotations"][2]["segmentation"]
    records = load_lvis(save(json.dumps(content).replace('"HERE"', text)), "images")
    first, second = records[0]["annotations"]
    assert first["segmentation"] == annotation(1, 12, 4)["segmentation"]
    assert second["segmentation"] == [[1.0, 2.5, 10.0, 2.0, -3.0, 0.125], [1.0, 1.0, 2.0, 1.0, 2.0, 2.0]]
    assert {type(value) for polygon in second["segmentation"] for value in polygon} == {float}
    assert "segmentation" not in records[1]["annotations"][0]
