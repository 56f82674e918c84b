"""The data set check, from the library and from the command line."""

import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from eql_d2.data import check
from eql_d2.data.check import check_dataset
from eql_d2.data.lvis import register_lvis
from eql_d2.errors import InputError
from tests.conftest import ROOT
from tests.data.conftest import SIZE, annotation


@pytest.fixture
def run_tool(monkeypatch, capsys):
    """Return a function that runs the tool and returns its exit status, output and error output."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["check_dataset.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(ROOT / "tools" / "check_dataset.py"), run_name="__main__")
        return (exit_.value.code, *capsys.readouterr())

    return run


def errors(report):
    return {finding.what: finding.examples for finding in report.findings.values() if finding.is_error}


@pytest.fixture
def clean(content):
    """The small json without the repeated negative id, and with an instance of each category."""
    content["images"][1]["neg_category_ids"] = [7, 1]
    content["annotations"] += [annotation(6, 25, 7), annotation(7, 25, 9)]
    for category in content["categories"]:
        category["frequency"] = "r"
    return content


def test_nothing_wrong(save, clean, coco_root):
    report = check_dataset(save(clean), coco_root)
    assert not report.findings and not report.has_errors
    assert report.lines()[0].endswith("train.json: LVIS format")
    assert report.lines()[1] == "4 images, 4 categories, 7 annotations"
    assert report.lines()[-1] == "No errors found."


def test_notes_are_no_errors(save, content, coco_root):
    report = check_dataset(save(content), coco_root)
    assert not report.has_errors
    assert {finding.what.split(" (")[0] for finding in report.findings.values()} == {
        "categories without an instance",
        "images with an id twice in neg_category_ids",
        "the categories have no frequency letters; r, c and f are derived from the counts",
    }


def test_an_annotation_that_is_there_twice_is_a_note(save, clean, coco_root):
    clean["annotations"].append({**clean["annotations"][0], "id": 99})
    report = check_dataset(save(clean), coco_root)
    (finding,) = report.findings.values()
    assert finding.what.startswith("annotations that repeat another one") and finding.examples == ["annotation 99"]
    assert not report.has_errors


WRONG = {
    "annotation ids that occur more than once": lambda c: c["annotations"][1].update(id=1),
    "image ids that occur more than once": lambda c: c["images"].append(c["images"][0]),
    "annotations whose category_id is not in 'categories'": lambda c: c["annotations"][1].update(category_id=2),
    "instances with a polygon of less than 3 points": lambda c: c["annotations"][1].update(segmentation=[[1, 2, 3, 4]]),
    "instances with a polygon that reaches out of its image": lambda c: c["annotations"][1].update(
        segmentation=[[1, 1, SIZE + 5, 1, 9, 9]]
    ),
    "boxes that reach out of their image": lambda c: c["annotations"][1].update(bbox=[60, 1, 20, 20]),
    "segmentations that are neither polygons nor a run-length mask of their image": lambda c: c["annotations"][
        1
    ].update(segmentation={"size": [10, 12], "counts": [120]}),
    "values that nothing can be computed with (mend them first: masks and images were not read)": lambda c: c["images"][
        1
    ].update(height=0),
    "images with a category in neg_category_ids that they also show": lambda c: c["images"][2].update(
        neg_category_ids=[1]
    ),
    "images with an id in neg_category_ids that is not in 'categories'": lambda c: c["images"][2].update(
        neg_category_ids=[2]
    ),
    "images with an id in not_exhaustive_category_ids that is not in 'categories'": lambda c: c["images"][2].update(
        not_exhaustive_category_ids=[2]
    ),
    "annotations without an area, which evaluation needs": lambda c: c["annotations"][1].pop("area"),
    "areas that are negative or no number": lambda c: c["annotations"][1].update(area=-2),
    "instances without a segmentation where others have one (MODEL.MASK_ON False trains on boxes)": lambda c: c[
        "annotations"
    ][2].update(segmentation=[]),
    "the json lists no category": lambda c: c.update(categories=[], annotations=[]),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_content(save, clean, coco_root, what):
    WRONG[what](clean)
    report = check_dataset(save(clean), coco_root)
    assert report.has_errors and what in errors(report)
    assert "There are errors." in report.lines()


def test_wrong_images(save, clean, coco_root):
    folder = coco_root / "val2017"
    (folder / "000000000025.jpg").unlink()
    (folder / "000000000030.jpg").write_bytes((folder / "000000000030.jpg").read_bytes()[:300])
    Image.fromarray(np.zeros((10, 20, 3), np.uint8)).save(folder / "000000000040.jpg")
    found = errors(check_dataset(save(clean), coco_root))
    assert found["image files that are not there"] == [str(folder / "000000000025.jpg")]
    assert "000000000030.jpg: " in found["image files that cannot be read"][0]
    assert (
        "000000000040.jpg: (20, 10), json (64, 64)"
        in found["images of another size than the json says (width, height)"][0]
    )
    assert not check_dataset(save(clean), None).has_errors, "without an image folder the images are not looked at"


def test_image_that_is_stored_on_its_side(save, clean, coco_root):
    image = Image.fromarray(np.zeros((30, 20, 3), np.uint8))
    exif = image.getexif()
    exif[274] = 6
    image.save(coco_root / "val2017" / "000000000012.jpg", exif=exif)
    clean["images"][1].update(height=20, width=30)
    for entry in clean["annotations"]:
        entry.update(bbox=[1, 1, 2, 2], segmentation=[[1, 1, 3, 1, 3, 3]])
    assert not check_dataset(save(clean), coco_root).has_errors


def test_number_of_examples(save, clean):
    for entry in clean["annotations"]:
        entry["category_id"] = 5
    report = check_dataset(save(clean), None, max_examples=2)
    lines = "\n".join(report.lines())
    assert "annotation 1: category_id 5" in lines and "and 5 more" in lines and "annotation 3:" not in lines


def test_published_counts(save, clean, monkeypatch):
    path = save(clean)
    found = str(errors(check_dataset(path, None, "lvis_v0.5_train")))
    assert "should have 1230 categories, found 4" in found
    assert "should have 57263 images, found 4" in found
    assert "should have 693958 annotations, found 7" in found
    monkeypatch.setitem(check.OFFICIAL_COUNTS, "small", (4, 4, 7))
    assert not check_dataset(path, None, "small").has_errors


@pytest.mark.parametrize("name, size, other", [("lvis_v0.5_val", 1203, "v1"), ("lvis_v1_val", 1230, "v0.5")])
def test_versions_mixed_up(save, clean, name, size, other):
    clean["categories"] = [{"id": i + 1, "name": str(i), "frequency": "r"} for i in range(size)]
    found = errors(check_dataset(save(clean, f"{name}.json"), None))
    (what,) = [what for what in found if what.startswith("the number of categories")]
    assert "LVIS v0.5 has 1230 and v1 has 1203" in what
    assert found[what][0].endswith(f"found {size}; this is the vocabulary of LVIS {other}")


def test_truncated_json(save):
    with pytest.raises(InputError, match="is the download complete"):
        check_dataset(save('{"images": ['), None)


def test_tool_exit_status_and_output(run_tool, save, clean, coco_root):
    status, output, _ = run_tool("--json", save(clean), "--images", coco_root)
    assert status == 0 and output.endswith("No errors found.\n")
    clean["annotations"][0]["category_id"] = 5
    status, output, _ = run_tool("--json", save(clean), "--images", coco_root)
    assert status == 1
    assert "ERROR: annotations whose category_id is not in 'categories': 1\n    annotation 1: category_id 5" in output


def test_tool_on_registered_data_sets(run_tool, save, clean, coco_root):
    register_lvis("clean", save(clean), coco_root)
    (coco_root / "val2017" / "000000000012.jpg").unlink()
    status, output, _ = run_tool("clean")
    assert status == 1 and "image files that are not there: 1" in output
    assert run_tool("--no-images", "clean")[0] == 0


def test_tool_on_what_cannot_be_read(run_tool, tmp_path):
    status, _, complaint = run_tool("--json", tmp_path / "absent.json")
    assert status == 2
    assert complaint.startswith(f"error: {tmp_path}/absent.json: there is no such file") and complaint.count("\n") == 1
    status, _, complaint = run_tool("lvis_v1_trian")
    assert status == 2 and "did you mean lvis_v1_train" in complaint
    assert run_tool()[0] == run_tool("lvis_v1_val", "--json", "a.json")[0] == 2
