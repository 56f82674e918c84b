"""FRACAL: golden vectors of the authors' code, files, and bad settings."""

import pytest
import torch

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses import Fracal, LogitStatistics, SigmoidLoss, SoftmaxLoss, build_calibration
from eql_d2.losses.fracal import save_dimensions
from tests.losses.helpers import assert_golden, golden


@pytest.fixture
def vectors(tmp_path):
    arrays = golden("fracal")
    frequency = CategoryFrequency.from_counts(
        arrays["image_count"], arrays["instance_count"], num_images=int(arrays["num_images"])
    )
    file = tmp_path / "dimensions.pth"
    save_dimensions(torch.from_numpy(arrays["fractal_dimension"]), file)
    return arrays, frequency, str(file)


@pytest.mark.parametrize(
    "settings, key",
    [({}, "scores"), ({"lambda_": 1.0}, "lambda1_scores"), ({"counts": "instances"}, "obj_scores")],
)
def test_golden_softmax(vectors, settings, key):
    arrays, frequency, file = vectors
    scores = Fracal(frequency, file, **settings)(SoftmaxLoss(frequency), torch.from_numpy(arrays["logits"]))
    assert_golden(scores, arrays[key])


def test_golden_sigmoid(vectors):
    arrays, frequency, file = vectors
    scores = Fracal(frequency, file)(SigmoidLoss(frequency), torch.from_numpy(arrays["sigmoid_logits"]))
    assert_golden(scores[:, :-1], arrays["sigmoid_scores"])
    assert (scores[:, -1] == 0).all()


def test_files_and_settings(vectors, tmp_path):
    _, frequency, file = vectors
    with pytest.raises(InputError, match="boxes, which eql-d2 calibrate"):
        build_calibration("FRACAL", frequency, {})
    assert build_calibration("FRACAL", frequency, {"STATISTICS": file}).divisor.max() > 1
    with pytest.raises(InputError, match="COUNTS is 'boxes'"):
        Fracal(frequency, file, counts="boxes")
    with pytest.raises(InputError, match="pass a CategoryFrequency"):
        Fracal(320, file)
    with pytest.raises(InputError, match="dimensions of 320 classes, not of 3"):
        Fracal(CategoryFrequency.from_counts([3, 2, 1], num_images=9), file)
    save_dimensions(torch.zeros(320), tmp_path / "zeros.pth")
    with pytest.raises(InputError, match="below 1"):
        Fracal(frequency, str(tmp_path / "zeros.pth"))
    LogitStatistics(320).save(tmp_path / "logits.pth")
    with pytest.raises(InputError, match="holds no fractal dimensions"):
        Fracal(frequency, str(tmp_path / "logits.pth"))
