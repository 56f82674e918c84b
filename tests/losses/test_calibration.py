"""NorCal and LogN."""

import pytest
import torch

from eql_d2.config import get_cfg
from eql_d2.errors import InputError
from eql_d2.losses import (
    CALIBRATION_REGISTRY,
    LogitStatistics,
    LogN,
    NorCal,
    RunningLogitStatistics,
    SoftmaxLoss,
    build_calibration,
)
from eql_d2.losses.registry import argument_name, default_settings
from tests.losses.helpers import (
    LOSS_NAMES,
    assert_golden,
    golden,
    long_tailed_frequency,
    make_loss,
    random_logits,
)


@pytest.mark.parametrize("name", [name for name, _ in CALIBRATION_REGISTRY])
def test_config_node_equals_constructor(name):
    node = get_cfg().MODEL.LONG_TAIL.CALIBRATION
    assert {argument_name(k): v for k, v in node[name].items()} == default_settings(name, CALIBRATION_REGISTRY)
    assert set(node) == {"NAME", *(key for key, _ in CALIBRATION_REGISTRY)}
    assert build_calibration(node.NAME, 9, {}) is None


def test_norcal_of_softmax():
    loss, frequency = make_loss("SOFTMAX"), long_tailed_frequency()
    logits = random_logits(6, 10)
    actual = NorCal(frequency, gamma=0.6)(loss, logits)
    for row, z in zip(actual, logits):
        factor = [n**-0.6 for n in frequency.image_count.tolist()] + [1.0]
        exponentials = [f * z_j.exp() for f, z_j in zip(factor, z)]
        expected = torch.stack([e / sum(exponentials) for e in exponentials])
        torch.testing.assert_close(row, expected, rtol=1e-6, atol=0)


