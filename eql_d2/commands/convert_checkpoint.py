"""Write another framework's checkpoint under this package's names; list what has no place here.

    eql-d2 convert-checkpoint epoch_12.pth eql_v2.pth --layout mmdet2 --method eql_v2 --num-classes 1203
    eql-d2 convert-checkpoint epoch_12.pth bags.pth --layout mmdet1 --method bags --num-classes 1230 \
        --frequency lvis_v0.5_train.json
    eql-d2 convert-checkpoint resnet50.pth r50.pth --layout imagenet

The file is for MODEL.WEIGHTS. Weights of PyTorch-style ResNets go with MODEL.RESNETS.STRIDE_IN_1X1 False,
INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53] and MODEL.PIXEL_STD [58.395, 57.12, 57.375].
"""

import argparse
import io
import pickle
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

import torch

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.engine.convert import LAYOUTS, convert_checkpoint
from eql_d2.errors import InputError
from eql_d2.files import write_whole


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", type=Path, help="the checkpoint, a .pth file")
    parser.add_argument("output", type=Path, help="the .pth file to write")
    parser.add_argument("--layout", required=True, choices=LAYOUTS, help="imagenet: torchvision's or timm's ResNets")
    parser.add_argument("--method", default="", help="mmdet2: softmax, eql_v2, seesaw; mmdet1: softmax, acsl, bags")
    parser.add_argument("--num-classes", type=int, default=0, metavar="K", help="classes, background not counted")
    parser.add_argument("--frequency", default="", metavar="JSON", help="training json, or counts, for bags")
    parser.add_argument("--group-bounds", type=int, nargs="*", default=[10, 100, 1000], metavar="N", help="of bags")
    parser.add_argument("--temperature", type=float, default=0.0, help="of a normed classifier (mmdetection: 20)")
    parser.add_argument("--mask-temperature", type=float, default=0.0, help="of a normed mask predictor")
    return parser.parse_args(argv)


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_arguments(argv)
    converted = convert_checkpoint(
        read_tensors(args.input),
        args.layout,
        args.method,
        args.num_classes,
        CategoryFrequency.from_json(args.frequency) if args.frequency else None,
        args.group_bounds,
        (args.temperature, args.mask_temperature),
    )
    if not converted.model:
        raise InputError(f"{args.input} holds no parameter that --layout {args.layout} names.")
    buffer = io.BytesIO()
    torch.save(converted.checkpoint(), buffer)
    write_whole(args.output, buffer.getvalue())
    for line in converted.left_over:
        print(f"left over: {line}")
    print(f"{args.output}: {len(converted.model)} tensors; {len(converted.left_over)} left over")


def read_tensors(path: Path) -> Dict[str, Any]:
    """Return the names and tensors of a checkpoint: its ``state_dict`` or ``model``, or the whole file.

    Raises:
        InputError: if the file is missing, no checkpoint, or holds more than tensors and plain values.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path} is no checkpoint of tensors and plain values ({reason}).") from None
    for key in ("state_dict", "model"):
        content = content.get(key, content) if isinstance(content, dict) else {}
    return {name: value for name, value in content.items() if isinstance(value, torch.Tensor)}
