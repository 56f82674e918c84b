"""Every config key that this package adds to Detectron2's, under one node: ``MODEL.LONG_TAIL``."""

import re
from difflib import get_close_matches
from typing import Any, Dict, Mapping, Sequence

import torch

from eql_d2.compat import check_detectron2

check_detectron2()  # before anything of Detectron2 is imported, so that a wrong version is named as such

from detectron2.config import CfgNode as CN  # noqa: E402
from detectron2.config import get_cfg as get_detectron2_cfg  # noqa: E402
from detectron2.utils import comm  # noqa: E402

from eql_d2.config_files import find_config_file  # noqa: E402
from eql_d2.errors import InputError  # noqa: E402
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY  # noqa: E402

#: Detections of an image that a model returns for AP-fixed, unless the config asks for another number above ``AP_CAP``.
AP_FIXED_DETECTIONS = 3000


def add_eql_config(cfg: CN) -> None:
    """Add ``MODEL.LONG_TAIL`` to a Detectron2 config, in place."""
    cfg.MODEL.LONG_TAIL = CN()
    node = cfg.MODEL.LONG_TAIL

    # The classifier loss: a name in CLASSIFIER_LOSS_REGISTRY. Its settings are in the node of the same name below.
    node.LOSS = "SOFTMAX"
    # Which parameters are trained: "all"; "box_head", the box head with its classifier and its box regression;
    # "classifier", the last linear layer of each stage and no other (cRT, BAGS, ACSL); or "scale", one factor per logit
    # of a frozen classifier (LWS). All else is frozen, with the statistics of its norm layers.
    node.TRAINABLE = "all"
    # Where the classifier starts when MODEL.WEIGHTS is loaded: "keep" (from the weights, which must fit) or "reset" (at
    # random, with the loss's bias and without what a loss had accumulated). A resumed run goes on with its own.
    node.INIT_CLASSIFIER = "keep"
    # The last layer of the classifier: "linear", or "normed" (cosines, see NORMED).
    node.CLASSIFIER = "linear"
    # The last layer of LongTailMaskHead: "linear" (a 1x1 convolution), or "normed".
    node.MASK_PREDICTOR = "linear"
    # A json with the category counts to use instead of those of DATASETS.TRAIN: a training json in LVIS or COCO format,
    # or the category_frequency.json that training writes. For inference where the training json is absent.
    node.FREQUENCY = ""
    # Data sets to register: [name, json, image folder] each. Relative paths start at $DETECTRON2_DATASETS (default
    # ./datasets), and $VARIABLES are expanded. LVIS or COCO format, told apart by the json's content.
    node.DATASETS = []
    # The program that computes LVIS AP: "auto" (hotcoco if installed, else lvis), "hotcoco" or "lvis".
    node.EVALUATOR = "auto"
    # Report AP-fixed (arXiv 2102.01066) beside AP: the 10,000 best detections of each class over the whole set, no cap
    # per image. For it the model returns 3000 detections of an image where TEST.DETECTIONS_PER_IMAGE is AP_CAP or less,
    # and AP still counts as many as that was: 10,000 for each class are 2460 of each image of LVIS v0.5 val, 608 of v1
    # val. A detection takes some 160 bytes of the results file without a mask (2.4 and 9.5 GB at most), and the mask
    # head computes them all (0.6 GB for each layer's output of an image): MODEL.MASK_ON False for boxes only.
    node.AP_FIXED = False
    # Detections of an image that AP counts on LVIS-format sets, LVIS's 300, however many the model returns.
    node.AP_CAP = 300

    node.CLASSIFICATION = CN()
    # Image classification sets to register, mappings each: name, kind ("cifar", "list", "inaturalist" or "folder") and
    # path, relative to $DETECTRON2_DATASETS; and what the kind takes, see docs/classification.md.
    node.CLASSIFICATION.DATASETS = []
    # Side in pixels to which images in files are cropped; images in memory keep theirs.
    node.CLASSIFICATION.SIZE = 224
    # Test images are resized to this shorter side before the crop of SIZE; for images in files.
    node.CLASSIFICATION.RESIZE_TEST = 256
    # Zero pixels on each side of images in memory before a random crop of their own size. Images in files are cropped
    # by RandomResizedCrop.
    node.CLASSIFICATION.PADDING = 4
    # Strength of the random change of brightness, contrast and saturation; for images in files, 0 is off.
    node.CLASSIFICATION.COLOR_JITTER = 0.0
    # AutoAugment's policy (arXiv 1805.09501): "cifar10", "imagenet", "svhn", or "" for none.
    node.CLASSIFICATION.AUTO_AUGMENT = ""
    # Side in pixels of the square that Cutout (arXiv 1708.04552) makes black; 0 is off.
    node.CLASSIFICATION.CUTOUT = 0

    node.NORMED = CN()
    # Factor of the cosines in a normed classifier.
    node.NORMED.TEMPERATURE = 20.0
    # The same of a normed mask predictor.
    node.NORMED.MASK_TEMPERATURE = 20.0
    # Power of the norms that features and weights are divided by.
    node.NORMED.POWER = 1.0
    # Added to those norms.
    node.NORMED.EPS = 1e-6

    node.CASCADE = CN()
    # Factor of the box losses of each stage of a cascade: one for each stage, or one for all.
    node.CASCADE.STAGE_LOSS_WEIGHTS = (1.0,)
    # What is averaged over the stages at test time: "probabilities" (Detectron2), or "logits", of which the last
    # stage's loss then makes scores (the releases of ACSL and BAGS).
    node.CASCADE.SCORES = "probabilities"

    node.LWS = CN()
    # With TRAINABLE "scale", the factor of a class multiplies its bias too. The release scales the weight alone.
    node.LWS.SCALE_BIAS = False

    # How RepeatFactorTrainingSampler makes whole copies of a fractional repeat factor r: "stochastic" (drawn anew in
    # each epoch, Detectron2), "ceil" (mmdetection), or "append" (the releases of ACSL and BAGS: an image with r > 1 is
    # added ceil(r) times to the list that has it already).
    node.REPEAT_ROUNDING = "stochastic"

    node.TIMM = CN()
    # The model of timm that MODEL.BACKBONE.NAME build_timm_backbone and build_timm_fpn_backbone build.
    node.TIMM.NAME = "resnet50"
    # Stages whose features are given, "stage1" and on; the last if empty. Under an FPN MODEL.FPN.IN_FEATURES says it.
    node.TIMM.OUT_FEATURES = []
    # Start from timm's weights, which it downloads. MODEL.WEIGHTS is loaded after them.
    node.TIMM.PRETRAINED = False
    # "" for the model's norm layers, or "FrozenBN": batch norm with fixed statistics and factors.
    node.TIMM.NORM = ""

    node.ANALYSIS = CN()
    # Iterations between two steps whose gradients and probabilities are summed up for each category and written to
    # OUTPUT_DIR/training_gradients.csv at each checkpoint: 1 for every step; 0 is off.
    node.ANALYSIS.PERIOD = 0

    node.RETINANET = CN()
    # How anchors are given to objects: "iou" (MODEL.RETINANET.IOU_THRESHOLDS) or "atss" (arXiv 1912.02424).
    node.RETINANET.ASSIGNMENT = "iou"
    # With "atss": the nearest anchors of each level that an object may have, 9 for each anchor of a place.
    node.RETINANET.ATSS_TOPK = 9
    # Predict the overlap (IoU) of each box with its object: it weights the box loss, GIoU, and multiplies the scores.
    node.RETINANET.QUALITY = False

    node.TAU_NORM = CN()
    # tau-normalisation of a trained classifier at test time: each class's weights are divided by their norm to this
    # power, and its bias is dropped. In [0, 1]; 0 is off. It comes before CALIBRATION.
    node.TAU_NORM.TAU = 0.0

    _add_loss_settings(node)
    _add_calibration_settings(node)


