"""ViTDet's backbone, which Detectron2 has for Python configs alone, for YAML."""

from functools import partial

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid, ViT
from torch import nn

from eql_d2.errors import InputError

#: Of ViTDet's release: pixels of a patch's side, and the pyramid's strides relative to it.
PATCH_SIZE = 16
SCALE_FACTORS = (4.0, 2.0, 1.0, 0.5)


@BACKBONE_REGISTRY.register()
def build_vit_pyramid_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SimpleFeaturePyramid:
    """Build Detectron2's ``ViT`` under its ``SimpleFeaturePyramid`` (ViTDet, Li et al., arXiv 2203.16527).

    ``MODEL.LONG_TAIL.VIT`` has the sizes, ``MODEL.FPN.OUT_CHANNELS`` and ``MODEL.FPN.NORM`` are of the pyramid, whose
    levels are p2 to p6. Images are padded to a square of ``VIT.IMAGE_SIZE``. All else is as in the release: relative
    positions, windows in all blocks but ``VIT.GLOBAL_BLOCKS``, the positions of 224-pixel weights interpolated.

    Raises:
        InputError: if the image size is no multiple of 32, the heads do not divide the width, or a block is not there.
    """
    node = cfg.MODEL.LONG_TAIL.VIT
    if node.IMAGE_SIZE < 32 or node.IMAGE_SIZE % 32:
        raise InputError(f"MODEL.LONG_TAIL.VIT.IMAGE_SIZE is {node.IMAGE_SIZE}; it is a multiple of 32.")
    if node.WIDTH % node.HEADS:
        raise InputError(f"MODEL.LONG_TAIL.VIT.WIDTH is {node.WIDTH}, which its HEADS {node.HEADS} do not divide.")
    unknown = sorted(set(node.GLOBAL_BLOCKS) - set(range(node.DEPTH)))
    if unknown:
        raise InputError(
            f"MODEL.LONG_TAIL.VIT.GLOBAL_BLOCKS has {unknown[0]}; the {node.DEPTH} blocks are counted from 0."
        )
    net = ViT(
        img_size=node.IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        in_chans=input_shape.channels,
        embed_dim=node.WIDTH,
        depth=node.DEPTH,
        num_heads=node.HEADS,
        drop_path_rate=node.DROP_PATH,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=node.WINDOW,
        window_block_indexes=tuple(i for i in range(node.DEPTH) if i not in node.GLOBAL_BLOCKS),
    )
    return SimpleFeaturePyramid(
        net,
        in_feature="last_feat",
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        scale_factors=SCALE_FACTORS,
        top_block=LastLevelMaxPool(),
        norm=cfg.MODEL.FPN.NORM,
        square_pad=node.IMAGE_SIZE,
    )
