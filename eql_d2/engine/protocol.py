"""Training protocols: which parameters are trained, and where the classifier starts.

Decoupled training (cRT and LWS, arXiv 1910.09217), ACSL and BAGS take a trained detector and train its classifier
alone.
"""

from functools import partial
from typing import Any, Dict, List, Tuple

from detectron2.config import CfgNode
from torch import nn

from eql_d2.errors import InputError
from eql_d2.modeling.classifier_layer import classifier_layers

#: What ``MODEL.LONG_TAIL.TRAINABLE`` may be, with the beginnings of the names of the parameters of a box predictor that
#: are then trained.
TRAINABLE = {
    "all": (),
    "box_head": ("cls_score.", "cls_scale", "bbox_pred."),
    "predictors": ("cls_score.", "cls_scale", "bbox_pred."),
    "classifier": ("cls_score.",),
    "scale": ("cls_scale",),
}
#: The beginnings of the names of what some of them train besides.
BESIDE_PREDICTORS = {
    "box_head": ("roi_heads.box_head.",),
    "predictors": ("proposal_generator.", "roi_heads.mask_head."),
}
INIT_CLASSIFIER = ("keep", "reset", "match")
#: Parts of a box predictor that belong to the classifier: its parameters and what its loss has accumulated.
CLASSIFIER_PARTS = ("cls_score.", "cls_scale", "classifier_loss.")


def check_protocol(cfg: CfgNode) -> None:
    """Check ``TRAINABLE`` and ``INIT_CLASSIFIER``.

    Raises:
        InputError: for a value that there is not, or two that contradict each other.
    """
    node = cfg.MODEL.LONG_TAIL
    for key, values in (("TRAINABLE", tuple(TRAINABLE)), ("INIT_CLASSIFIER", INIT_CLASSIFIER)):
        if node[key] not in values:
            raise InputError(f"MODEL.LONG_TAIL.{key} is {node[key]!r}; there are {', '.join(map(repr, values))}.")
    if node.TRAINABLE == "scale" and node.INIT_CLASSIFIER != "keep":
        raise InputError(
            "MODEL.LONG_TAIL.TRAINABLE is 'scale', which trains factors of a trained classifier; "
            "MODEL.LONG_TAIL.INIT_CLASSIFIER must then be 'keep'."
        )


def freeze(model: nn.Module, trainable: str) -> None:
    """Leave the parameters trainable that ``MODEL.LONG_TAIL.TRAINABLE`` names, and freeze all else for good.

    Frozen parameters want no gradient, so an optimizer that is built afterwards leaves them out, and
    DistributedDataParallel, wrapped around afterwards, does not wait for them. Every frozen layer stays in evaluation
    mode whoever calls ``train()``: batch norm keeps its statistics and dropout is off. Modules made of other modules do
    change their mode, since proposals and heads do other things in training. The state of the loss keeps moving.

    Args:
        model: the whole model.
        trainable: "all" (nothing is frozen), "box_head", "predictors", "classifier" or "scale".

    Raises:
        InputError: if the model has no box predictor of this package.
    """
    if trainable == "all":
        return
    trained = tuple(f"{name}.{part}" for name, _ in classifier_layers(model) for part in TRAINABLE[trainable])
    if trained and trainable in BESIDE_PREDICTORS:
        trained += BESIDE_PREDICTORS[trainable]
        if not hasattr(model, "roi_heads"):
            raise InputError(
                f"MODEL.LONG_TAIL.TRAINABLE is {trainable!r}, and a {type(model).__name__} has no box head; "
                f"'classifier' and 'scale' train its last layer."
            )
    if not trained:
        raise InputError(
            f"MODEL.LONG_TAIL.TRAINABLE is {trainable!r}, but the model has no box predictor of this package; set "
            f"MODEL.ROI_HEADS.NAME to one of its ROI heads."
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    losses = {part for _, predictor in classifier_layers(model) for part in predictor.classifier_loss.modules()}
    for module in model.modules():
        is_layer = next(module.children(), None) is None and module not in losses
        if is_layer and not any(parameter.requires_grad for parameter in module.parameters()):
            module.eval()
            # nn.Module.train(), of this or any module above, calls train() of the instance.
            module.train = partial(_stay_in_evaluation_mode, module)  # type: ignore[method-assign]


def _stay_in_evaluation_mode(module: nn.Module, mode: bool = True) -> nn.Module:
    return module


def is_part_of_classifier(model: nn.Module, name: str) -> bool:
    """Return whether the parameter or buffer ``name`` is of a box predictor's classifier or its loss."""
    prefixes = [f"{prefix}.{part}" for prefix, _ in classifier_layers(model) for part in CLASSIFIER_PARTS]
    return name.startswith(tuple(prefixes))


def drop_classifier(model: nn.Module, state: Dict[str, Any]) -> None:
    """Take the classifier and the state of its loss out of a checkpoint's parameters, in place."""
    for name in list(state):
        if is_part_of_classifier(model, name[len("module.") :] if name.startswith("module.") else name):
            del state[name]


def check_start(cfg: CfgNode, model: nn.Module, missing: List[str], incorrect_shapes: List[Tuple]) -> None:
    """Check that the weights which a training starts from have what ``cfg`` takes from them.

    Args:
        cfg: of the training.
        model: that the weights were loaded into.
        missing: names in the model that ``MODEL.WEIGHTS`` lacks.
        incorrect_shapes: (name, shape in ``MODEL.WEIGHTS``, shape in the model) of those that were not loaded for it.

    Raises:
        InputError: naming the first that is missing or does not fit.
    """
    node = cfg.MODEL.LONG_TAIL
    for name, in_weights, in_model in incorrect_shapes:
        if is_part_of_classifier(model, name) and ".classifier_loss." not in name:
            raise InputError(
                f"{name} is {list(in_weights)} in MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} and {list(in_model)} in the model "
                f"with MODEL.LONG_TAIL.LOSS {node.LOSS}; set MODEL.LONG_TAIL.INIT_CLASSIFIER reset to train a new one."
            )
    if node.TRAINABLE == "all":
        return
    absent = [name for name, *_ in incorrect_shapes] + [n for n in missing if not n.endswith("num_batches_tracked")]
    for name in absent:
        is_kept = node.INIT_CLASSIFIER == "keep" and ".cls_score." in name
        if is_kept or not is_part_of_classifier(model, name):
            raise InputError(
                f"MODEL.LONG_TAIL.TRAINABLE is {node.TRAINABLE!r}, but MODEL.WEIGHTS {cfg.MODEL.WEIGHTS} has no {name} "
                f"that fits the model; start from the weights of a trained detector of the same architecture."
            )