def _add_loss_settings(node: CN) -> None:
    """Add one node for each registered loss; a key is the constructor argument's name in upper case."""
    node.SOFTMAX = CN()
    # A background column (detection), or none (plain classification).
    node.SOFTMAX.BACKGROUND = True

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

    node.EQL_V2 = CN()
    # Slope of f(g) = sigmoid(gamma (g - mu)), which maps a class's gradient ratio g to the weight of its negatives.
    node.EQL_V2.GAMMA = 12.0
    # Gradient ratio at which f is one half.
    node.EQL_V2.MU = 0.8
    # How much more the positives of a class with gradient ratio 0 weigh; 0 re-weights the negatives alone.
    node.EQL_V2.ALPHA = 4.0
    # Negatives weigh f(g). False: they weigh 1, and the positives alone are re-weighted.
    node.EQL_V2.REWEIGHT_NEGATIVES = True
    # Train the extra, category-agnostic column.
    node.EQL_V2.CATEGORY_AGNOSTIC = True
    # Multiply the scores by one minus the probability of the extra column.
    node.EQL_V2.CATEGORY_AGNOSTIC_TEST = True
    # Probability of each column before training.
    node.EQL_V2.PRIOR = 0.001

    node.SOFTMAX_EQL = CN()
    # Exponent of the accumulated positive gradient that scales each class in the softmax.
    node.SOFTMAX_EQL.PI = 1.0
    # "v1" (the paper) or "v2" (the authors' code has it too).
    node.SOFTMAX_EQL.FORM = "v1"
    # A background column (detection), or none (plain classification).
    node.SOFTMAX_EQL.BACKGROUND = True

    node.SEQL = CN()
    # Frequency threshold: a class in less than this share of all training images is tail (strict).
    node.SEQL.LAMBDA = 1.76e-3
    # Probability that a tail class is left out of the softmax of another class's region.
    node.SEQL.GAMMA = 0.95
    # Background regions leave no class out.
    node.SEQL.EXCLUDE_BACKGROUND = True
    # A background column (detection), or none (plain classification).
    node.SEQL.BACKGROUND = True
    # Seed of the random draws.
    node.SEQL.SEED = 0

    node.ACSL = CN()
    # Probability from which a class is discouraged by a region of another class.
    node.ACSL.XI = 0.7
    # Background regions discourage by the three shares below (the released code). False: by XI, as in the formula.
    node.ACSL.SAMPLE_BACKGROUND = True
    # Share of the background regions, drawn at random, that discourage rare classes.
    node.ACSL.RARE_SHARE = 0.01
    # The same for common classes.
    node.ACSL.COMMON_SHARE = 0.1
    # The same for frequent classes.
    node.ACSL.FREQUENT_SHARE = 1.0
    # Probability of each column before training.
    node.ACSL.PRIOR = 0.01
    # Seed of the random draws.
    node.ACSL.SEED = 0

    node.BAGS = CN()
    # Training instance counts at which a new group of classes begins.
    node.BAGS.GROUP_BOUNDS = (10, 100, 1000)
    # Regions of other classes that a group keeps for each region of its own, at random.
    node.BAGS.BETA = 8.0
    # Seed of the random draws.
    node.BAGS.SEED = 0

    node.EFL = CN()
    # Focusing parameter of a class whose gradients are balanced.
    node.EFL.GAMMA_B = 2.0
    # Focusing parameter that a class with gradient ratio 0 has on top.
    node.EFL.SCALE = 8.0
    # Weight of positives; negatives have one minus this.
    node.EFL.ALPHA = 0.25
    # Probability of each class before training.
    node.EFL.PRIOR = 0.001

    node.EQFL = CN()
    # Focusing parameter of a class whose gradients are balanced.
    node.EQFL.GAMMA_B = 2.0
    # Focusing parameter that a class with gradient ratio 0 has on top.
    node.EQFL.SCALE = 8.0
    # Probability of each class before training.
    node.EQFL.PRIOR = 0.001

    node.CLASS_BALANCED = CN()
    # Weights are (1 - beta) / (1 - beta^instances), divided by their mean.
    node.CLASS_BALANCED.BETA = 0.999
    # Least weight of a class; 0 for no bound.
    node.CLASS_BALANCED.MIN_WEIGHT = 0.1
    # Largest weight of a class; .inf for no bound.
    node.CLASS_BALANCED.MAX_WEIGHT = 5.0
    # A background column (detection), or none (plain classification).
    node.CLASS_BALANCED.BACKGROUND = True

    node.INVERSE_FREQUENCY = CN()
    # Weights are instances^-power, divided by their mean; 0.5 for the square root.
    node.INVERSE_FREQUENCY.POWER = 1.0
    # Least weight of a class; 0 for no bound.
    node.INVERSE_FREQUENCY.MIN_WEIGHT = 0.1
    # Largest weight of a class; .inf for no bound.
    node.INVERSE_FREQUENCY.MAX_WEIGHT = 5.0
    # A background column (detection), or none (plain classification).
    node.INVERSE_FREQUENCY.BACKGROUND = True

    node.FOCAL = CN()
    # Focusing parameter.
    node.FOCAL.GAMMA = 2.0
    # Weight of positives; negatives have one minus this.
    node.FOCAL.ALPHA = 0.25
    # Probability of each class before training.
    node.FOCAL.PRIOR = 0.01
    # "sigmoid" (K columns, divided by the foreground regions), or "bags" (the form of BAGS's release: a background
    # column, divided by regions x columns, scores by softmax).
    node.FOCAL.FORM = "sigmoid"

    node.SEESAW = CN()
    # Exponent of the mitigation factor (class counts).
    node.SEESAW.P = 0.8
    # Exponent of the compensation factor (mistakes).
    node.SEESAW.Q = 2.0
    # Least probability of the right class in the compensation factor.
    node.SEESAW.EPS = 0.01
    # The two columns of objectness (detection), or none (plain classification).
    node.SEESAW.BACKGROUND = True

    node.FEDERATED = CN()
    # Classes that take part in a step, at least.
    node.FEDERATED.NUM_SAMPLED_CLASSES = 50
    # Classes are drawn in proportion to their image count to this power.
    node.FEDERATED.FREQUENCY_POWER = 0.5
    # Probability of each class before training.
    node.FEDERATED.PRIOR = 0.01
    # Seed of the random draws.
    node.FEDERATED.SEED = 0

    node.DROPLOSS = CN()
    # Frequency threshold: a class in less than this share of all training images is tail (strict).
    node.DROPLOSS.LAMBDA = 1.76e-3
    # Probability of each class before training.
    node.DROPLOSS.PRIOR = 0.001
    # Seed of the random draws.
    node.DROPLOSS.SEED = 0

    node.BALANCED_SOFTMAX = CN()
    # Strength of the adjustment tau log(instances): 1 is balanced softmax, 0 is softmax.
    node.BALANCED_SOFTMAX.TAU = 1.0
    # A background column (detection), or none (plain classification).
    node.BALANCED_SOFTMAX.BACKGROUND = True

    node.ECM = CN()
    # Background regions for each foreground region.
    node.ECM.BACKGROUND_RATIO = 6.3313
    # Probability of each column before training.
    node.ECM.PRIOR = 0.001

    node.GOL = CN()
    # What spares tail classes: "droploss" (the paper's GOL), "eql", or "none", with a background column.
    node.GOL.WEIGHTS = "droploss"
    # Frequency threshold of DropLoss and EQL: a class in less than this share of all training images is tail (strict).
    node.GOL.LAMBDA = 1.76e-3
    # Probability of each column before training.
    node.GOL.PRIOR = 6.18e-4
    # Seed of DropLoss's random draws.
    node.GOL.SEED = 0

    node.IIF = CN()
    # The factor of a class's logit by its share n / N: "raw" log(N / n), "base2", "base10", "smooth", "prob", "normit"
    # or "gombit".
    node.IIF.VARIANT = "raw"
    # What n and N count: "images" or "instances".
    node.IIF.COUNTS = "images"
    # A background column (detection), or none (plain classification).
    node.IIF.BACKGROUND = True


