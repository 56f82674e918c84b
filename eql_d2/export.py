"""The whole detector as one file, for ONNX Runtime or TorchScript, compared with the model on images."""

import inspect
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import GeneralizedRCNN
from detectron2.structures import Instances
from torch import Tensor, nn

from eql_d2.errors import InputError
from eql_d2.files import whole_file, write_whole
from eql_d2.modeling import LongTailRetinaNet
from eql_d2.modeling.postprocessing import TRACED_CANDIDATES_PER_DETECTION
from eql_d2.predictor import Predictor

#: What an exported detector returns, N detections: boxes float32 ``[N, 4]`` (x0, y0, x1, y1 in pixels of its input),
#: scores float32 ``[N]``, labels int64 ``[N]``, and of a model with masks their probabilities float32 ``[N, 28, 28]``
#: within the boxes (``[N, M, M]`` for ``ROI_MASK_HEAD.POOLER_RESOLUTION`` M / 2).
OUTPUTS = ("boxes", "scores", "labels", "masks")
SUFFIXES = (".onnx", ".ts")
OPSET = 17
#: Two programs may round differently: what counts as equal in pixels, scores and mask probabilities.
TOLERANCES = {"boxes": 0.05, "scores": 1e-4, "masks": 1e-2}


@dataclass(frozen=True)
class Comparison:
    """How far an exported detector is from the model.

    Attributes:
        images: number of images compared.
        detections: number of detections of the model on them.
        differences: the largest difference of a matched detection: ``boxes`` in pixels, ``scores`` and ``masks``.
        at_the_cut: detections of one side alone whose score is that of the last one that is returned, so that rounding
            decides which of them is cut off.
    """

    images: int
    detections: int
    differences: Dict[str, float]
    at_the_cut: int

    def __str__(self) -> str:
        parts = {
            "boxes": "boxes within {:.1e} pixels",
            "scores": "scores within {:.1e}",
            "masks": "masks within {:.1e}",
        }
        told = ", ".join(parts[name].format(value) for name, value in self.differences.items())
        cut = f", {self.at_the_cut} of equal score cut differently" if self.at_the_cut else ""
        return f"the same {self.detections} detections on {self.images} images: {told}{cut}"


def export_detector(predictor: Predictor, image: np.ndarray, output: Union[str, Path]) -> None:
    """Write a detector, from the resized image to its best detections, and a json of what a program needs beside it.

    Scores are those of the config's loss and calibration, and the best ``TEST.DETECTIONS_PER_IMAGE`` detections those
    of the model, as :func:`~eql_d2.modeling.postprocessing.traced_inference` says. Height and width may change from
    image to image. The json: how to prepare an image, the outputs, the classes, their thresholds if the predictor has
    any.

    Args:
        predictor: on the CPU, of an R-CNN (Faster, Mask, Cascade) or a RetinaNet.
        image: an example, uint8 BGR ``[H, W, 3]``, with detections.
        output: ``FILE.onnx`` or ``FILE.ts``.

    Raises:
        InputError: for another suffix, a model that cannot be exported, or an image on which it finds nothing.
    """
    output = Path(output)
    if output.suffix not in SUFFIXES:
        raise InputError(f"--output {output} must end in .onnx (ONNX Runtime) or .ts (TorchScript).")
    if not isinstance(predictor.model, (GeneralizedRCNN, LongTailRetinaNet)):
        kind = predictor.cfg.MODEL.META_ARCHITECTURE
        raise InputError(
            f"MODEL.META_ARCHITECTURE is {kind}; what can be exported is the R-CNN family and LongTailRetinaNet."
        )
    example = predictor.example(image)["image"]
    adapter = TracingAdapter(predictor.model, [{"image": example}], _detect).eval()
    if not len(adapter(example)[0]):
        raise InputError("The model finds nothing in the first image, so its heads cannot be traced; take another.")
    with whole_file(output) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of every size that a trace takes for a constant; the comparison tells better
        if output.suffix == ".ts":
            torch.jit.save(torch.jit.trace(adapter, (example,), check_trace=False), file)
        else:
            _export_onnx(adapter, example, file, predictor.cfg.MODEL.MASK_ON)
    write_whole(output.with_suffix(".json"), json.dumps(_description(predictor), indent=1))


def compare_detector(predictor: Predictor, images: Sequence[np.ndarray], path: Union[str, Path]) -> Comparison:
    """Run an exported detector and the model on images.

    Args:
        predictor: as in :func:`export_detector`.
        images: uint8 BGR ``[H, W, 3]`` each.
        path: what :func:`export_detector` wrote.

    Raises:
        InputError: if they do not find the same, but for rounding (:data:`TOLERANCES`).
    """
    run = load_detector(path)
    differences: Dict[str, float] = {}
    detections = cut = 0
    for number, image in enumerate(images, 1):
        example = predictor.example(image)["image"]
        with torch.no_grad():
            expected = [part.numpy() for part in _detect(predictor.model, [{"image": example}])]
        found = run(example)
        of_image, at_the_cut = _compare(expected, found, f"{path}, image {number}")
        differences = {name: max(value, differences.get(name, 0.0)) for name, value in of_image.items()}
        detections, cut = detections + len(expected[0]), cut + at_the_cut
    return Comparison(len(images), detections, differences, cut)


