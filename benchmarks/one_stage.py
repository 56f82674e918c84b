"""What the logits of all anchors and classes cost a one-stage detector: at test time, and in the loss.

    OMP_NUM_THREADS=1 python benchmarks/one_stage.py

prints two Markdown tables. Test time: from the head's output to detections, ``LongTailRetinaNet`` against
Detectron2's ``RetinaNet`` on the same logits of one image; both give the same detections. Loss: forward and backward
pass of focal loss on the logits of all anchors, and of Equalized focal loss, against fvcore's ``sigmoid_focal_loss``
in plain autograd; focal loss and its gradient are asserted to be equal. Memory is what a process of its own needs, at
test time beyond the logits, for the loss with the logits and their gradient. Linux only.
"""

import argparse
from functools import partial
from typing import Dict, List, Tuple

import torch
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from fvcore.nn import sigmoid_focal_loss
from measuring import assert_close, memory_bytes, run_within, timed
from torch import Tensor
from torch.nn.functional import one_hot

import eql_d2.modeling  # noqa: F401
from eql_d2.config import load_config
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY

HEIGHT, WIDTH = 416, 672
STRIDES = (8, 16, 32, 64, 128)
ANCHORS = 9
NUM_CLASSES = (80, 1203, 5000)
DETECTIONS = 300
#: As a trained detector: nearly all scores are small.
LOGIT_MEAN, LOGIT_STD = -6.0, 1.5
FOREGROUND_SHARE = 0.002


def model_of(architecture: str, num_classes: int) -> torch.nn.Module:
    """Return a RetinaNet in evaluation mode; its head is narrow, since only what comes after it is measured."""
    opts = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 50, "MODEL.FPN.OUT_CHANNELS", 32]
    opts += ["MODEL.META_ARCHITECTURE", architecture, "MODEL.RETINANET.NUM_CLASSES", num_classes]
    opts += ["MODEL.ROI_HEADS.NUM_CLASSES", num_classes, "MODEL.LONG_TAIL.LOSS", "FOCAL"]
    opts += ["TEST.DETECTIONS_PER_IMAGE", DETECTIONS]
    return build_model(load_config("Base-RetinaNet-FPN.yaml", opts)).eval()


