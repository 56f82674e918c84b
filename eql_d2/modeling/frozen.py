"""What need not be computed where a part of the model is frozen, and what need be computed only once."""

from pathlib import Path
from typing import Any, Dict, List, Tuple
from unittest.mock import patch

import torch
from detectron2.modeling.roi_heads.roi_heads import add_ground_truth_to_proposals
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from eql_d2.data.feature_cache import RegionFeatures, read_features, write_features
from eql_d2.data.random_state import same_random_state_afterwards


def is_frozen(module: nn.Module) -> bool:
    """Return whether the module has parameters and none of them is trained, so that a loss of it alone has no use."""
    trained = [parameter.requires_grad for parameter in module.parameters()]
    return bool(trained) and not any(trained)


def cached_regions(model: nn.Module, example: Dict[str, Any]) -> RegionFeatures:
    """Return all regions of a training image with their features, read from ``feature_file`` or computed and written.

    Args:
        model: an R-CNN in training mode, frozen in front of its classifier.
        example: of :class:`~eql_d2.data.feature_cache.FeatureCacheMapper`.
    """
    path = Path(example["feature_file"])
    if "image" in example and not path.is_file():
        write_features(path, _compute_regions(model, example))
    return read_features(path)


@torch.no_grad()
def _compute_regions(model: nn.Module, example: Dict[str, Any]) -> RegionFeatures:
    """Send one image through the frozen part; the random state is afterwards as before."""
    heads, targets = model.roi_heads, [example["instances"].to(model.device)]
    with same_random_state_afterwards(), patch.object(model.proposal_generator, "anchor_counts", []) as counts:
        images = model.preprocess_image([example])
        features = model.backbone(images.tensor)
        proposals, _ = model.proposal_generator(images, features, targets)
    if heads.proposal_append_gt:
        proposals = add_ground_truth_to_proposals(targets, proposals)
    boxes = proposals[0].proposal_boxes
    gt_boxes, gt_classes = targets[0].gt_boxes.tensor, targets[0].gt_classes
    parts = (boxes.tensor, heads.region_features(features, [boxes]), gt_boxes, gt_classes, counts[0])
    return RegionFeatures(*(part.cpu().contiguous() for part in parts))


def losses_of_regions(
    heads: nn.Module, regions: List[RegionFeatures], sizes: List[Tuple[int, int]], device: torch.device
) -> Dict[str, Tensor]:
    """Sample regions as a step of the whole model does, by the same random numbers, and return the classifier's losses.

    Args:
        heads: the ROI heads.
        regions: of each image.
        sizes: (height, width) of each image.
        device: of the model.
    """
    for of_image in regions:
        for number in of_image.num_anchors.tolist():
            torch.randperm(number, device=device)  # the RPN's sample of anchors, which nobody asks for
    proposals, targets = [], []
    for of_image, size in zip(regions, sizes):
        boxes = Boxes(of_image.boxes.to(device))
        proposals.append(Instances(size, proposal_boxes=boxes, row=torch.arange(len(boxes), device=device)))
        gt_boxes, gt_classes = Boxes(of_image.gt_boxes.to(device)), of_image.gt_classes.to(device)
        targets.append(Instances(size, gt_boxes=gt_boxes, gt_classes=gt_classes))
    with patch.object(heads, "proposal_append_gt", False):  # they are among the regions already
        proposals = heads.label_and_sample_proposals(proposals, targets)
    features = [of_image.features[proposal.row.cpu()] for of_image, proposal in zip(regions, proposals)]
    predictions = heads.box_predictor(torch.cat(features).to(device))
    return heads.box_predictor.losses(predictions, proposals)