def load_detector(path: Union[str, Path]) -> Callable[[Tensor], List[np.ndarray]]:
    """Return a function from a prepared image, float32 ``[3, H, W]``, to the outputs of :data:`OUTPUTS`.

    Raises:
        InputError: if ONNX Runtime is needed and not installed.
    """
    if Path(path).suffix == ".ts":
        module = torch.jit.load(str(path))
        return lambda image: [part.numpy() for part in module(image)]
    try:
        import onnxruntime
    except ImportError:
        raise InputError('Comparing needs ONNX Runtime: pip install "eql_d2[export]".') from None
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image.numpy()})


def _detect(model: nn.Module, inputs: List[Dict[str, Tensor]]) -> Tuple[Tensor, ...]:
    found: Instances = model.inference(inputs, do_postprocess=False)[0]
    masks = (found.pred_masks[:, 0],) if found.has("pred_masks") else ()
    return (found.pred_boxes.tensor, found.scores, found.pred_classes, *masks)


def _export_onnx(adapter: nn.Module, example: Tensor, file: Any, with_masks: bool) -> None:
    outputs = OUTPUTS if with_masks else OUTPUTS[:3]
    # The tracing exporter: torch.export cannot follow Detectron2's Python. Older torch knows no other.
    options = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    axes = {"image": {1: "height", 2: "width"}, **{name: {0: "detections"} for name in outputs}}
    try:
        torch.onnx.export(
            adapter, (example,), file, input_names=["image"], output_names=list(outputs), dynamic_axes=axes,
            opset_version=OPSET, **options,
        )  # fmt: skip
    except ImportError as error:
        raise InputError(f'ONNX needs packages of its own ({error}): pip install "eql_d2[export]".') from None


def _description(predictor: Predictor) -> Dict[str, Any]:
    cfg = predictor.cfg
    return {
        "input": {
            "name": "image",
            "layout": "float32 [3, height, width], 0 to 255; mean and deviation are taken off within",
            "channels": cfg.INPUT.FORMAT,
            "shorter_side": cfg.INPUT.MIN_SIZE_TEST,
            "longest_side": cfg.INPUT.MAX_SIZE_TEST,
        },
        "outputs": list(OUTPUTS if cfg.MODEL.MASK_ON else OUTPUTS[:3]),
        "detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "candidates": TRACED_CANDIDATES_PER_DETECTION * max(cfg.TEST.DETECTIONS_PER_IMAGE, 1),
        "classes": predictor.class_names,
        "category_ids": list(predictor.category_ids.values()),
        "thresholds": None if predictor.thresholds is None else predictor.thresholds.tolist(),
    }


def _compare(expected: Sequence[np.ndarray], found: Sequence[np.ndarray], where: str) -> Tuple[Dict[str, float], int]:
    """Match the detections of the model with those of another program, whose order may differ where scores are equal.

    Returns:
        The largest difference of each output, and the number of detections of one side alone at the last score.

    Raises:
        InputError: if another detection has no counterpart.
    """
    of_model, other = dict(zip(OUTPUTS, expected)), dict(zip(OUTPUTS, found))
    names = [name for name in TOLERANCES if name in of_model]
    largest, unmatched = dict.fromkeys(names, 0.0), []
    left = np.ones(len(other["scores"]), dtype=bool)
    for i, label in enumerate(of_model["labels"]):
        distance = np.abs(other["boxes"] - of_model["boxes"][i]).max(axis=1, initial=0.0)
        distance = np.where(left & (other["labels"] == label), distance, np.inf)
        nearest = int(distance.argmin()) if len(distance) else -1
        gaps = {
            name: float(np.abs(other[name][nearest] - of_model[name][i]).max()) if nearest >= 0 else np.inf
            for name in names
        }
        if nearest < 0 or not left[nearest] or any(gaps[name] > TOLERANCES[name] for name in names):
            unmatched.append(float(of_model["scores"][i]))
            continue
        left[nearest] = False
        largest = {name: max(largest[name], gaps[name]) for name in names}
    alone = np.array([*unmatched, *other["scores"][left].tolist()])
    last = float(of_model["scores"].min(initial=np.inf))
    is_cut = np.abs(alone - last).max(initial=0.0) <= TOLERANCES["scores"] and len(alone) <= len(left)
    if len(left) != len(of_model["scores"]) or not is_cut:
        raise InputError(
            f"{where}: the model finds {len(of_model['scores'])} objects and the exported one {len(left)}, "
            f"{len(alone)} of them without a counterpart (the best with a score of {alone.max(initial=0.0):.3f})."
        )
    return largest, len(alone)
