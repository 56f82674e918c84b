"""Running a trained model again and again on the same images, with other scores each time, at the cost of once."""

from collections import Counter, defaultdict
from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Dict, Iterator, List, Tuple
from unittest.mock import patch

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from eql_d2.modeling.classifier_layer import ClassifierLayer

#: A detection: the image's place in the batch, and the bytes of its box and class.
_Key = Tuple[int, bytes]


class Memory:
    """What the parts of a model in front of its classifiers have put out for a batch, and the masks of its detections.

    These parts do not look at the scores: backbone, proposals, pooled features and box heads, and in a cascade the
    boxes from stage to stage. Masks do, as they are of the boxes that come out; each is computed once.
    """

    def __init__(self) -> None:
        self._outputs: Dict[nn.Module, List[Any]] = defaultdict(list)
        self._calls: Dict[nn.Module, int] = Counter()
        self._masks: Dict[_Key, Tensor] = {}
        self._is_active = True

    def forget(self) -> None:
        """Begin with other images."""
        self._outputs.clear()
        self._masks.clear()

    def rewind(self) -> None:
        """Begin with the same images again."""
        self._calls.clear()

    def remembered(self, module: nn.Module) -> Callable:
        """Return a ``forward`` of the module that computes its n-th output for a batch once."""
        forward = module.forward

        def remembering(*args, **kwargs):
            if not self._is_active:
                return forward(*args, **kwargs)
            outputs, call = self._outputs[module], self._calls[module]
            self._calls[module] += 1
            if call == len(outputs):
                outputs.append(forward(*args, **kwargs))
            return outputs[call]

        return remembering

    def remembered_masks(self, heads: nn.Module) -> Callable:
        """Return a ``forward_with_given_boxes`` of the ROI heads that computes the mask of a box and class once."""
        predict = heads.forward_with_given_boxes

        def remembering(features: Dict[str, Tensor], instances: List[Instances]) -> List[Instances]:
            keys = [list(_keys(place, of_image)) for place, of_image in enumerate(instances)]
            new = [[i for i, key in enumerate(of_image) if key not in self._masks] for of_image in keys]
            if any(new) or not all(keys):
                self._is_active = False  # a C4 head's masks go through the layers of its boxes
                try:
                    predicted = predict(features, [of_image[i] for of_image, i in zip(instances, new)])
                finally:
                    self._is_active = True
                for of_image, indices, output in zip(keys, new, predicted):
                    self._masks.update((of_image[i], mask) for i, mask in zip(indices, output.pred_masks))
            for place, (of_image, output) in enumerate(zip(keys, instances)):
                masks = [self._masks[key] for key in of_image]
                output.pred_masks = torch.stack(masks) if masks else predicted[place].pred_masks
            return instances

        return remembering


def _keys(place: int, instances: Instances) -> Iterator[_Key]:
    classes = instances.pred_classes.unsqueeze(1).double()
    for row in torch.cat([instances.pred_boxes.tensor.double(), classes], dim=1).cpu().numpy():
        yield place, row.tobytes()


@contextmanager
def remembering(model: nn.Module) -> Iterator[Memory]:
    """Let ``model``, in evaluation mode, compute for each batch only once what does not depend on the scores.

    Args:
        model: with classifiers of this package (:class:`~eql_d2.modeling.classifier_layer.ClassifierLayer`).

    Yields:
        The memory; ``forget()`` comes before a batch, ``rewind()`` before each pass over it.
    """
    memory = Memory()
    with ExitStack() as stack:
        for module in _without_classifier(model):
            stack.enter_context(patch.object(module, "forward", memory.remembered(module)))
        heads = getattr(model, "roi_heads", None)
        if getattr(heads, "mask_on", False):
            stack.enter_context(patch.object(heads, "forward_with_given_boxes", memory.remembered_masks(heads)))
        yield memory


def _without_classifier(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the largest parts of a module that hold no classifier and are called as a whole."""
    for child in module.children():
        if isinstance(child, ClassifierLayer):
            continue
        if isinstance(child, nn.ModuleList) or any(isinstance(part, ClassifierLayer) for part in child.modules()):
            yield from _without_classifier(child)
        else:
            yield child
