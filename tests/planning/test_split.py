"""The stratified split: shares, every class on both sides where it can be, categories left out."""

import numpy as np
import pytest

from eql_d2.errors import InputError
from eql_d2.planning.split import counted, frequent_enough, split_content, stratified_split, without_images_of
from tests.conftest import make_lvis_json

pytest.importorskip("iterstrat")


def test_a_long_tail_is_on_both_sides():
    """40 classes with 2 to 300 of 1000 images; the share of each class comes out as the share of the images."""
    generator = np.random.default_rng(0)
    shows = np.zeros((1000, 40), dtype=bool)
    for label, count in enumerate(np.geomspace(300, 2, 40).round().astype(int)):
        shows[generator.choice(1000, count, replace=False), label] = True
    validated = stratified_split(shows, 0.2)
    assert abs(validated.mean() - 0.2) < 0.03
    assert shows[validated].any(0).all() and shows[~validated].any(0).all()
    often = shows.sum(0) >= 20
    assert (np.abs(shows[validated].sum(0) / shows.sum(0) - 0.2)[often] < 0.06).all()
    assert (stratified_split(shows, 0.2) == validated).all()


def test_a_class_with_one_image_is_trained_on_and_one_with_two_is_on_both_sides():
    shows = np.eye(12, 6, dtype=bool)
    shows[6:9] |= np.eye(3, 6, dtype=bool)  # classes 0, 1, 2 have two images
    for seed in range(5):
        validated = stratified_split(shows, 0.5, seed)
        assert shows[~validated].any(0).all()
        assert shows[validated].any(0)[:3].all()


def test_an_image_is_not_moved_if_training_would_lose_another_class():
    """Both images of class 0 show a class that no other image shows, so that neither may leave."""
    shows = np.array([[1, 1, 0], [1, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=bool)
    validated = stratified_split(shows, 0.4)
    assert not validated[:2].any() and validated.sum() >= 1


@pytest.mark.parametrize("share", [0.0, 1.0, -1, 0.01])
def test_a_share_that_leaves_a_side_empty(share):
    with pytest.raises(InputError, match=f"--split {share:g} of 10 images"):
        stratified_split(np.ones((10, 2), dtype=bool), share)


def test_the_content_of_a_json_is_split():
    """Every annotation goes with its image, and both parts say how often a class is trained on."""
    content = make_lvis_json(num_images=20)
    train, val = split_content(content, 0.25)
    assert len(train["images"]) + len(val["images"]) == 20 and len(val["images"]) == 5
    for part in (train, val):
        assert {one["image_id"] for one in part["annotations"]} == {image["id"] for image in part["images"]}
    assert train["categories"] == val["categories"] == counted(train)
    assert sum(one["image_count"] for one in val["categories"]) == len(train["annotations"])
    assert [one["frequency"] for one in val["categories"]] == list("ffcrr")


def test_images_of_the_other_side_are_left_out():
    content = make_lvis_json(num_images=5)
    other = {"images": [{"id": 77, "file_name": content["images"][1]["file_name"]}]}
    kept = without_images_of(content, other)
    assert [image["id"] for image in kept["images"]] == [1, 3, 4, 5]
    assert [one["image_id"] for one in kept["annotations"]] == [1, 3, 4, 5]
    assert without_images_of(kept, other) is kept


def test_categories_of_few_images_are_left_out():
    content = make_lvis_json(num_images=5)  # three images of category 1, two of 2, none of the others
    assert len(frequent_enough(content, 1)["categories"]) == 2
    kept = frequent_enough(content, 3)
    assert [one["id"] for one in kept["categories"]] == [1] and len(kept["annotations"]) == 3
    assert [image["neg_category_ids"] for image in kept["images"]] == [[], [], [], [1], []]
    with pytest.raises(InputError, match="--min-images 4: no category"):
        frequent_enough(content, 4)
