"""Every config key that this package adds to Detectron2's, under one node: ``MODEL.LONG_TAIL``."""

from eql_d2.compat import check_detectron2

check_detectron2()  # before anything of Detectron2 is imported, so that a wrong version is named as such

from detectron2.config import CfgNode as CN  # noqa: E402
from detectron2.config import get_cfg as get_detectron2_cfg  # noqa: E402


def add_eql_config(cfg: CN) -> None:
    """Add ``MODEL.LONG_TAIL`` to a Detectron2 config, in place."""
    cfg.MODEL.LONG_TAIL = CN()
    node = cfg.MODEL.LONG_TAIL

    # The classifier loss: a name in CLASSIFIER_LOSS_REGISTRY. Its settings are in the node of the same name below.
    node.LOSS = "SOFTMAX"
    # A json with the category counts to use instead of those of DATASETS.TRAIN: a training json in LVIS or COCO format,
    # or the category_frequency.json that training writes. For inference where the training json is absent.
    node.FREQUENCY = ""
    # Data sets to register: [name, json, image folder] each. Relative paths start at $DETECTRON2_DATASETS (default
    # ./datasets), and $VARIABLES are expanded. LVIS or COCO format, told apart by the json's content.
    node.DATASETS = []
    # The program that computes LVIS AP: "auto" (hotcoco if installed, else lvis), "hotcoco" or "lvis".
    node.EVALUATOR = "auto"

    _add_loss_settings(node)


def _add_loss_settings(node: CN) -> None:
    """Add one node for each registered loss; a key is the constructor argument's name in upper case."""
    node.SOFTMAX = CN()

    node.SIGMOID = CN()
    # Probability of each class before training; sets the initial bias of the classifier.
    node.SIGMOID.PRIOR = 0.001

    node.EQL = CN()
    # Frequency threshold: a class in less than this share of all training images is tail (strict).
    node.EQL.LAMBDA = 1.76e-3
    # T(f): "threshold" (uses LAMBDA), "exponential" or "gompertz".
    node.EQL.WEIGHT_FUNCTION = "threshold"
    # a and n of the exponential decay 1 - (a f)^n.
    node.EQL.EXPONENTIAL_A = 400.0
    node.EQL.EXPONENTIAL_N = 2.0
    # a, b and c of the Gompertz decay 1 - a exp(-b exp(-c f)).
    node.EQL.GOMPERTZ_A = 1.0
    node.EQL.GOMPERTZ_B = 80.0
    node.EQL.GOMPERTZ_C = 3000.0
    # E(r): background regions keep discouraging tail classes. False drops E(r) (Table 4).
    node.EQL.EXCLUDE_BACKGROUND = True
    # Classes in the positive or negative set of a region's image keep their full weight.
    node.EQL.IMAGE_LEVEL_EXEMPTION = True
    # Probability of each class before training.
    node.EQL.PRIOR = 0.001


def get_cfg() -> CN:
    """Return Detectron2's default config with ``MODEL.LONG_TAIL`` added."""
    cfg = get_detectron2_cfg()
    add_eql_config(cfg)
    return cfg
