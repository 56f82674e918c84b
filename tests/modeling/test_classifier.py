"""The image classifier: which losses it serves, what it computes, and a training that resumes bit for bit."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.events import EventStorage

from eql_d2.config import load_config
from eql_d2.data.builtin import register_from_config
from eql_d2.data.classification import _REGISTERED
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY
from tests.conftest import CONFIGS

NUM_CLASSES = 4
#: Losses with logits for background or other classes, which no image is.
REFUSED = {"ACSL", "BAGS", "ECM", "EQL_V2"}
NAMES = sorted(name for name, _ in CLASSIFIER_LOSS_REGISTRY)


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """Classes that are told apart by their colour, 40 training images and 10 test images of each."""
    random = np.random.RandomState(0)
    colours = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]])

    def draw(number):
        labels = random.permutation(np.repeat(np.arange(NUM_CLASSES), number))
        noise = random.randint(-40, 40, (len(labels), 32, 32, 3))
        return (colours[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8), labels

    (x_train, y_train), (x_test, y_test) = draw(40), draw(10)
    path = tmp_path_factory.mktemp("colours") / "colours.npz"
    np.savez(path, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture
def make_config(npz, tmp_path, monkeypatch):
    """A function that returns the config of CIFAR-100-LT for the small set of colours, registered."""
    monkeypatch.setenv("CIFAR100", str(npz))
    names = ("colours_train", "colours_test")

    def make(*opts):
        cfg = load_config(str(CONFIGS / "classification/cifar100lt/softmax.yaml"), opts)
        cfg.MODEL.DEVICE = "cpu"
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = NUM_CLASSES
        cfg.MODEL.LONG_TAIL.CLASSIFICATION.DATASETS = [
            {"name": names[0], "kind": "cifar", "path": "$CIFAR100", "imbalance": 8},
            {"name": names[1], "kind": "cifar", "path": "$CIFAR100", "split": "test"},
        ]
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = names[:1], names[1:]
        cfg.SOLVER.IMS_PER_BATCH = 8
        cfg.SOLVER.BASE_LR = 0.01
        cfg.SOLVER.WARMUP_ITERS = 0
        cfg.OUTPUT_DIR = str(tmp_path / "output")
        register_from_config(cfg)
        return cfg

    yield make
    for name in names:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
        _REGISTERED.pop(name, None)


def batch_of(num_images=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (num_images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return [{"image": image, "image_id": i, "gt_class": i % NUM_CLASSES} for i, image in enumerate(images)]


@pytest.mark.parametrize("name", NAMES)
def test_every_loss_serves_or_is_refused_by_name(name, make_config):
    cfg = make_config("MODEL.LONG_TAIL.LOSS", name)
    if name in REFUSED:
        with pytest.raises(InputError, match=f"LOSS is '{name}' with . logits for 4 classes"):
            Trainer.build_model(cfg)
        return
    model = Trainer.build_model(cfg)
    assert model.head.classifier_loss.name == name
    assert model.head.cls_score.out_features == NUM_CLASSES
    with EventStorage():
        losses = model(batch_of())
    assert set(losses) == {"loss_cls"}
    losses["loss_cls"].backward()
    assert model.head.cls_score.weight.grad.abs().sum() > 0
    model.eval()
    scores = torch.stack([output["scores"] for output in model(batch_of())])
    assert scores.shape == (6, NUM_CLASSES)
    if model.head.classifier_loss.scores_sum_to_one:
        torch.testing.assert_close(scores.sum(1), torch.ones(6))


def test_eql_v2_serves_without_its_extra_column(make_config):
    model = Trainer.build_model(
        make_config("MODEL.LONG_TAIL.LOSS", "EQL_V2", "MODEL.LONG_TAIL.EQL_V2.CATEGORY_AGNOSTIC", "False")
    )
    assert model.head.cls_score.out_features == NUM_CLASSES


def test_softmax_is_cross_entropy_of_the_normalised_images(make_config):
    cfg = make_config()
    model = Trainer.build_model(cfg)
    batch = batch_of()
    images = torch.stack([image["image"] for image in batch]).float()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD))
    model.train()
    features = model.backbone((images - mean) / std)["last"]
    logits = F.linear(features.flatten(2).mean(2), model.head.cls_score.weight, model.head.cls_score.bias)
    expected = F.cross_entropy(logits, torch.tensor([image["gt_class"] for image in batch]))
    with EventStorage():
        torch.testing.assert_close(model(batch)["loss_cls"], expected)


def test_the_loss_is_told_the_long_tail(make_config):
    cfg = make_config("MODEL.LONG_TAIL.LOSS", "SEQL", "MODEL.LONG_TAIL.SEQL.LAMBDA", "0.2")
    model = Trainer.build_model(cfg)
    # 40, 20, 10 and 5 of 75 images: the last two are in less than a fifth.
    assert model.head.classifier_loss.tail.tolist() == [0, 0, 1, 1]
    assert not model.head.classifier_loss.background


def train(cfg, resume=False):
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer.train(), trainer


@pytest.mark.parametrize("loss", ["SEQL", "SOFTMAX_EQL"])
def test_resumed_training_is_the_same_bit_for_bit(loss, make_config, tmp_path):
    opts = ("MODEL.LONG_TAIL.LOSS", loss, "SOLVER.CHECKPOINT_PERIOD", "3", "SOLVER.MAX_ITER", "6")
    whole = make_config(*opts)
    whole.DATASETS.TEST = ()
    _, expected = train(whole)
    part = make_config(*opts)
    part.DATASETS.TEST, part.OUTPUT_DIR, part.SOLVER.MAX_ITER = (), str(tmp_path / "part"), 3
    train(part)
    part.SOLVER.MAX_ITER = 6
    _, found = train(part, resume=True)
    assert found.start_iter == 3
    states = expected.model.state_dict(), found.model.state_dict()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_training_learns_and_reports(make_config, tmp_path):
    cfg = make_config("SOLVER.MAX_ITER", "40", "MODEL.LONG_TAIL.CLASSIFICATION.AUTO_AUGMENT", "")
    cfg.SOLVER.AMP.ENABLED = True
    results, _ = train(cfg)
    assert results["classification"]["top1"] > 60
    written = json.loads((tmp_path / "output" / "results.json").read_text())
    assert written["results"]["classification"]["top1"] == results["classification"]["top1"]
    assert written["experiment"]["classifier_losses"][0]["loss"] == "SOFTMAX"
    rows = json.loads((tmp_path / "output/inference/colours_test/per_category_accuracy.json").read_text())
    assert [row["train_images"] for row in rows] == [40, 20, 10, 5]
    assert np.mean([row["accuracy"] for row in rows]) == pytest.approx(results["classification"]["balanced"])
    counts = CategoryFrequency.from_json(tmp_path / "output" / "category_frequency.json")
    assert counts.image_count.tolist() == [40, 20, 10, 5]


def test_two_stages_and_what_is_done_at_test(make_config, tmp_path):
    """cRT, LWS and tau-normalisation are the detectors' own: only the classifier is trained, or nothing."""
    first = make_config("SOLVER.MAX_ITER", "4", "OUTPUT_DIR", str(tmp_path / "first"))
    first.DATASETS.TEST, first.OUTPUT_DIR = (), str(tmp_path / "first")
    _, stage1 = train(first)
    before = {name: value.clone() for name, value in stage1.model.state_dict().items()}
    for trainable, init, trained in (("classifier", "reset", "head.cls_score."), ("scale", "keep", "head.cls_scale")):
        cfg = make_config("SOLVER.MAX_ITER", "2", "MODEL.WEIGHTS", str(tmp_path / "first" / "model_final.pth"))
        cfg.DATASETS.TEST, cfg.OUTPUT_DIR = (), str(tmp_path / trainable)
        cfg.MODEL.LONG_TAIL.TRAINABLE, cfg.MODEL.LONG_TAIL.INIT_CLASSIFIER = trainable, init
        cfg.MODEL.LONG_TAIL.LOSS = "BALANCED_SOFTMAX"
        _, stage2 = train(cfg)
        for name, value in stage2.model.state_dict().items():
            if name.startswith("head.cls_scale"):
                continue
            assert torch.equal(value, before[name]) is not name.startswith(trained), name
        assert stage2.model.head.cls_scale is None or (stage2.model.head.cls_scale != 1).any()
    cfg = make_config("MODEL.LONG_TAIL.TAU_NORM.TAU", "1.0")
    model = Trainer.build_model(cfg)
    model.load_state_dict(before)
    model.eval()
    with torch.no_grad():
        scores = torch.stack([output["scores"] for output in model(batch_of())])
        features = model.head(model._features(batch_of()))[1]
        expected = torch.softmax(F.linear(features, F.normalize(model.head.cls_score.weight)), 1)
    torch.testing.assert_close(scores, expected)


def test_normed_classifier(make_config):
    opts = ("MODEL.LONG_TAIL.CLASSIFIER", "normed", "MODEL.LONG_TAIL.NORMED.TEMPERATURE", "30.0")
    head = Trainer.build_model(make_config(*opts)).head
    features = torch.rand(5, 64, 2, 2)
    expected = 30 * F.linear(F.normalize(features.mean((2, 3))), F.normalize(head.cls_score.weight))
    torch.testing.assert_close(head(features)[0], expected + head.cls_score.bias, rtol=1e-4, atol=1e-4)


def test_gradients_of_each_category_are_collected(make_config, tmp_path):
    cfg = make_config("SOLVER.MAX_ITER", "2", "MODEL.LONG_TAIL.ANALYSIS.PERIOD", "1")
    cfg.DATASETS.TEST = ()
    train(cfg)
    lines = (tmp_path / "output" / "training_gradients.csv").read_text().splitlines()
    assert len(lines) == 1 + NUM_CLASSES
    positives = lines[0].split(",").index("positives")
    assert sum(float(line.split(",")[positives]) for line in lines[1:]) == 16