def _add_calibration_settings(node: CN) -> None:
    """Add ``CALIBRATION``: what is done to the scores of a trained classifier at test time."""
    node.CALIBRATION = CN()
    # A name in CALIBRATION_REGISTRY ("NORCAL", "LOGN"), or "" for none. Its settings are in the node of the same name.
    node.CALIBRATION.NAME = ""

    node.CALIBRATION.NORCAL = CN()
    # Scores of a class are divided by its image count to this power; to be tuned on held-out data, 0 is off.
    node.CALIBRATION.NORCAL.GAMMA = 0.6

    node.CALIBRATION.LOGN = CN()
    # File with the mean and standard deviation of each logit over a data set, written by eql-d2 calibrate; for a
    # cascade, the file of the first stage, with those of the others beside it.
    node.CALIBRATION.LOGN.STATISTICS = ""
    # Which statistics those are: "test" (mean and deviation over all regions that are classified at test time), or
    # "training" (running ones of the regions sampled for training, as in the release).
    node.CALIBRATION.LOGN.REGIONS = "test"
    # Share of each step in the running statistics; used with REGIONS "training" alone.
    node.CALIBRATION.LOGN.MOMENTUM = 5e-5


def get_cfg() -> CN:
    """Return Detectron2's default config with ``MODEL.LONG_TAIL`` added."""
    cfg = get_detectron2_cfg()
    add_eql_config(cfg)
    return cfg


