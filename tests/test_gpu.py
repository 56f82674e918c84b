"""The same numbers on a GPU as on the CPU, no hidden waits, half precision with the scaler: ``pytest -m gpu``.

Skipped without CUDA. ``EQL_D2_TEST_DEVICE=cpu pytest -m gpu`` runs all but the CUDA-only ones on the CPU against
itself, which shows that the tests themselves are sound.
"""

import copy
import os

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import eql_d2.modeling  # noqa: F401
from eql_d2.modeling.postprocessing import fast_rcnn_inference_single_image
from tests.conftest import tiny_config
from tests.losses.helpers import LOSS_NAMES, NUM_CLASSES, make_loss, random_labels, random_logits, step
from tests.losses.test_regularizer import NAMES as REGULARIZERS
from tests.losses.test_regularizer import regularized
from tests.modeling.test_heads import example
from tests.modeling.test_postprocessing import random_predictions

DEVICE = torch.device(os.environ.get("EQL_D2_TEST_DEVICE", "cuda"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs CUDA"),
]
only_on_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="asks CUDA's runtime")
#: Other orders of summation, and TF32 left off.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}
ARCHITECTURES = ("Mask-R-CNN-FPN", "Cascade-Mask-R-CNN-FPN", "RetinaNet-FPN")
#: Their random numbers are drawn by the device's own generator.
RANDOM = {"ACSL", "BAGS", "DROPLOSS", "FEDERATED", "GOL", "SEQL"}


@pytest.mark.parametrize("name", sorted(set(LOSS_NAMES) - RANDOM))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_losses(name, dtype):
    """Value, gradient, state and scores after three steps."""
    here = make_loss(name)
    there = copy.deepcopy(here).to(DEVICE)
    for i in range(3):
        logits = random_logits(64, here.num_logits, seed=i, dtype=torch.float32).to(dtype)
        labels = random_labels(64, NUM_CLASSES, seed=i)
        value, gradient = step(here, logits, labels)
        device_value, device_gradient = step(there, logits.to(DEVICE), labels.to(DEVICE))
        assert device_value.device.type == device_gradient.device.type == DEVICE.type
        torch.testing.assert_close(device_value.cpu(), value, **TOLERANCE)
        half = {"rtol": 1e-2, "atol": 1e-4} if dtype != torch.float32 else TOLERANCE
        torch.testing.assert_close(device_gradient.cpu(), gradient, **half)
        torch.testing.assert_close(there.scores(logits.to(DEVICE)).cpu(), here.scores(logits), **TOLERANCE)
    for key, values in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[key].cpu(), values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", REGULARIZERS)
def test_regularizers(name):
    """Value, gradient and state of the loss and the term beside it after three steps."""
    here = regularized(name)
    there = copy.deepcopy(here).to(DEVICE)
    for i in range(3):
        labels = torch.cat([torch.arange(NUM_CLASSES), random_labels(40, NUM_CLASSES, seed=i)])
        logits = random_logits(len(labels), here.num_logits, seed=i, dtype=torch.float32)
        value, gradient = step(here, logits, labels)
        device_value, device_gradient = step(there, logits.to(DEVICE), labels.to(DEVICE))
        torch.testing.assert_close(device_value.cpu(), value, **TOLERANCE)
        torch.testing.assert_close(device_gradient.cpu(), gradient, **TOLERANCE)
    for key, values in here.state_dict().items():
        torch.testing.assert_close(there.state_dict()[key].cpu(), values, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(RANDOM))
def test_random_losses(name):
    """As large as on the CPU on the average over many draws, and the same again from the same seed."""
    logits, labels = (
        random_logits(256, make_loss(name).num_logits, dtype=torch.float32),
        random_labels(256, NUM_CLASSES),
    )

    def values(device):
        loss = make_loss(name).to(device)
        return torch.stack([step(loss, logits.to(device), labels.to(device))[0].cpu() for _ in range(30)])

    assert torch.equal(values(DEVICE), values(DEVICE))
    torch.testing.assert_close(values(DEVICE).mean(), values("cpu").mean(), rtol=0.05, atol=0)


