"""What a segmentation is, told without decoding it, against what decoding says; values that are refused by all."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest

from eql_d2.data import segmentation as masks
from eql_d2.data.check import check_dataset
from eql_d2.data.coco import load_coco
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.lvis import load_lvis
from eql_d2.errors import InputError
from eql_d2.evaluation.backends import evaluate_results
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
    {"size": [4, 4], "counts": "04<"},
]
NO_SEGMENTATIONS = ["none", 3, [3], TRIANGLE, [[TRIANGLE]], [TRIANGLE, 3], [["1", 2, 3, 4, 5, 6]], [[True] * 6]]
NO_SEGMENTATIONS += [[[None] * 6], {"a": 1}, [{"a": 1}]]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("segmentation", SEGMENTATIONS)
def test_plain_polygons_are_those_that_decoding_finds_valid(segmentation, indent):
    encoded = json.dumps(segmentation, indent=indent).encode()
    decoded = masks.decode(encoded, 4, 4)
    valid = isinstance(decoded, list) and all(map(masks.is_valid_polygon, decoded))
    assert masks.is_plainly_polygons(encoded) == valid


@pytest.mark.parametrize("segmentation", NO_SEGMENTATIONS)
def test_what_is_no_list_of_polygons_is_never_taken_for_one(segmentation):
    assert not masks.is_plainly_polygons(json.dumps(segmentation).encode())


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


@pytest.mark.parametrize("density", [0, 0.001, 0.05, 0.5, 1])
def test_compressed_run_lengths_expand_to_those_of_the_mask(density):
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 70), (70, 1), (37, 53)):
        mask = random.random((height, width)) < density
        counts = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
        lengths = masks.expand([counts])[0]
        values = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        assert np.array_equal(values.reshape(width, height).T, mask)
        masks.check_run_lengths([height, width], counts, height, width)
        masks.check_run_lengths([height, width], lengths.tolist(), height, width)


BAD_MASKS = {
    "size": ([5, 4], [20]),
    "a size of 10^9": ([10**9, 10**9], [16]),
    "a negative size": ([-4, -4], [16]),
    "too few": ([4, 4], [3, 4]),
    "too many": ([4, 4], [3, 14]),
    "negative": ([4, 4], [20, -4]),
    "a sum that wraps around": ([4, 4], [2**62, 2**62, 2**62, 2**62, 16]),
    "beyond 64 bits": ([4, 4], [2**64]),
    "none": ([4, 4], []),
    "no text": ([4, 4], ""),
    "text that does not fill it": ([4, 4], "04"),
    "text without an end": ([4, 4], "04`"),
    "text of other characters": ([4, 4], "04 <"),
    "text beyond ASCII": ([4, 4], "04\u00bc"),
    "text with a number of 40 bits": ([4, 4], "0" + "o" * 7 + "0"),
    "text with a negative number": ([4, 4], "0J"),
}
BIG = masks.MAX_COORDINATE


@pytest.mark.parametrize("what", BAD_MASKS)
def test_run_lengths_that_would_be_drawn_outside_their_mask(what):
    size, counts = BAD_MASKS[what]
    with pytest.raises(InputError):
        masks.decode(json.dumps({"size": size, "counts": counts}).encode(), 4, 4)


@pytest.mark.parametrize(
    "polygon",
    [[0, 0, BIG + 1, 0, 9, 9], [0, 0, float("nan"), 1, 2, 2], [0, 0, 5, 5, -float("inf"), 2], [0, 0, BIG, BIG] * 5],
)
def test_polygons_that_cannot_be_drawn(polygon):
    with pytest.raises(InputError, match=r"coordinate|outline"):
        masks.check_polygon(polygon)


def _set(kind, index=0, **values):
    return lambda content: content[kind][index].update(values)


WRONG_VALUES = {
    "image 30 has 0 in height": _set("images", height=0),
    "image 30 has -3 in width": _set("images", width=-3),
    "image 30 has 1000000000 in height": _set("images", height=10**9),
    "image 30 has 65535 x 65000 pixels": _set("images", height=65535, width=65000),
    "has 9223372036854775808 in id": _set("images", id=2**63),
    "image 30 has a file_name with the character NUL": _set("images", file_name="a\0.jpg"),
    "image 30 has a coco_url with the character NUL": _set("images", coco_url="http://a/b\0.jpg"),
    "category 9 has a name with the character NUL": _set("categories", name="a\0"),
    "category 9 has -1 in image_count": _set("categories", image_count=-1),
    "has 100000000000000000000 in id": _set("annotations", id=10**20),
    "annotation 1 has -1 in image_id": _set("annotations", image_id=-1),
    "annotation 1 has iscrowd 7": _set("annotations", iscrowd=7),
    "annotation 1 has 4 numbers in keypoints": _set("annotations", keypoints=[1, 2, 3, 4]),
    "annotation 1 has 1e\\+300 in keypoints": _set("annotations", keypoints=[1, 2, 1e300]),
}


@pytest.mark.parametrize("what", WRONG_VALUES)
def test_loader_counter_evaluation_and_check_refuse_the_same_values(save, content, what):
    WRONG_VALUES[what](content)
    path = save(content)
    for refuse in (
        lambda: load_lvis(path, "images"),
        lambda: load_coco(path, "images"),
        lambda: CategoryFrequency.from_json(path),
        lambda: evaluate_results(path, []),
    ):
        with pytest.raises(InputError, match=f"train.json: .*{what}"):
            refuse()
    findings = check_dataset(path, None).findings
    examples = next(found.examples for name, found in findings.items() if name.startswith("values that nothing"))
    assert len(examples) == 1


@pytest.mark.parametrize(
    "text", ['{"x": ' + "[" * 10**5, '{"images": [], "categories": [], "x": ' + "[" * 10**5 + "]" * 10**5 + "}"]
)
def test_nesting_without_end(save, text):
    for read in (lambda path: load_lvis(path, "images"), lambda path: check_dataset(path, None)):
        with pytest.raises(InputError, match="nested without end"):
            read(save(text))


def test_coordinates_are_looked_at_when_an_image_is_asked_for(save, content):
    content["annotations"][4]["segmentation"] = [[0, 0, 10**7, 0, 5, 5]]
    records = load_lvis(save(content), "images")
    assert records[0]["image_id"] == 12 and records[2]["image_id"] == 30
    with pytest.raises(InputError, match=r"polygon of image 25 .* 1000000"):
        records[1]