def test_norcal_of_sigmoid():
    loss, frequency = make_loss("EQL_V2"), long_tailed_frequency()
    logits = random_logits(6, 10)
    scores, actual = loss.scores(logits), NorCal(frequency, gamma=0.6)(loss, logits)
    factor = frequency.image_count.double() ** -0.6
    expected = scores[:, :9] * factor / (scores[:, :9] * factor + 1 - scores[:, :9])
    torch.testing.assert_close(actual[:, :9], expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(actual[:, 9], scores[:, 9])


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_calibrations_of_every_loss(name):
    loss = make_loss(name)
    logits = random_logits(50, loss.num_logits, dtype=torch.float32)
    statistics = LogitStatistics(loss.num_logits)
    statistics.update(logits)
    logn = LogN(long_tailed_frequency())
    logn.set_statistics(statistics)
    for calibration in (NorCal(long_tailed_frequency()), logn):
        for scale in (1, 40):
            scores = calibration(loss, scale * logits)
            assert scores.shape == (50, 10)
            assert ((scores >= 0) & (scores <= 1)).all()
        assert calibration(loss, logits[:0]).shape == (0, 10)
    torch.testing.assert_close(NorCal(long_tailed_frequency(), gamma=0.0)(loss, logits), loss.scores(logits))


def test_logn():
    loss, logits = make_loss("SOFTMAX"), random_logits(400, 10) + torch.arange(10.0)
    statistics = LogitStatistics(10)
    for part in logits.split([1, 0, 150, 249]):
        statistics.update(part)
    torch.testing.assert_close(statistics.mean, logits.mean(0))
    torch.testing.assert_close(statistics.std, logits.std(0, unbiased=False))
    logn = LogN(9)
    logn.set_statistics(statistics)
    mean, std = logits.mean(0)[:9], logits.std(0, unbiased=False)[:9]
    expected = logits.clone()
    expected[:, :9] = (logits[:, :9] - (mean - mean.min())) / std
    torch.testing.assert_close(logn(loss, logits), torch.softmax(expected, 1), rtol=1e-5, atol=1e-7)


def test_statistics_do_not_cancel():
    """A spread of 1e-3 around 1e4 keeps its digits."""
    logits = 1e4 + 1e-3 * torch.randn(500, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    statistics = LogitStatistics(2)
    for part in logits.split(7):
        statistics.update(part)
    torch.testing.assert_close(statistics.std, logits.std(0, unbiased=False), rtol=1e-6, atol=0)


def test_statistics_file(tmp_path):
    statistics = LogitStatistics(10)
    statistics.update(random_logits(20, 10))
    path = tmp_path / "logits.pth"
    statistics.save(path)
    logn = build_calibration("LOGN", 9, {"STATISTICS": str(path)})
    torch.testing.assert_close(logn.mean, statistics.mean[:9].float())
    torch.testing.assert_close(logn.std, statistics.std[:9].float())
    with pytest.raises(InputError, match="of 10 logits, but there are 11 classes"):
        LogN(11, str(path))


def test_running_statistics_equal_the_release():
    """Four steps of the authors' batch norm, then their scores of other logits."""
    arrays = golden("logn")
    statistics = RunningLogitStatistics(81, momentum=float(arrays["momentum"]))
    for logits, mean, variance in zip(arrays["logits"], arrays["running_mean"], arrays["running_var"]):
        statistics.update(torch.from_numpy(logits))
        assert_golden(statistics.mean, mean)
        assert_golden(statistics.variance, variance)
    logn = LogN(80, regions="training")
    logn.set_statistics(statistics)
    assert_golden(logn.std, arrays["std_used"][:-1])
    assert_golden(logn.mean, arrays["mean_used"][:-1])
    assert_golden(logn(SoftmaxLoss(80), torch.from_numpy(arrays["test_logits"])), arrays["probs"])


def test_running_statistics_are_those_of_batch_norm():
    norm = torch.nn.BatchNorm1d(10, affine=False, momentum=5e-5).double().train()
    statistics = RunningLogitStatistics(10)
    assert statistics.momentum == get_cfg().MODEL.LONG_TAIL.CALIBRATION.LOGN.MOMENTUM == norm.momentum
    for seed, size in enumerate((40, 2, 7)):
        logits = random_logits(size, 10, seed=seed)
        norm(logits)
        statistics.update(logits)
    statistics.update(random_logits(1, 10))  # no variance
    statistics.update(random_logits(0, 10))
    assert statistics.count == 49
    torch.testing.assert_close(statistics.mean, norm.running_mean, rtol=1e-12, atol=0)
    torch.testing.assert_close(statistics.std, norm.running_var.sqrt(), rtol=1e-12, atol=0)


def test_a_file_says_which_statistics_it_holds(tmp_path):
    for kind, other in ((LogitStatistics, "training"), (RunningLogitStatistics, "test")):
        path = tmp_path / "statistics.pth"
        kind(10).save(path)
        assert LogN(9, str(path), regions=kind.regions).regions == kind.regions
        with pytest.raises(InputError, match=f"of {kind.regions} regions; set .*LOGN.REGIONS {kind.regions}"):
            LogN(9, str(path), regions=other)
    torch.save({"count": torch.ones(()), "mean": torch.zeros(10), "std": torch.ones(10)}, path)
    LogN(9, str(path))  # written before files said so
    with pytest.raises(InputError, match="REGIONS is 'all'; there are 'test', 'training'"):
        LogN(9, regions="all")


def test_bad_settings(tmp_path):
    with pytest.raises(InputError, match="STATISTICS is empty"):
        build_calibration("LOGN", 9, {})
    with pytest.raises(InputError, match="there is no such file"):
        LogN(9, str(tmp_path / "missing.pth"))
    broken = tmp_path / "broken.pth"
    broken.write_text("no statistics")
    with pytest.raises(InputError, match="is no file of tensors"):
        LogN(9, str(broken))
    torch.save({"mean": torch.zeros(9)}, broken)
    with pytest.raises(InputError, match="holds no statistics"):
        LogN(9, str(broken))
    with pytest.raises(InputError, match=r"CALIBRATION.NAME is 'NORCALL'.*Did you mean 'NORCAL'"):
        build_calibration("NORCALL", 9, {})
    with pytest.raises(InputError, match="NorCal needs the images"):
        NorCal(9)
