"""From a config to a classifier loss."""

from eql_d2.data.catalog import category_frequency
from eql_d2.errors import InputError
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY, ClassifierLoss, build_classifier_loss


def build_classifier_loss_from_config(cfg) -> ClassifierLoss:
    """Build the loss that ``MODEL.LONG_TAIL.LOSS`` names, with the settings of its own node.

    The category counts come from ``MODEL.LONG_TAIL.FREQUENCY`` or the data sets of ``DATASETS.TRAIN``; losses that use
    no counts are built without reading either.

    Raises:
        InputError: for an unknown loss or setting, or if the counts are of another number of classes than
            ``MODEL.ROI_HEADS.NUM_CLASSES``.
    """
    node = cfg.MODEL.LONG_TAIL
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    loss_class = CLASSIFIER_LOSS_REGISTRY.get(node.LOSS)
    categories = num_classes
    if loss_class.needs_frequency:
        categories = category_frequency(cfg.DATASETS.TRAIN, node.FREQUENCY)
        if categories.num_classes != num_classes:
            source = node.FREQUENCY or ", ".join(cfg.DATASETS.TRAIN)
            raise InputError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}, but {source} has {categories.num_classes} categories; "
                f"the two must be equal."
            )
    return build_classifier_loss(node.LOSS, categories, node.get(node.LOSS, {}))
