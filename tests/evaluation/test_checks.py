"""Reading results a block at a time gives the same detections, and the same words, as reading them at once."""

import json
from itertools import chain
from typing import List

import msgspec
import pytest

from eql_d2.errors import InputError
from eql_d2.evaluation import checks
from eql_d2.evaluation.checks import Detection, read_detections


def record(number, **more):
    return {"image_id": number, "category_id": 2, "score": 0.25, "bbox": [1, 2, 3, 4], **more}


ODD = [
    record(1),
    record(2, note='a text with "}, {" in it'),
    record(3, segmentation={"size": [2, 2], "counts": "04"}),
    record(4, extra=[{"a": 1}, {"b": 2}, {"c": [{}, {}]}]),
    record(5, segmentation=[[1, 2, 3, 4, 5, 6.5]]),
]


@pytest.mark.parametrize("block", [1, 7, 64, 200, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_blocks(tmp_path, monkeypatch, block, indent):
    monkeypatch.setattr(checks, "_BLOCK", block)
    path = tmp_path / "results.json"
    for content in ([], ODD[:1], ODD, ODD[:1] * 20):
        path.write_text(json.dumps(content, indent=indent))
        expected = msgspec.json.decode(path.read_bytes(), type=List[Detection])
        assert list(chain.from_iterable(read_detections(path))) == expected
        in_memory = list(chain.from_iterable(read_detections(content)))
        assert [one.image_id for one in in_memory] == [one["image_id"] for one in content]


@pytest.mark.parametrize("block", [1, 64, 1 << 20])
@pytest.mark.parametrize("before", [1, 9])
def test_the_number_of_a_wrong_detection(tmp_path, monkeypatch, block, before):
    monkeypatch.setattr(checks, "_BLOCK", block)
    path = tmp_path / "results.json"
    path.write_text(json.dumps([record(k) for k in range(before)] + [record(before, score="high"), record(0)]))
    with pytest.raises(InputError) as info:
        list(read_detections(path))
    assert str(info.value) == (
        f"{path} is no json list of detections in the submission format: Expected `float`, got `str` - at "
        f"`$[{before}].score`."
    )


@pytest.mark.parametrize(
    "text", ["[" + 9 * '{"image_id": 1, "category_id": 1, "score": 1}, ', "", "[", '[{"a": 1}}, {}]']
)
@pytest.mark.parametrize("block", [1, 64, 1 << 20])
def test_incomplete_files(tmp_path, monkeypatch, block, text):
    monkeypatch.setattr(checks, "_BLOCK", block)
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"results.json is no"):
        list(read_detections(path))
