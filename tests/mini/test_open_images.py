"""The generated set in the format of Open Images: what its files say of its images."""

from collections import Counter

import cv2
import numpy as np
import pytest

from eql_d2.commands import make_mini_dataset
from eql_d2.data.check_open_images import check_open_images
from eql_d2.data.open_images_files import open_images_table
from eql_d2.data.open_images_table import OpenImagesFiles
from eql_d2.errors import InputError
from eql_d2.mini import generate_mini_dataset, generate_open_images_dataset
from eql_d2.mini.generate import MiniParameters, plan_split
from tests.mini.test_folder import all_files

PARAMETERS = {"num_classes": 9, "num_train": 60, "num_val": 12, "image_size": 64}


def files_of(folder, split):
    names = (f"{split}-boxes.csv", "classes.csv", f"{split}-labels.csv", "hierarchy.json")
    return OpenImagesFiles(*(str(folder / name) for name in names))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate_open_images_dataset(tmp_path_factory.mktemp("data") / "mini_openimages", **PARAMETERS)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_checker_finds_nothing_wrong(folder, split):
    report = check_open_images(f"mini_{split}", files_of(folder, split), folder / split)
    assert not report.has_errors, report.lines()


def test_hierarchy(folder):
    header = open_images_table(files_of(folder, "train")).header
    # Nine figures: six shapes in the first hue, three in the second.
    assert header.class_names[9:] == ["circle", "square", "triangle", "star", "cross", "crescent", "red"]
    assert [len(above) for above in header.ancestors] == [2] * 6 + [1] * 3 + [0] * 7
    assert header.ancestors[0] == [9, 15] and header.ancestors[6] == [9]


def test_boxes_and_labels_are_of_the_plan(folder):
    parameters = MiniParameters(**PARAMETERS, num_test=1)
    table = open_images_table(files_of(folder, "train"))
    as_above = Counter()
    plans = plan_split(parameters, "train")
    for row in range(len(table)):
        plan = plans[int(table.image_id(row), 16) - 1]  # an image without a box or a label is not listed
        boxes = slice(table.box_ends[row - 1] if row else 0, table.box_ends[row])
        labels = table.box_labels[boxes].tolist()
        for label in plan.annotated:
            shown = [above for above in table.above[label] if above in labels]
            assert label in labels or shown, "every class of the plan has a box, of its own or a class above"
            as_above[label in labels] += 1
        verified = table.verified(row)
        assert set(labels) <= verified["positive"]
        assert set(plan.negatives) <= verified["negative"]
        assert not verified["positive"] & verified["negative"]
        assert not set(plan.unverified) & (verified["positive"] | verified["negative"])
    assert 0 < as_above[False] < as_above[True] / 4
    assert min(table.header.counts.image_count[:9]) >= 1


def test_a_group_of_box_holds_four_objects_or_more(tmp_path):
    many = generate_open_images_dataset(tmp_path / "many", **{**PARAMETERS, "num_train": 150})
    table = open_images_table(files_of(many, "train"))
    groups = table.corners[table.box_flags[:, 0] == 1]
    singles = table.corners[table.box_flags[:, 0] == 0]
    assert 0.01 < len(groups) / len(table.corners) < 0.1
    area = [np.median((one[:, 2:] - one[:, :2]).prod(axis=1)) for one in (groups, singles)]
    assert area[0] > 3 * area[1]


def test_images_are_those_of_lvis_s_format(folder, tmp_path):
    lvis = generate_mini_dataset(tmp_path / "mini", **PARAMETERS, num_test=1)
    for number in (0, 7):
        ours = cv2.imread(str(folder / f"val/{1_000_001 + number:016x}.jpg"))
        assert (ours == cv2.imread(str(lvis / f"val/{1_000_001 + number:012d}.jpg"))).all()


def test_same_parameters_same_bytes_and_the_command(folder, tmp_path, capsys):
    options = ["--classes", "9", "--train-images", "60", "--val-images", "12", "--image-size", "64"]
    output = ["--output", str(tmp_path / "again"), "--format", "openimages"]
    make_mini_dataset.main([*output, *options])
    assert all_files(tmp_path / "again") == all_files(folder)
    for more, message in (
        (["--test-images", "3"], "num_test is of no use in the format of Open Images"),
        (["--statistics"], "--statistics are those of LVIS's format"),
        (["--objects", "a.npz"], "--format is of no use with --objects"),
    ):
        with pytest.raises(InputError, match=message):
            make_mini_dataset.main([*output, *more])