def flatten(cfg: Mapping[str, Any], prefix: str = "") -> Dict[str, Any]:
    """Return the leaves of a config, or of any nested mapping, by their dotted names."""
    leaves: Dict[str, Any] = {}
    for key, value in cfg.items():
        leaves.update(flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return leaves


def load_config(config_file: str = "", opts: Sequence[str] = ()) -> CN:
    """Return Detectron2's defaults with this package's keys, ``config_file`` and ``opts`` merged in.

    Args:
        config_file: path of a YAML file; where there is no such file, the name of a packaged config, as
            :func:`eql_d2.config_files.get_config_file` takes it; empty for the defaults.
        opts: alternating keys and values, as they trail a command line.

    Raises:
        InputError: if the file is missing or no YAML, or a key is unknown or has a value of the wrong type.
    """
    cfg = get_cfg()
    if config_file:
        config_file = find_config_file(config_file)
        _merge(cfg, lambda: cfg.merge_from_file(config_file), config_file)
    opts = list(opts)
    if len(opts) % 2:
        raise InputError(f"The config overrides {' '.join(opts)} are not pairs of KEY VALUE.")
    _merge(cfg, lambda: cfg.merge_from_list(opts), "the command line")
    _return_enough_for_ap_fixed(cfg)
    # A name that is misspelt is worth an answer before a data set is read.
    CLASSIFIER_LOSS_REGISTRY.get(cfg.MODEL.LONG_TAIL.LOSS)
    return cfg


def _return_enough_for_ap_fixed(cfg: CN) -> None:
    """With ``AP_FIXED``, raise a number of detections that was meant for AP; one above ``AP_CAP`` was meant for it."""
    node = cfg.MODEL.LONG_TAIL
    if node.AP_FIXED and 0 <= cfg.TEST.DETECTIONS_PER_IMAGE <= node.AP_CAP:
        node.AP_CAP = cfg.TEST.DETECTIONS_PER_IMAGE
        cfg.TEST.DETECTIONS_PER_IMAGE = AP_FIXED_DETECTIONS


def _merge(cfg: CN, merge, source: str) -> None:
    """Call ``merge`` and turn what yacs and PyYAML raise into one sentence."""
    try:
        merge()
    except (KeyError, AssertionError, ValueError) as error:
        message = str(error.args[0]) if error.args else str(error)
        found = re.search(r"Non-existent (?:config )?key: ([\w.\-]+)", message)
        if not found:
            raise InputError(f"{source}: {message}") from None
        near = get_close_matches(found.group(1), flatten(cfg), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"{source}: {found.group(1)} is no config key.{hint}") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error}).") from None
    except Exception as error:  # PyYAML's errors have no common name without importing it
        if type(error).__module__.startswith("yaml"):
            raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
        raise


def choose_device(cfg: CN) -> None:
    """Fall back to the CPU where the config asks for CUDA and there is none, and say so."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        if comm.is_main_process():
            print(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but torch finds no CUDA device: running on the CPU.")
        cfg.MODEL.DEVICE = "cpu"
