"""The optimizer that ``MODEL.LONG_TAIL.OPTIMIZER`` names: Detectron2's SGD, or AdamW with a decay over the layers."""

from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone.vit import get_vit_lr_decay_rate
from detectron2.solver import build_optimizer as build_sgd
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from eql_d2.errors import InputError

NAMES = ("SGD", "AdamW")


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build the optimizer of a model.

    AdamW has the learning rate ``SOLVER.BASE_LR``, the weight decay ``SOLVER.WEIGHT_DECAY`` (norms:
    ``WEIGHT_DECAY_NORM``; the positions of a ViT: none) and PyTorch's moments. With ``LAYER_DECAY`` below 1 the
    learning rate of a ViT's block is that of the next one times it (ViTDet's release: 0.7).

    Raises:
        InputError: for another optimizer, a decay that is not in (0, 1], or one with SGD or without a ViT.
    """
    node = cfg.MODEL.LONG_TAIL.OPTIMIZER
    if node.NAME not in NAMES:
        raise InputError(f"MODEL.LONG_TAIL.OPTIMIZER.NAME is {node.NAME!r}; there are {', '.join(map(repr, NAMES))}.")
    if not 0 < node.LAYER_DECAY <= 1:
        raise InputError(f"MODEL.LONG_TAIL.OPTIMIZER.LAYER_DECAY is {node.LAYER_DECAY}; it lies in (0, 1].")
    has_blocks = any(name.startswith("backbone.net.blocks.") for name, _ in model.named_parameters())
    if node.LAYER_DECAY < 1 and (node.NAME == "SGD" or not has_blocks):
        raise InputError(
            f"MODEL.LONG_TAIL.OPTIMIZER.LAYER_DECAY is {node.LAYER_DECAY}, which is of AdamW and the blocks of "
            f"MODEL.BACKBONE.NAME build_vit_pyramid_backbone; set it to 1."
        )
    if node.NAME == "SGD":
        return build_sgd(cfg, model)
    decay = partial(get_vit_lr_decay_rate, lr_decay_rate=node.LAYER_DECAY, num_layers=cfg.MODEL.LONG_TAIL.VIT.DEPTH)
    parameters = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        lr_factor_func=decay if node.LAYER_DECAY < 1 else None,
        overrides={"pos_embed": {"weight_decay": 0.0}},
    )
    return maybe_add_gradient_clipping(cfg, torch.optim.AdamW(parameters, lr=cfg.SOLVER.BASE_LR))
