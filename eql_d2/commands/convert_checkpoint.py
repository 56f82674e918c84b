"""Write another framework's checkpoint under this package's names; list what has no place here.

    eql-d2 convert-checkpoint epoch_12.pth eql_v2.pth --layout mmdet2 --method eql_v2 --num-classes 1203
    eql-d2 convert-checkpoint epoch_12.pth bags.pth --layout mmdet1 --method bags --num-classes 1230 \
        --frequency lvis_v0.5_train.json
    eql-d2 convert-checkpoint resnet50.pth r50.pth --layout imagenet
    eql-d2 convert-checkpoint output/model_final.pth final.safetensors --layout detectron2

Read are .pth, .pkl, .pyth and .safetensors, of which nothing is executed; safetensors is written if the output's name
ends so. With --layout detectron2 names and values stay, and all that is no weight is left out.

The file is for MODEL.WEIGHTS. Weights of PyTorch-style ResNets go with MODEL.RESNETS.STRIDE_IN_1X1 False,
INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53] and MODEL.PIXEL_STD [58.395, 57.12, 57.375].
"""

import argparse
from pathlib import Path
from typing import Optional, Sequence

import torch

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.engine.convert import LAYOUTS, convert_checkpoint
from eql_d2.errors import InputError
from eql_d2.weights import read_checkpoint, write_checkpoint


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="the checkpoint")
    parser.add_argument("output", type=Path, help="the file to write: .pth or .safetensors")
    parser.add_argument(
        "--layout",
        required=True,
        choices=LAYOUTS,
        help="imagenet: torchvision's or timm's ResNets; detectron2: names stay",
    )
    parser.add_argument("--method", default="", help="mmdet2: softmax, eql_v2, seesaw; mmdet1: softmax, acsl, bags")
    parser.add_argument("--num-classes", type=int, default=0, metavar="K", help="classes, background not counted")
    parser.add_argument("--frequency", default="", metavar="JSON", help="training json, or counts, for bags")
    parser.add_argument("--group-bounds", type=int, nargs="*", default=[10, 100, 1000], metavar="N", help="of bags")
    parser.add_argument("--temperature", type=float, default=0.0, help="of a normed classifier (mmdetection: 20)")
    parser.add_argument("--mask-temperature", type=float, default=0.0, help="of a normed mask predictor")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_arguments(argv)
    if args.output.suffix == ".pkl":
        raise InputError(f"{args.output}: pickles are read, but not written; name a file .pth or .safetensors.")
    source = read_checkpoint(args.input)
    converted = convert_checkpoint(
        {name: torch.as_tensor(value) for name, value in source["model"].items()},
        args.layout,
        args.method,
        args.num_classes,
        CategoryFrequency.from_json(args.frequency) if args.frequency else None,
        args.group_bounds,
        (args.temperature, args.mask_temperature),
    )
    if args.layout == "detectron2" and source.get("matching_heuristics"):
        converted.heuristics, converted.author = True, source["__author__"]
    if not converted.model:
        raise InputError(f"{args.input} holds no parameter that --layout {args.layout} names.")
    write_checkpoint(args.output, converted.checkpoint())
    for line in converted.left_over:
        print(f"left over: {line}")
    print(f"{args.output}: {len(converted.model)} tensors; {len(converted.left_over)} left over")