def make_pair(folder, architecture, *opts):
    """A tiny model on the CPU and the same on the device, and a batch of two images."""
    loss = "EFL" if architecture.startswith("RetinaNet") else "EQL_V2"
    cfg = tiny_config(folder, architecture, loss, *opts)
    if loss == "EFL":
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    here = build_model(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = str(DEVICE)
    there = build_model(cfg)
    there.load_state_dict(here.state_dict())
    return here, there, [example(), example(classes=(2, 3), seed=1)]


def losses_of(model, batch):
    torch.manual_seed(0)
    with EventStorage():
        return model.train()(batch)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_train_alike(lvis_folder, architecture):
    # All regions take part: which are sampled is drawn by the device's generator.
    opts = ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 4096, "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0]
    opts += ["MODEL.RPN.BATCH_SIZE_PER_IMAGE", 100_000, "MODEL.RPN.POSITIVE_FRACTION", 1.0]
    here, there, batch = make_pair(lvis_folder, architecture, *opts)
    expected, actual = losses_of(here, batch), losses_of(there, batch)
    assert set(actual) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(actual[name].detach().cpu(), value.detach(), rtol=1e-3, atol=1e-5)
    sum(actual.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in there.parameters() if p.grad is not None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@torch.no_grad()
def test_models_detect_alike(lvis_folder, architecture):
    here, there, batch = make_pair(lvis_folder, architecture)
    for ours, theirs in zip(there.eval()(batch), here.eval()(batch)):
        ours, theirs = ours["instances"], theirs["instances"]
        assert ours.scores.device.type == DEVICE.type
        count = min(len(ours), len(theirs), 20)
        assert abs(len(ours) - len(theirs)) <= 2
        torch.testing.assert_close(ours.scores[:count].cpu(), theirs.scores[:count], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("class_specific", [False, True])
def test_postprocessing(class_specific):
    boxes, scores = random_predictions(0, class_specific=class_specific)
    expected, kept = fast_rcnn_inference_single_image(boxes, scores, (100, 100), 0.0, 0.5, 50)
    actual, device_kept = fast_rcnn_inference_single_image(
        boxes.to(DEVICE), scores.to(DEVICE), (100, 100), 0.0, 0.5, 50
    )
    assert torch.equal(device_kept.cpu(), kept)
    assert torch.equal(actual.pred_classes.cpu(), expected.pred_classes)
    torch.testing.assert_close(actual.pred_boxes.tensor.cpu(), expected.pred_boxes.tensor)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_the_scaler(lvis_folder, dtype):
    """Ten steps in half precision: the losses stay float32 and finite, the state too."""
    _, model, batch = make_pair(lvis_folder, "Mask-R-CNN-FPN")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    scaler = torch.amp.GradScaler(DEVICE.type, enabled=dtype == torch.float16 and DEVICE.type == "cuda")
    for _ in range(10):
        with torch.autocast(DEVICE.type, dtype=dtype):
            losses = losses_of(model, batch)
        assert losses["loss_cls"].dtype == torch.float32
        total = sum(losses.values())
        assert torch.isfinite(total)
        optimizer.zero_grad()
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()
    loss = model.roi_heads.box_predictor.classifier_loss
    assert all(torch.isfinite(values).all() for values in loss.state_dict().values())


@only_on_cuda
@pytest.mark.parametrize("name", LOSS_NAMES + REGULARIZERS)
def test_no_loss_makes_the_host_wait(name):
    loss = (regularized(name) if name in REGULARIZERS else make_loss(name)).to(DEVICE)
    logits = random_logits(64, loss.num_logits, dtype=torch.float32).to(DEVICE).requires_grad_()
    labels = random_labels(64, NUM_CLASSES).to(DEVICE)
    loss(logits, labels).backward()  # whatever is made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss(logits, labels).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@only_on_cuda
@pytest.mark.parametrize("name", ["SIGMOID", "EQL", "EQL_V2", "EFL", "FOCAL"])
def test_memory_of_a_loss(name):
    """The logits' gradient and two more matrices of their size, at LVIS's number of classes."""
    loss = make_loss(name, 1203).to(DEVICE)
    logits = random_logits(1024, loss.num_logits, dtype=torch.float32).to(DEVICE).requires_grad_()
    labels = random_labels(1024, 1203).to(DEVICE)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    loss(logits, labels).backward()
    assert torch.cuda.max_memory_allocated() - before <= 6 * logits.numel() * logits.element_size()


@only_on_cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_state_is_summed_over_ranks_by_nccl(tmp_path):
    from torch import multiprocessing

    file = tmp_path / "store"
    multiprocessing.spawn(_summed_state, args=(f"file://{file}", str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pth") for rank in range(2))
    alone = [make_loss("EQL_V2") for _ in range(2)]
    for rank, loss in enumerate(alone):
        step(loss, *_part_of(rank, loss))
    for key in ("pos_grad", "neg_grad"):
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], sum(loss.state_dict()[key] for loss in alone), rtol=1e-4, atol=1e-6)


def _part_of(rank: int, loss):
    return random_logits(32, loss.num_logits, seed=rank, dtype=torch.float32), random_labels(32, NUM_CLASSES, seed=rank)


def _summed_state(rank: int, init_method: str, folder: str) -> None:
    torch.cuda.set_device(rank)
    torch.distributed.init_process_group("nccl", init_method=init_method, rank=rank, world_size=2)
    loss = make_loss("EQL_V2").cuda()
    step(loss, *(values.cuda() for values in _part_of(rank, loss)))
    torch.save({key: values.cpu() for key, values in loss.state_dict().items()}, f"{folder}/{rank}.pth")
    torch.distributed.destroy_process_group()
