"""Checkpoints of mmdetection, torchvision and timm under this package's names, nothing dropped silently; and its own,
in another format."""

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError

#: Where checkpoints come from: mmdetection 2 and 3 (EQL v2, Seesaw: background last), mmdetection 1 (ACSL, BAGS:
#: background first), ResNets of torchvision and timm, whose names are the same, and Detectron2 and this package, whose
#: names stay.
LAYOUTS = ("mmdet2", "mmdet1", "imagenet", "detectron2")
#: The classifiers of each layout whose columns are known.
METHODS = {"mmdet2": ("softmax", "eql_v2", "seesaw"), "mmdet1": ("softmax", "acsl", "bags"), "imagenet": ("none",)}

_NORM = r"(?P<part>weight|bias|running_mean|running_var)"
_BACKBONE = [
    (r"conv1\.(?P<part>weight)", r"stem.conv1.\g<part>"),
    (rf"bn1\.{_NORM}", r"stem.conv1.norm.\g<part>"),
    (r"layer(?P<l>[1-4])\.(?P<b>\d+)\.conv(?P<c>[1-3])\.(?P<part>weight)", r"res{l}.\g<b>.conv\g<c>.\g<part>"),
    (rf"layer(?P<l>[1-4])\.(?P<b>\d+)\.bn(?P<c>[1-3])\.{_NORM}", r"res{l}.\g<b>.conv\g<c>.norm.\g<part>"),
    (r"layer(?P<l>[1-4])\.(?P<b>\d+)\.downsample\.0\.(?P<part>weight)", r"res{l}.\g<b>.shortcut.\g<part>"),
    (rf"layer(?P<l>[1-4])\.(?P<b>\d+)\.downsample\.1\.{_NORM}", r"res{l}.\g<b>.shortcut.norm.\g<part>"),
]
_PARTS = r"(?P<part>weight|bias)"
_DETECTOR = [
    (rf"neck\.lateral_convs\.(?P<l>\d)\.conv\.{_PARTS}", r"backbone.fpn_lateral{l}.\g<part>"),
    (rf"neck\.fpn_convs\.(?P<l>\d)\.conv\.{_PARTS}", r"backbone.fpn_output{l}.\g<part>"),
    (rf"rpn_head\.rpn_conv\.{_PARTS}", r"proposal_generator.rpn_head.conv.\g<part>"),
    (rf"rpn_head\.rpn_cls\.{_PARTS}", r"proposal_generator.rpn_head.objectness_logits.\g<part>"),
    (rf"rpn_head\.rpn_reg\.{_PARTS}", r"proposal_generator.rpn_head.anchor_deltas.\g<part>"),
    (rf"mask_head\.convs\.(?P<c>\d)\.conv\.{_PARTS}", r"roi_heads.mask_head.mask_fcn{c}.\g<part>"),
    (rf"mask_head\.upsample\.{_PARTS}", r"roi_heads.mask_head.deconv.\g<part>"),
    (rf"mask_head\.conv_logits\.{_PARTS}", r"roi_heads.mask_head.predictor.\g<part>"),
    (rf"bbox_head\.(?P<s>\d\.)?shared_fcs\.(?P<c>\d)\.{_PARTS}", r"roi_heads.box_head.\g<s>fc{c}.\g<part>"),
    (rf"bbox_head\.(?P<s>\d\.)?fc_cls\.{_PARTS}", r"roi_heads.box_predictor.\g<s>cls_score.\g<part>"),
    (rf"bbox_head\.(?P<s>\d\.)?fc_reg\.{_PARTS}", r"roi_heads.box_predictor.\g<s>bbox_pred.\g<part>"),
    (
        r"bbox_head\.(?P<s>\d\.)?loss_cls\.(?P<part>pos_grad|neg_grad)",
        r"roi_heads.box_predictor.\g<s>classifier_loss.\g<part>",
    ),
    (r"bbox_head\.(?P<s>\d\.)?loss_cls\.cum_samples", r"roi_heads.box_predictor.\g<s>classifier_loss.num_seen"),
]
#: What is added to a number in a name: layer1 is res2, the neck's level 0 is p2, lists count from 1.
_OFFSETS = {"backbone": 1, "neck": 2, "other": 1}


@dataclass
class Converted:
    """What became of a checkpoint.

    Attributes:
        model: this package's names with their tensors.
        left_over: ``name: shape and reason`` of everything of the source that is not in ``model``, whole or in part.
        heuristics: whether Detectron2 is to find the names' places by their ends: a backbone alone.
        author: whose names they are; Detectron2 has rules of its own for "Caffe2".
    """

    model: Dict[str, Tensor] = field(default_factory=dict)
    left_over: List[str] = field(default_factory=list)
    heuristics: bool = False
    author: str = "eql_d2"

    def checkpoint(self) -> Dict[str, Any]:
        """Return what ``MODEL.WEIGHTS`` may name, once it is saved."""
        return {"model": self.model, "__author__": self.author, "matching_heuristics": self.heuristics}


