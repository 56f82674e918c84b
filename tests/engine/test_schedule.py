"""Epochs, images and iterations of a config, with and without repeat-factor sampling."""

import itertools

import pytest
import torch

from eql_d2.commands.schedule import main
from eql_d2.data.build import build_train_sampler, long_tail_dataset_dicts, rounded
from eql_d2.data.builtin import register_from_config
from eql_d2.engine.schedule import iterations_of
from eql_d2.errors import InputError
from tests.conftest import tiny_config

#: Both classes of the four images are in two of them: at a threshold of 1.125 all factors are sqrt(2.25) = 1.5.
RFS = ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 1.125]
ROUNDING = "MODEL.LONG_TAIL.REPEAT_ROUNDING"


def printed(folder, capsys, *arguments, opts=()):
    path = folder / "config.yaml"
    path.write_text(tiny_config(folder, "Mask-R-CNN-FPN", "SOFTMAX", "SOLVER.STEPS", (2, 3), *opts).dump())
    main(["--config-file", str(path), *arguments])
    return capsys.readouterr().out.splitlines()


def test_plain(lvis_folder, capsys):
    lines = printed(lvis_folder, capsys, "--epochs", "12", "8", "11")
    assert lines == [
        f"{lvis_folder.name}_train: 4 images, of 4 in an epoch by TrainingSampler",
        "2 images an iteration: 2.00 iterations an epoch",
        "SOLVER.MAX_ITER 4 (2.00 epochs), SOLVER.STEPS 2 (1.00 epochs), 3 (1.50 epochs)",
        'SOLVER.MAX_ITER 24 SOLVER.STEPS "(16,22,)"',
    ]


@pytest.mark.parametrize("rounding, images", [("stochastic", 6), ("ceil", 8), ("append", 12)])
def test_repeated_images(lvis_folder, capsys, rounding, images):
    """r = 1.5: 1.5 copies in expectation, two, or the image itself and two more."""
    lines = printed(lvis_folder, capsys, "--epochs", "2", opts=[*RFS, ROUNDING, rounding])
    assert f"4 images, of {images} in an epoch by RepeatFactorTrainingSampler (threshold 1.125, {rounding})" in lines[0]
    assert lines[-1] == f'SOLVER.MAX_ITER {images} SOLVER.STEPS "()"'


def test_the_sampler_makes_whole_copies(lvis_folder):
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX", *RFS)
    register_from_config(cfg)
    dataset = long_tail_dataset_dicts(cfg.DATASETS.TRAIN)
    for rounding, copies in (("ceil", 2), ("append", 3)):
        cfg.MODEL.LONG_TAIL.REPEAT_ROUNDING = rounding
        epoch = list(itertools.islice(build_train_sampler(cfg, dataset), 4 * copies))
        assert sorted(epoch) == sorted([0, 1, 2, 3] * copies)


def test_rounding(lvis_folder):
    """As the releases count: ceil(r) copies; or one, and ceil(r) more if r is above one."""
    factors = torch.tensor([1.0, 1.2, 2.0, 2.5])
    cfg = tiny_config(lvis_folder)
    for rounding, expected in (
        ("stochastic", [1.0, 1.2, 2.0, 2.5]),
        ("ceil", [1.0, 2.0, 2.0, 3.0]),
        ("append", [1.0, 3.0, 3.0, 4.0]),
    ):
        cfg.MODEL.LONG_TAIL.REPEAT_ROUNDING = rounding
        torch.testing.assert_close(rounded(factors, cfg), torch.tensor(expected))
    cfg.MODEL.LONG_TAIL.REPEAT_ROUNDING = "floor"
    with pytest.raises(InputError, match="REPEAT_ROUNDING is 'floor'; there are 'stochastic', 'ceil' and 'append'"):
        rounded(factors, cfg)


def test_epochs_of_the_configs():
    assert iterations_of([12, 8, 11], 56_740, 16) == (42_555, [28_370, 39_009])
    for epochs in ([12, 8, 13], [12, 0], [0], [12, 11, 8]):
        with pytest.raises(InputError, match="the first is the number of epochs"):
            iterations_of(epochs, 100, 2)