def predictions_of(num_classes: int) -> Tuple[List[Tensor], List[Tensor], List[Tensor]]:
    """Return feature maps (their sizes matter), logits and box deltas of each level."""
    generator = torch.Generator().manual_seed(0)
    features, logits, deltas = [], [], []
    for stride in STRIDES:
        height, width = -(-HEIGHT // stride), -(-WIDTH // stride)
        features.append(torch.zeros(1, 1, height, width))
        level = torch.randn(1, ANCHORS * num_classes, height, width, generator=generator)
        logits.append(level.mul_(LOGIT_STD).add_(LOGIT_MEAN))
        deltas.append(torch.randn(1, ANCHORS * 4, height, width, generator=generator).mul_(0.1))
    return features, logits, deltas


def detect(architecture: str, num_classes: int) -> Dict[str, Tensor]:
    """Return the detections of one image, the seconds that they took and the memory."""
    model = model_of(architecture, num_classes)
    images = ImageList(torch.zeros(1, 3, HEIGHT, WIDTH), [(HEIGHT, WIDTH)])
    features, logits, deltas = predictions_of(num_classes)

    @torch.no_grad()
    def run():
        return model.forward_inference(images, features, [logits, deltas])[0]

    before = memory_bytes("VmHWM")
    detections = run()
    peak = memory_bytes("VmHWM") - before
    seconds, _ = timed(run)
    order = detections.scores.argsort(descending=True, stable=True)
    return {
        "boxes": detections.pred_boxes.tensor[order],
        "scores": detections.scores[order],
        "classes": detections.pred_classes[order],
        "peak": torch.tensor(peak),
        "logits": torch.tensor(sum(level.numel() * level.element_size() for level in logits)),
        "seconds": torch.tensor(seconds),
    }


def train(name: str, num_classes: int) -> Dict[str, Tensor]:
    """Return loss and gradient of one image's anchors, the seconds of the two passes and the memory."""
    num_anchors = ANCHORS * sum(-(-HEIGHT // s) * -(-WIDTH // s) for s in STRIDES)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(num_anchors, num_classes, generator=generator).mul_(LOGIT_STD).add_(LOGIT_MEAN)
    labels = torch.randint(0, num_classes, (num_anchors,), generator=generator)
    background = torch.rand(num_anchors, generator=generator) > FOREGROUND_SHARE
    labels = torch.where(background, num_classes, labels)
    logits.requires_grad_()
    if name == "autograd":
        num_foreground = (labels < num_classes).sum()

        def loss() -> Tensor:
            targets = one_hot(labels, num_classes + 1)[:, :-1].to(logits.dtype)
            return sigmoid_focal_loss(logits, targets, 0.25, 2.0, reduction="sum") / num_foreground

    else:
        counts = [1 + 10_000 // (j + 1) for j in range(num_classes)]
        module = CLASSIFIER_LOSS_REGISTRY.get(name)(CategoryFrequency.from_counts(counts, num_images=100_000))

        def loss() -> Tensor:
            return module(logits, labels)

    def step() -> Tensor:
        logits.grad = None
        value = loss()
        value.backward()
        return value.detach()

    size = logits.numel() * logits.element_size()
    before = memory_bytes("VmHWM") - size
    value = step()
    result = {"loss": value, "peak": torch.tensor(memory_bytes("VmHWM") - before), "logits": torch.tensor(size)}
    rows = torch.cat([torch.nonzero(~background).flatten(), torch.arange(100)])
    result["gradient"] = logits.grad[rows].clone()
    result["seconds"] = torch.tensor(timed(step, repeats=3)[0])
    return result


def row(name: str, num_classes: int, result: Dict[str, Tensor], peer: Dict[str, Tensor], equal: str) -> str:
    """Return a row of the tables; ``equal`` says whether the results were asserted to be the peer's."""
    seconds, peak, logits = (float(result[key]) for key in ("seconds", "peak", "logits"))
    memory = f"{peak / 2**20:,.0f} | {peak / logits:.1f}"
    ratios = f"{seconds / float(peer['seconds']):.2f}x | {peak / float(peer['peak']):.2f}x"
    return f"| {num_classes:,} | {name} | {seconds:.3f} | {memory} | {ratios} | {equal} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=NUM_CLASSES, help="numbers of classes")
    parser.add_argument("--loss-classes", type=int, nargs="+", default=NUM_CLASSES[:2], help="of the losses")
    args = parser.parse_args()
    columns = "| CPU seconds | memory (MiB) | in copies of the logits | seconds / peer | memory / peer | equal |"
    rule = "| ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |"
    print(f"One image of {HEIGHT} x {WIDTH} pixels, {ANCHORS} anchors at a place, one thread.")
    print(f"\nFrom the head's output to {DETECTIONS} detections:\n\n| classes | {columns}\n{rule}")
    for num_classes in args.classes:
        ours, peer = (
            run_within(partial(detect, architecture, num_classes))
            for architecture in ("LongTailRetinaNet", "RetinaNet")
        )
        assert torch.equal(ours["classes"], peer["classes"]), "other classes"
        assert_close(ours, peer, ("boxes", "scores"))
        print(row("Detectron2", num_classes, peer, peer, ""))
        print(row("eql_d2", num_classes, ours, peer, "yes"), flush=True)
    print(f"\nLoss of all anchors, forward and backward pass:\n\n| classes | {columns}\n{rule}")
    for num_classes in args.loss_classes:
        results = {name: run_within(partial(train, name, num_classes)) for name in ("autograd", "FOCAL", "EFL")}
        peer = results["autograd"]
        assert_close(results["FOCAL"], peer, ("loss", "gradient"))
        print(row("focal, plain autograd (fvcore)", num_classes, peer, peer, ""))
        print(row("focal", num_classes, results["FOCAL"], peer, "yes"))
        print(row("Equalized focal", num_classes, results["EFL"], peer, "n/a"), flush=True)


if __name__ == "__main__":
    main()