def convert_checkpoint(
    state: Mapping[str, Tensor],
    layout: str,
    method: str = "",
    num_classes: int = 0,
    frequency: Optional[CategoryFrequency] = None,
    group_bounds: Sequence[int] = (10, 100, 1000),
    temperatures: Tuple[float, float] = (0.0, 0.0),
) -> Converted:
    """Return the parameters of a checkpoint under this package's names, with its columns in this package's order.

    Classes are in the order of their ids in both worlds. Box deltas need no change: mmdetection's deviations of 0.1 and
    0.2 are Detectron2's weights of 10 and 5.

    Args:
        state: names and tensors, the ``state_dict`` of the file.
        layout: one of :data:`LAYOUTS`.
        method: one of :data:`METHODS` of the layout; not looked at for "imagenet" and "detectron2".
        num_classes: K; not looked at for "imagenet" and "detectron2".
        frequency: counts of the training set, for BAGS.
        group_bounds: of BAGS.
        temperatures: of a normed classifier and of a normed mask predictor; 0 for linear ones.

    Raises:
        InputError: for a layout or method that there is not, counts that are missing, or a tensor of another width than
            the method's.
    """
    if layout not in LAYOUTS:
        raise InputError(f"--layout is {layout!r}; there are {', '.join(LAYOUTS)}.")
    if layout == "imagenet":
        return _convert_backbone(state)
    if layout == "detectron2":
        return Converted(dict(state))
    if method not in METHODS[layout]:
        raise InputError(f"--method is {method!r}; for --layout {layout} there are {', '.join(METHODS[layout])}.")
    columns = classifier_columns(layout, method, num_classes, frequency, group_bounds)
    converted = Converted()
    for name, value in state.items():
        new_name = _new_name(name.replace("roi_head.", "", 1))
        if new_name is None:
            converted.left_over.append(f"{name}: {list(value.shape)}, has no place here")
            continue
        value, reason = _reorder(new_name, name, value, layout, columns, num_classes)
        converted.model[new_name] = value
        if reason:
            converted.left_over.append(f"{name}: {reason}")
        for suffix, temperature in zip(("cls_score.weight", "mask_head.predictor.weight"), temperatures):
            if temperature and new_name.endswith(suffix):
                converted.model[f"{new_name[: -len('weight')]}temperature"] = torch.tensor(float(temperature))
    return converted


def classifier_columns(
    layout: str,
    method: str,
    num_classes: int,
    frequency: Optional[CategoryFrequency] = None,
    group_bounds: Sequence[int] = (10, 100, 1000),
) -> Tensor:
    """Return, for each logit of this package's loss, its column in the source's classifier, int64 ``[num_logits]``.

    mmdetection 2: K classes, then background; Seesaw has foreground and background there. mmdetection 1: background
    first. BAGS: background, foreground; then, for each group with a class, others and its classes by id.

    Raises:
        InputError: for BAGS without counts, or with those of another number of classes.
    """
    if layout == "mmdet2":
        return torch.arange(num_classes + (2 if method == "seesaw" else 1))
    if method != "bags":
        return torch.cat([torch.arange(1, num_classes + 1), torch.zeros(1, dtype=torch.int64)])
    if frequency is None or frequency.num_classes != num_classes:
        found = "none are given" if frequency is None else f"those given are of {frequency.num_classes}"
        raise InputError(f"--method bags needs the counts of {num_classes} classes by --frequency; {found}.")
    groups = torch.bucketize(frequency.instance_count, torch.tensor(list(group_bounds)), right=True)
    classes, others, column = torch.empty(num_classes, dtype=torch.int64), [], 2
    for group in groups.unique():
        members = torch.nonzero(groups == group).flatten()
        others.append(column)
        classes[members] = column + 1 + torch.arange(len(members))
        column += 1 + len(members)
    return torch.cat([classes, torch.tensor([*others, 1, 0])])


def _convert_backbone(state: Mapping[str, Tensor]) -> Converted:
    converted = Converted(heuristics=True)
    for name, value in state.items():
        new_name = _substitute(_BACKBONE, name, _OFFSETS["backbone"])
        if new_name is None:
            converted.left_over.append(f"{name}: {list(value.shape)}, has no place here")
        else:
            converted.model[new_name] = value
    return converted


def _new_name(name: str) -> Optional[str]:
    if name.startswith("backbone."):
        found = _substitute(_BACKBONE, name[len("backbone.") :], _OFFSETS["backbone"])
        return None if found is None else f"backbone.bottom_up.{found}"
    return _substitute(_DETECTOR, name, _OFFSETS["neck" if name.startswith("neck.") else "other"])


def _substitute(rules: List[Tuple[str, str]], name: str, offset: int) -> Optional[str]:
    """Return the new name of ``name``; ``{x}`` in a rule's target is the number of the group x plus ``offset``."""
    for pattern, target in rules:
        match = re.fullmatch(pattern, name)
        if match:
            numbers = {key: int(value) + offset for key, value in match.groupdict().items() if (value or "").isdigit()}
            for key, number in numbers.items():
                target = target.replace(f"{{{key}}}", str(number))
            return match.expand(target)
    return None


def _reorder(
    new_name: str, name: str, value: Tensor, layout: str, columns: Tensor, num_classes: int
) -> Tuple[Tensor, str]:
    """Return a tensor in this package's order, and what of it was left out."""
    if ".cls_score." in new_name:
        _check_rows(name, value, len(columns))
        return value[columns], ""
    per_class = 4 if ".bbox_pred." in new_name else 1 if ".mask_head.predictor." in new_name else 0
    if per_class and len(value) != per_class:  # a row for all classes stays
        rows = per_class * (num_classes + (layout == "mmdet1"))
        _check_rows(name, value, rows)
        if layout == "mmdet1":
            return value[per_class:], f"its first {per_class} rows, those of background, have no place here"
    if ".classifier_loss." in new_name:
        left_out = f"the entries after the first {num_classes} have no place here" if len(value) > num_classes else ""
        return value[:num_classes].double(), left_out
    return value, ""


def _check_rows(name: str, value: Tensor, rows: int) -> None:
    if len(value) != rows:
        raise InputError(
            f"{name} has {len(value)} rows, but --layout, --method and --num-classes say {rows}; give those of the "
            f"training."
        )
