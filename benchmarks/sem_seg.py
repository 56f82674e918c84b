"""What the logits of all pixels cost a segmentation head in training.

    OMP_NUM_THREADS=1 python benchmarks/sem_seg.py

prints a Markdown table: forward and backward pass of ``LongTailSemSegFPNHead`` with several losses against Detectron2's
``SemSegFPNHead`` on the same features and labels, crops of 512 x 512 pixels; loss and gradients of softmax are asserted
to be equal. The convolutions below the last layer are few, since they are the same: what is measured is the last layer,
the upsampling and the loss. Memory is what a process of its own needs beyond the features and labels. Linux only.
"""

import argparse
from functools import partial
from typing import Dict, Tuple

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.utils.events import EventStorage
from measuring import assert_close, memory_bytes, run_within, timed
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.modeling.build import build_foreground_loss
from eql_d2.modeling.sem_seg_head import LongTailSemSegFPNHead

SIDE, STRIDE, CONVS_DIM = 512, 4, 128
#: (images, classes): crops of one process, and the classes of ADE20K-150 and ADE20K-full.
BATCHES = ((2, 150), (8, 150), (2, 847))
LOSSES = ("SOFTMAX", "BALANCED_SOFTMAX", "SOFTMAX_EQL", "SEQL", "SEESAW", "SIGMOID", "EQL", "EQL_V2")
#: Settings without which a loss is not of K columns, or has no tail.
SETTINGS = {"EQL_V2": {"CATEGORY_AGNOSTIC": False}, "EQL": {"TAIL_RATIO": 0.09}, "SEQL": {"TAIL_RATIO": 0.09}}
PEER = "Detectron2"
IGNORED = 255
IGNORED_SHARE = 0.1


def head_of(name: str, num_classes: int) -> torch.nn.Module:
    """Return a head with one level of few channels; its weights follow from the number of classes alone."""
    torch.manual_seed(0)
    settings = {"conv_dims": CONVS_DIM, "common_stride": STRIDE, "norm": "", "ignore_value": IGNORED + num_classes}
    shape = {"p2": ShapeSpec(channels=8, stride=STRIDE)}
    if name == PEER:
        head = SemSegFPNHead(shape, num_classes=num_classes, **settings)
        last = head.predictor
    else:
        counts = [1 + 10_000 // (label + 1) for label in range(num_classes)]
        frequency = CategoryFrequency.from_counts(counts, [100 * count for count in counts], num_images=20_000)
        loss = build_foreground_loss(name, frequency, SETTINGS.get(name, {}))
        head = LongTailSemSegFPNHead(shape, classifier_loss=loss, **settings)
        last = head.cls_score
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        weight = torch.randn(num_classes, CONVS_DIM, generator=generator).mul_(0.1)
        last.weight.copy_(weight.view_as(last.weight))
        last.bias.zero_()
        conv = head.scale_heads[0][0]
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator).mul_(0.2))
    return head.train()


def batch_of(num_images: int, num_classes: int) -> Tuple[Tensor, Tensor]:
    """Return features and labels, a tenth of them ignored."""
    generator = torch.Generator().manual_seed(2)
    features = torch.randn(num_images, 8, SIDE // STRIDE, SIDE // STRIDE, generator=generator)
    labels = torch.randint(0, num_classes, (num_images, SIDE, SIDE), generator=generator)
    ignored = torch.rand(labels.shape, generator=generator) < IGNORED_SHARE
    return features, labels.masked_fill_(ignored, IGNORED + num_classes)


def train(name: str, num_images: int, num_classes: int) -> Dict[str, Tensor]:
    """Return loss and gradients of one step, the seconds of its two passes and the memory."""
    head = head_of(name, num_classes)
    features, labels = batch_of(num_images, num_classes)

    def step() -> Tensor:
        head.zero_grad()
        with EventStorage():
            loss = head({"p2": features}, labels)[1]["loss_sem_seg"]
        loss.backward()
        return loss.detach()

    before = memory_bytes("VmHWM")
    value = step()
    peak = torch.tensor(memory_bytes("VmHWM") - before)
    last = head.predictor if name == PEER else head.cls_score
    gradients = {"at_last": last.weight.grad.flatten().clone(), "below": head.scale_heads[0][0].weight.grad.clone()}
    seconds, _ = timed(step, repeats=3)
    return {"loss": value, "peak": peak, "seconds": torch.tensor(seconds), **gradients}


def row(name: str, num_images: int, num_classes: int, result: Dict[str, Tensor], peer: Dict[str, Tensor]) -> str:
    """Return a row of the table; softmax was asserted to be the peer's."""
    logits = num_images * num_classes * SIDE**2 * 4
    seconds, peak = float(result["seconds"]), float(result["peak"])
    ratios = f"{seconds / float(peer['seconds']):.2f}x | {peak / float(peer['peak']):.2f}x"
    equal = {PEER: "", "SOFTMAX": "yes"}.get(name, "n/a")
    label = f"{PEER}, softmax" if name == PEER else f"eql_d2, `{name}`"
    memory = f"{peak / 2**20:,.0f} | {peak / logits:.1f}"
    return f"| {num_classes} | {num_images} | {label} | {seconds:.2f} | {memory} | {ratios} | {equal} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--losses", nargs="+", default=LOSSES, help="names in the registry; SOFTMAX is compared")
    args = parser.parse_args()
    print(f"Crops of {SIDE} x {SIDE} pixels, logits at stride {STRIDE}, one thread.\n")
    print("| classes | images | head | CPU seconds | memory (MiB) | in copies of the logits | seconds / peer ", end="")
    print("| memory / peer | equal |\n| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for num_images, num_classes in BATCHES:
        peer = run_within(partial(train, PEER, num_images, num_classes))
        print(row(PEER, num_images, num_classes, peer, peer), flush=True)
        for name in args.losses if num_images == 2 else ["SOFTMAX"]:
            result = run_within(partial(train, name, num_images, num_classes))
            if name == "SOFTMAX":
                assert_close(result, peer, ("loss", "at_last", "below"))
            print(row(name, num_images, num_classes, result, peer), flush=True)


if __name__ == "__main__":
    main()
