"""Every config key that this package adds to Detectron2's, under one node: ``MODEL.LONG_TAIL``."""

import os
import re
from difflib import get_close_matches
from typing import Any, Dict, Mapping, Sequence
from unittest.mock import patch

import torch
import yaml

from eql_d2.compat import check_detectron2

check_detectron2()  # before anything of Detectron2 is imported, so that a wrong version is named as such

import detectron2  # noqa: E402
from detectron2.config import CfgNode as CN  # noqa: E402
from detectron2.config import get_cfg as get_detectron2_cfg  # noqa: E402
from detectron2.projects.deeplab import add_deeplab_config  # noqa: E402
from detectron2.utils import comm  # noqa: E402
from fvcore.common.config import CfgNode as YamlReader  # noqa: E402

from eql_d2.config_files import find_config_file  # noqa: E402
from eql_d2.data.groups import COMMON_MAX_IMAGES, RARE_MAX_IMAGES  # noqa: E402
from eql_d2.errors import InputError  # noqa: E402
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY  # noqa: E402
from eql_d2.method_settings import (  # noqa: E402
    add_calibration_settings,
    add_loss_settings,
    add_region_settings,
    add_regularizer_settings,
)

#: Detections of an image that a model returns for AP-fixed, unless the config asks for another number above ``AP_CAP``.
AP_FIXED_DETECTIONS = 3000


