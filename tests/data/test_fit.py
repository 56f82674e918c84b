"""What a config leaves to the data: the number of classes, thresholds given as tail ratios, and useless thresholds."""

import logging

import pytest
import torch

from eql_d2.config import load_config
from eql_d2.data.builtin import register_from_config
from eql_d2.data.fit import fit_to_data
from eql_d2.data.frequency import USUAL_TAIL_RATIO, CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses import build_classifier_loss
from eql_d2.modeling.build import build_classifier_loss_from_config
from tests.conftest import CONFIGS, NUM_CLASSES, tiny_config

WITH_LAMBDA = ("EQL", "SEQL", "DROPLOSS", "GOL")
#: Tail ratios after each class, rarest first: 0, 1/100, 10/100, 30/100, 1.
COUNTS = CategoryFrequency.from_counts([70, 20, 9, 1, 0], num_images=90)


@pytest.mark.parametrize(
    ("tail_ratio", "images"), [(0.001, 1), (0.05, 1), (0.06, 9), (0.1, 9), (0.19, 9), (0.21, 20), (0.99, 20)]
)
def test_the_nearest_threshold_that_parts_the_classes(tail_ratio, images):
    lambda_ = COUNTS.lambda_of(tail_ratio)
    assert lambda_ * 90 == pytest.approx(images + 0.5)
    assert COUNTS.tail_mask(lambda_).tolist() == [count <= images for count in (70, 20, 9, 1, 0)]


def test_the_ratio_that_no_threshold_gives():
    for ratio in (1.0, -0.1, 9):
        with pytest.raises(InputError, match=f"TAIL_RATIO is {ratio:g}; it is a share"):
            COUNTS.lambda_of(ratio)
    with pytest.raises(InputError, match=r"have as many \(\[4\]\)"):
        CategoryFrequency.from_counts([4, 0, 4], num_images=9).lambda_of(0.1)


@pytest.mark.parametrize("name", WITH_LAMBDA)
def test_a_loss_with_a_tail_ratio_is_the_one_with_its_lambda(name, caplog):
    with caplog.at_level(logging.INFO, "detectron2.eql_d2.data"):
        fitted = build_classifier_loss(name, COUNTS, {"TAIL_RATIO": 0.1})
    assert f"MODEL.LONG_TAIL.{name}.LAMBDA, from a tail ratio of 0.1: 0.1056 takes in 2 of the 4 classes" in caplog.text
    given = build_classifier_loss(name, COUNTS, {"LAMBDA": 9.5 / 90})
    assert fitted.lambda_ == given.lambda_ == fitted.describe()["lambda_"]
    logits = torch.randn(12, fitted.num_logits, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 6
    assert torch.equal(fitted(logits, labels), given(logits, labels))


@pytest.mark.parametrize("name", WITH_LAMBDA)
def test_a_threshold_that_does_nothing_is_a_warning(name, caplog):
    for lambda_, words in ((1.76e-3, "takes in 0 of the 4 classes"), (0.9, "takes in 4 of the 4 classes")):
        caplog.clear()
        build_classifier_loss(name, COUNTS, {"LAMBDA": lambda_})
        (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
        message = warning.getMessage()
        assert message.startswith(f"MODEL.LONG_TAIL.{name}.LAMBDA ") and words in message
        assert "2 to 10%: 0.1056 takes in 2 of the 4 classes that have images, 10.0% of the image counts" in message
    caplog.clear()
    build_classifier_loss(name, COUNTS, {"LAMBDA": 0.05})
    assert not caplog.records


def test_eql_s_other_weight_functions_have_no_threshold(caplog):
    build_classifier_loss("EQL", COUNTS, {"WEIGHT_FUNCTION": "exponential"})
    assert not caplog.records


def test_lvis_keeps_its_lambda():
    """LVIS v0.5's own default gives the tail ratio that is the usual one here."""
    assert (
        load_config(str(CONFIGS / "LVISv0.5/eql/mask_rcnn_R_50_FPN_paper.yaml")).MODEL.LONG_TAIL.EQL.LAMBDA == 1.76e-3
    )
    assert USUAL_TAIL_RATIO == 0.09


def test_a_config_is_fitted(lvis_folder):
    """Two of the five categories are in two of four images each; frequency.json has 150, 120, 50, 5 and 1 of 200."""
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", "EQL", "MODEL.ROI_HEADS.NUM_CLASSES", 0)
    with pytest.raises(InputError, match="before the model is built"):
        build_classifier_loss_from_config(cfg)
    cfg.MODEL.LONG_TAIL.EQL.TAIL_RATIO = 0.02
    cfg.freeze()
    register_from_config(cfg)
    fit_to_data(cfg)
    assert cfg.is_frozen() and cfg.MODEL.ROI_HEADS.NUM_CLASSES == NUM_CLASSES
    assert cfg.MODEL.LONG_TAIL.EQL.LAMBDA == 5.5 / 200
    assert build_classifier_loss_from_config(cfg).lambda_ == cfg.MODEL.LONG_TAIL.EQL.LAMBDA
    again = cfg.clone()
    fit_to_data(again)
    assert again == cfg


def test_repeat_factor_sampling_is_fitted(lvis_folder):
    """Three images of class 0 and one of class 1: the threshold lies between them."""
    content = (
        (lvis_folder / "train.json")
        .read_text()
        .replace('"image_id": 4, "category_id": 2', '"image_id": 4, "category_id": 1')
    )
    (lvis_folder / "train.json").write_text(content)
    cfg = tiny_config(
        lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX", "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"
    )
    cfg.MODEL.LONG_TAIL.REPEAT_TAIL_RATIO = 0.3
    register_from_config(cfg)
    fit_to_data(cfg)
    assert cfg.DATALOADER.REPEAT_THRESHOLD == 1.5 / 4
    cfg.MODEL.LONG_TAIL.REPEAT_FREQUENCY = "geometric"
    with pytest.raises(InputError, match="REPEAT_TAIL_RATIO chooses a threshold of image frequencies"):
        fit_to_data(cfg)
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.0
    fit_to_data(cfg)
    assert cfg.DATALOADER.REPEAT_THRESHOLD == 0.0
