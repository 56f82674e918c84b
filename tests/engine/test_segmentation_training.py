"""A segmentation network from index masks to its mean IoU, as eql-d2 train runs it."""

import json
import shutil

import numpy as np
import pytest
import torch

from eql_d2.engine import argument_parser, setup
from eql_d2.engine.trainer import Trainer, load_trained_model, run
from eql_d2.errors import InputError
from tests.conftest import tiny_config
from tests.data.masks import NAMES, write_masks

MODEL = ["MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, "MODEL.SEM_SEG_HEAD.NORM", "BN", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3]
TRAINING = ["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.WARMUP_ITERS", 0, "SOLVER.CHECKPOINT_PERIOD", 2]
JITTER = ["MODEL.LONG_TAIL.AUGMENT.SCALE_JITTER", (0.5, 2.0), "MODEL.LONG_TAIL.AUGMENT.SIZE", 64]


@pytest.fixture
def folder(tmp_path):
    """Five images of two halves and a corner without a label; the third class is in one of them."""
    masks = {}
    for number in range(5):
        mask = np.zeros((48, 64), np.uint8)
        mask[:, 32:] = 1 if number else 2
        mask[:8, :8] = 255
        masks[f"image{number}"] = mask
    return write_masks(tmp_path, masks)


def config_of(folder, loss, output, *opts):
    """The checked config of a training on the folder, as eql-d2 train makes it."""
    cfg = tiny_config(folder, "SemSeg-FPN", loss, *MODEL, *TRAINING, *JITTER, "MODEL.LONG_TAIL.FREQUENCY", "")
    name = f"{folder.name}_masks"
    paths = {"images": str(folder / "images"), "masks": str(folder / "masks"), "classes": str(folder / "classes.txt")}
    cfg.MODEL.LONG_TAIL.DATASETS = []
    cfg.MODEL.LONG_TAIL.SEM_SEG.DATASETS = [{"name": name, **paths}]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.OUTPUT_DIR = str(folder / output)
    cfg.merge_from_list(list(opts))
    (folder / "config.yaml").write_text(cfg.dump())
    return str(folder / "config.yaml")


def train(folder, loss, output, *opts, resume=False):
    """Run eql-d2 train and return its metrics and last weights."""
    arguments = ["--config-file", config_of(folder, loss, output, *opts), *(["--resume"] if resume else [])]
    args = argument_parser().parse_args(arguments)
    metrics = run(setup(args), args)
    return metrics, torch.load(folder / output / "model_final.pth", weights_only=False)["model"]


@pytest.mark.parametrize("loss", ["SOFTMAX_EQL", "SEQL"])
def test_a_training_that_is_resumed_ends_with_the_same_weights(folder, loss):
    metrics, weights = train(folder, loss, "whole")
    assert 0 <= metrics["sem_seg"]["mIoU"] <= 100
    results = json.loads((folder / "whole/results.json").read_text())
    assert results["results"]["sem_seg"].keys() == metrics["sem_seg"].keys()
    (described,) = results["experiment"]["classifier_losses"]
    assert (described["loss"], described["num_classes"], described["num_logits"]) == (loss, 3, 3)
    shutil.copytree(folder / "whole", folder / "stopped")
    (folder / "stopped/model_final.pth").unlink()
    (folder / "stopped/last_checkpoint").write_text("model_0000001.pth")
    _, resumed = train(folder, loss, "stopped", resume=True)
    assert all(torch.equal(weights[name], value) for name, value in resumed.items())
    if loss == "SOFTMAX_EQL":
        assert (weights["sem_seg_head.classifier_loss.pos_grad"] > 0).all()


def test_the_classifier_may_start_anew_or_from_classes_of_the_same_name(folder):
    _, weights = train(folder, "SOFTMAX", "first")
    start = ["MODEL.WEIGHTS", str(folder / "first/model_final.pth"), "SOLVER.BASE_LR", 0.0]
    key = "sem_seg_head.cls_score.weight"
    assert torch.equal(train(folder, "SOFTMAX", "kept", *start)[1][key], weights[key])
    anew = train(folder, "SOFTMAX", "anew", *start, "MODEL.LONG_TAIL.INIT_CLASSIFIER", "reset")[1]
    assert not torch.equal(anew[key], weights[key])
    assert torch.equal(anew["sem_seg_head.p2.0.weight"], weights["sem_seg_head.p2.0.weight"])
    categories = [{"id": i, "name": name} for i, name in enumerate(reversed(NAMES))]
    content = {"images": [], "annotations": [], "categories": categories}
    (folder / "known.json").write_text(json.dumps(content))
    opts = ["MODEL.LONG_TAIL.INIT_CLASSIFIER", "match", "MODEL.LONG_TAIL.INIT_CLASSES", str(folder / "known.json")]
    assert torch.equal(train(folder, "SOFTMAX", "matched", *start, *opts)[1][key], weights[key].flip(0))


def test_the_last_layer_is_trained_alone_and_weights_must_fit(folder):
    _, weights = train(folder, "SOFTMAX", "first")
    start = ["MODEL.WEIGHTS", str(folder / "first/model_final.pth"), "MODEL.LONG_TAIL.TRAINABLE", "classifier"]
    _, found = train(folder, "SOFTMAX", "second", *start)
    changed = {name for name, value in found.items() if not torch.equal(value, weights[name])}
    assert changed == {"sem_seg_head.cls_score.weight", "sem_seg_head.cls_score.bias"}
    args = argument_parser().parse_args(["--config-file", config_of(folder, "SOFTMAX", "third", *start)])
    cfg = setup(args)
    cfg.defrost()
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM = 16
    with pytest.raises(InputError, match="do not fit the model"):
        load_trained_model(cfg, False, "a test")
    assert type(Trainer.build_model(cfg)).__name__ == "LongTailSemanticSegmentor"


def test_gradients_of_pixels_are_not_analysed(folder):
    opts = ["MODEL.LONG_TAIL.ANALYSIS.PERIOD", 1]
    args = argument_parser().parse_args(["--config-file", config_of(folder, "SOFTMAX", "analysed", *opts)])
    with pytest.raises(InputError, match=r"ANALYSIS.PERIOD 0"):
        Trainer(setup(args))