def add_eql_config(cfg: CN) -> None:
    """Add ``MODEL.LONG_TAIL`` to a Detectron2 config, in place."""
    cfg.MODEL.LONG_TAIL = CN()
    node = cfg.MODEL.LONG_TAIL

    # The classifier loss: a name in CLASSIFIER_LOSS_REGISTRY. Its settings are in the node of the same name below.
    node.LOSS = "SOFTMAX"
    # Which parameters are trained: "all"; "box_head", the box head with its classifier and its box regression;
    # "predictors", classifier, box regression, proposals and masks (LOCE); "classifier", the last linear layer of each
    # stage and no other (cRT, BAGS, ACSL); or "scale", one factor per logit of a frozen classifier (LWS). All else is
    # frozen, with the statistics of its norm layers.
    node.TRAINABLE = "all"
    # With TRAINABLE "classifier" or "scale": the folder where what the classifier sees of each training image, flipped
    # and not, is kept, so that a second epoch, and another second stage on the same weights, neither read nor compute
    # it. "" is off. It needs a fixed size and no augmentation but flips; images go through the frozen part one by one.
    node.FEATURE_CACHE = ""
    # Where the classifier starts when MODEL.WEIGHTS is loaded: "keep" (from the weights, which must fit), "reset" (at
    # random, with the loss's bias and without what a loss had accumulated), or "match" (each class from that of the
    # same name in the weights, which may have other classes). A resumed run goes on with its own.
    node.INIT_CLASSIFIER = "keep"
    # With "match": the json in LVIS or COCO format, or the registered data set, whose classes are those of
    # MODEL.WEIGHTS, as in "coco_2017_train".
    node.INIT_CLASSES = ""
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
    # Whether the annotations of DATASETS may name images that are not below the image folder, by an absolute path or by
    # "..". They then may name any file that you can read.
    node.IMAGES_ANYWHERE = False
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

    # What a class is to the regions of an image that does not verify it, that is neither shows it nor says that it is
    # absent: "loss" (whatever the loss makes of it; most take it for a negative), or "exempt" (no negative gradient;
    # losses with a softmax or a column for background cannot, nor image classification); see docs/merged_data.md.
    node.UNVERIFIED = "loss"

    node.IGNORED = CN()
    # Boxes under which nothing is background in training, mappings each: dataset (of DATASETS.TRAIN), json (in LVIS or
    # COCO format, of the same images) and, if wanted, categories (names; all by default) and match ("id", or
    # "file_name"). As in {dataset: lvis_v0.5_train, json: coco/annotations/instances_train2017.json}.
    node.IGNORED.BOXES = []
    # The same for the crowd regions and group-of boxes of the training sets themselves.
    node.IGNORED.CROWD = False
    # An anchor or proposal that is no object's is left out of the sample if an ignored box covers this share of its
    # area. The paper gives no number; this one is ours.
    node.IGNORED.THRESHOLD = 0.5

    node.OPEN_IMAGES = CN()
    # Data sets in the format of Open Images to register, mappings each: name, boxes, classes, images (a folder) and, if
    # there are any, image_labels and hierarchy, see datasets/README.md. Relative paths start at $DETECTRON2_DATASETS.
    node.OPEN_IMAGES.DATASETS = []
    # AP of Open Images is given for five groups of as many classes (100 of 500), ordered by their "instances" (boxes,
    # before expansion; EQL v2 and EFL) or by their "images" (EQL) in the training set.
    node.OPEN_IMAGES.GROUP_BY = "instances"
    # What a group-of box that is found counts in AP: 1 in the challenge of 2019, 0 leaves such boxes out.
    node.OPEN_IMAGES.GROUP_OF_WEIGHT = 1.0

    node.SEM_SEG = CN()
    # Folders of images and of index masks to register for semantic segmentation, mappings each: name, images, masks,
    # classes (a file with a name in each line) and, where they are not 0 and 255, first_label and ignore: the values of
    # the first class and of no label in the masks. Relative paths start at $DETECTRON2_DATASETS.
    node.SEM_SEG.DATASETS = []
    # Groups of classes that mean IoU and accuracy are given for: a class in at most so many training images is rare, or
    # common; and likewise one whose pixels would fill at most so many images.
    node.SEM_SEG.RARE_MAX_IMAGES = RARE_MAX_IMAGES
    node.SEM_SEG.COMMON_MAX_IMAGES = COMMON_MAX_IMAGES
    # Where the groups head and body end in the order of the labels, as (20, 75); () is off but for ADE20K-150, whose
    # are (20, 75) (DisAlign, arXiv 2103.16370).
    node.SEM_SEG.HEAD_BODY_ENDS = ()

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
    # Choose DATALOADER.REPEAT_THRESHOLD from the counts, so that the classes that are repeated have about this share of
    # the image counts; 0 for the threshold as it is.
    node.REPEAT_TAIL_RATIO = 0.0
    # The frequency of a class that the threshold is divided by: its share of the "images", or the "geometric" mean of
    # that and of its share of all instances (IRFS).
    node.REPEAT_FREQUENCY = "images"
    # Power of that quotient; 0 for the half that DATALOADER.REPEAT_SQRT stands for, or the 1 without it.
    node.REPEAT_EXPONENT = 0.0

    node.TRAINING = CN()
    # How many of the checkpoints of every SOLVER.CHECKPOINT_PERIOD iterations are kept, the last ones; 0 for all. The
    # final weights are kept beside them. With 2 or more there is one to go back to if the last is damaged.
    node.TRAINING.CHECKPOINTS_KEPT = 0
    # Steps in a row that are skipped, their loss or gradient not being finite, before the training stops.
    node.TRAINING.SKIPPED_STEPS = 20

    node.TIMM = CN()
    # The model of timm that MODEL.BACKBONE.NAME build_timm_backbone and build_timm_fpn_backbone build.
    node.TIMM.NAME = "resnet50"
    # Stages whose features are given, "stage1" and on; the last if empty. Under an FPN MODEL.FPN.IN_FEATURES says it.
    node.TIMM.OUT_FEATURES = []
    # Start from timm's weights, which it downloads. MODEL.WEIGHTS is loaded after them.
    node.TIMM.PRETRAINED = False
    # "" for the model's norm layers, "FrozenBN": batch norm with fixed statistics and factors, or "SyncBN": batch norm
    # with the statistics of all GPUs.
    node.TIMM.NORM = ""

    node.VIT = CN()
    # The plain transformer that MODEL.BACKBONE.NAME build_vit_pyramid_backbone builds (ViTDet); the defaults are ViT-B.
    # Channels of each block.
    node.VIT.WIDTH = 768
    # Blocks.
    node.VIT.DEPTH = 12
    # Heads of each block's attention.
    node.VIT.HEADS = 12
    # Blocks that attend to the whole image; the others to windows.
    node.VIT.GLOBAL_BLOCKS = (2, 5, 8, 11)
    # Side of a window, in patches of 16 x 16 pixels.
    node.VIT.WINDOW = 14
    # Stochastic depth: how often the last block is left out of a training step; the others less often.
    node.VIT.DROP_PATH = 0.1
    # Side in pixels of the square that images are padded to, a multiple of 32.
    node.VIT.IMAGE_SIZE = 1024

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

    node.TTA = CN()
    # With TEST.AUG.ENABLED: whether the mask probabilities of a box are averaged over all views, or those of the plain
    # image (INPUT.MIN_SIZE_TEST) alone, "multi-scale boxes without multi-scale masks".
    node.TTA.MASKS = True

    node.TAU_NORM = CN()
    # tau-normalisation of a trained classifier at test time: each class's weights are divided by their norm to this
    # power, and its bias is dropped. In [0, 1]; 0 is off. It comes before CALIBRATION.
    node.TAU_NORM.TAU = 0.0

    _add_training_settings(node)
    add_loss_settings(node)
    add_regularizer_settings(node)
    add_region_settings(node)
    add_calibration_settings(node)


