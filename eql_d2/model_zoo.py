"""The configs of the package by name, in the manner of ``detectron2.model_zoo``; there are no weights to download.

Example:
    >>> from eql_d2 import model_zoo
    >>> cfg = model_zoo.get_config("LVISv0.5/eql/mask_rcnn_R_50_FPN_paper")
    >>> cfg.MODEL.LONG_TAIL.LOSS
    'EQL'
"""

from detectron2.config import CfgNode

from eql_d2.config import load_config
from eql_d2.config_files import get_config_file, list_configs

__all__ = ["get_config", "get_config_file", "list_configs"]


def get_config(name: str) -> CfgNode:
    """Return a config with its bases, Detectron2's defaults and this package's keys.

    Args:
        name: path below ``configs``, with or without ``.yaml``; see :func:`list_configs`.

    Raises:
        InputError: if there is no such config; the message names the closest ones.
    """
    return load_config(get_config_file(name))