def _add_training_settings(node: CN) -> None:
    """Add what changes the course of a training, whatever its method; docs/training.md is about it."""
    node.BEST = CN()
    # Metric whose best weights are kept in OUTPUT_DIR/model_best.pth, as metrics.json names it: "segm/AP", "bbox/APr";
    # of several test sets "lvis_v1_val/segm/AP". "" is off. It is looked at each time that TEST.EVAL_PERIOD evaluates.
    node.BEST.METRIC = ""
    # Whether the metric is best at its "max" or its "min".
    node.BEST.MODE = "max"
    # End the training after so many evaluations in a row without a new best; 0 is off.
    node.BEST.PATIENCE = 0

    # Programs that the metrics go to, beside metrics.json and TensorBoard: "wandb" and "mlflow", by their own packages,
    # whose environment variables say which project and server.
    node.WRITERS = ()

    node.AUGMENT = CN()
    # Large-scale jitter in the place of INPUT.MIN_SIZE_TRAIN: an image is resized to fit a square times a factor drawn
    # between these two, as in (0.1, 2.0), and cropped or padded to the square. () is off.
    node.AUGMENT.SCALE_JITTER = ()
    # Side of that square in pixels.
    node.AUGMENT.SIZE = 1024
    # Probability that objects of another image are pasted into an image, by their masks (arXiv 2012.07177); it needs
    # SCALE_JITTER. 0 is off.
    node.AUGMENT.COPY_PASTE = 0.0
    # Where they come from: "uniform" (any image, each of its objects with a chance of one half), or "rare" (a class is
    # drawn, all with the same chance, then an image of it, whose objects of that class are pasted).
    node.AUGMENT.COPY_PASTE_SOURCE = "uniform"

    node.OPTIMIZER = CN()
    # "SGD" (Detectron2's, with all of its SOLVER keys), or "AdamW", with SOLVER.BASE_LR, WEIGHT_DECAY and
    # WEIGHT_DECAY_NORM.
    node.OPTIMIZER.NAME = "SGD"
    # With AdamW and a ViT: factor from the learning rate of each block to that of the one below it (ViTDet: 0.7).
    node.OPTIMIZER.LAYER_DECAY = 1.0

    node.EMA = CN()
    # Share of the moving average of the weights that is kept in each iteration, as in 0.9998; it starts lower. The
    # average is what is evaluated, and what a checkpoint is evaluated with. 0 is off.
    node.EMA.DECAY = 0.0

    node.ACCUMULATE = CN()
    # Equal parts in which the SOLVER.IMS_PER_BATCH images of an iteration go through the model, one after the other,
    # their gradients added up: about 1/PARTS of the memory for activations. 1 is off.
    node.ACCUMULATE.PARTS = 1


def get_cfg() -> CN:
    """Return Detectron2's default config, with the keys of its DeepLab project, and ``MODEL.LONG_TAIL`` added."""
    cfg = get_detectron2_cfg()
    add_deeplab_config(cfg)
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

    Nothing in a file or in its ``_BASE_`` files is executed. Detectron2's own files, which compute a value, load.

    Raises:
        InputError: if the file is missing or no YAML, holds a tag that would execute something, or a key is unknown or
            has a value of the wrong type.
    """
    cfg = get_cfg()
    if config_file:
        config_file = find_config_file(config_file)
        # Detectron2 reads its files by this method of the class, and by default executes what they say.
        with patch.object(CN, "load_yaml_with_base", _PlainYaml.load_yaml_with_base):
            _merge(cfg, lambda: cfg.merge_from_file(config_file), config_file)
    opts = list(opts)
    if len(opts) % 2:
        raise InputError(f"The config overrides {' '.join(opts)} are not pairs of KEY VALUE.")
    _merge(cfg, lambda: cfg.merge_from_list(opts), "the command line")
    _return_enough_for_ap_fixed(cfg)
    # A name that is misspelt is worth an answer before a data set is read.
    CLASSIFIER_LOSS_REGISTRY.get(cfg.MODEL.LONG_TAIL.LOSS)
    return cfg


class _PlainYaml(YamlReader):
    """Reads YAML with its ``_BASE_`` files as plain values, but for the files that Detectron2 itself has brought."""

    _open_cfg = CN._open_cfg

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> Dict[str, Any]:
        if os.path.exists(filename) and not os.path.isfile(filename):  # a pipe would be waited for
            raise InputError(f"{filename} is no file; a config, and each _BASE_ of one, is a YAML file.")
        try:
            return super().load_yaml_with_base(filename, allow_unsafe=_is_detectron2_s_own(filename))
        except yaml.constructor.ConstructorError as error:
            raise InputError(
                f"{filename} has a value that is no plain one ({' '.join(str(error).split())}); nothing in a config is "
                f"executed."
            ) from None
        except RecursionError:
            raise InputError(f"{filename} leads back to itself by _BASE_, or is nested too deep.") from None


def _is_detectron2_s_own(path: str) -> bool:
    """Whether a file is of the Detectron2 that is installed; in a checkout its configs are linked into the package."""
    package = os.path.dirname(detectron2.__file__)
    folders = [os.path.realpath(folder) for folder in (package, os.path.join(package, "model_zoo", "configs"))]
    real = os.path.realpath(path)
    return any(os.path.commonpath([real, folder]) == folder for folder in folders)


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
    except InputError:
        raise
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not valid YAML: it is no text ({error}).") from None
    except (AttributeError, TypeError) as error:
        raise InputError(f"{source} is no mapping of config keys to values ({error}).") from None
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
    except yaml.YAMLError as error:
        raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None


def choose_device(cfg: CN) -> None:
    """Fall back to the CPU where the config asks for CUDA and there is none, and say so."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        if comm.is_main_process():
            print(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but torch finds no CUDA device: running on the CPU.")
        cfg.MODEL.DEVICE = "cpu"
