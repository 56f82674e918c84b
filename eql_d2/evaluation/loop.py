"""Run a model over a test set, with progress, and go on after an interruption."""

import datetime
import hashlib
import logging
import time
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence

import torch
from detectron2.data import MapDataset
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.logger import log_every_n_seconds
from torch import nn
from torch.utils.data import DataLoader

from eql_d2.evaluation.streaming import StreamingEvaluator

logger = logging.getLogger("detectron2.eql_d2.evaluation")


def evaluate(
    model: Callable, data_loader: Any, evaluator: DatasetEvaluator, resume: bool = False
) -> Dict[str, Dict[str, float]]:
    """Run ``model`` over ``data_loader`` and return ``evaluator.evaluate()``, in place of ``inference_on_dataset``.

    With an evaluator of this package the predictions on disk carry the digest of the model's weights, and with
    ``resume`` the images whose predictions are there already are neither loaded nor computed again. Other evaluators
    start from nothing each time.

    Args:
        model: a module, put in evaluation mode for the time, or any callable; it takes what the loader gives.
        data_loader: with a length; its items are lists of dicts with ``image_id``. May be empty on this process.
        evaluator: what takes the predictions.
        resume: go on after an evaluation of the same weights into the same folder that was interrupted.

    Returns:
        The metrics on the main process, an empty dict elsewhere.
    """
    return evaluate_each(model, data_loader, [evaluator], lambda inputs: [model(inputs)], resume)[0]


@torch.no_grad()
def evaluate_each(
    model: Callable,
    data_loader: Any,
    evaluators: Sequence[DatasetEvaluator],
    outputs_of: Callable[[List[Dict[str, Any]]], Iterable[Any]],
    resume: bool = False,
) -> List[Dict[str, Dict[str, float]]]:
    """Evaluate several outputs of one model in one pass over the images, each by an evaluator of its own.

    Args:
        model, data_loader, resume: as of :func:`evaluate`.
        evaluators: what takes the predictions.
        outputs_of: from a batch to the model's output for each evaluator.

    Returns:
        What :func:`evaluate` returns, for each evaluator.
    """
    streaming = [evaluator for evaluator in evaluators if isinstance(evaluator, StreamingEvaluator)]
    digest = weights_digest(model) if streaming else ""
    for evaluator in evaluators:
        if isinstance(evaluator, StreamingEvaluator):
            evaluator.reset(resume=resume, weights=digest)
        else:
            evaluator.reset()
    streams = len(streaming) == len(evaluators)
    if streams:
        data_loader = without_images(data_loader, frozenset.intersection(*(each.done for each in streaming)))
    training = getattr(model, "training", False)
    if isinstance(model, nn.Module):
        model.eval()
    try:
        for inputs in with_progress(data_loader):
            # Streaming evaluators write run lengths, for which the model need not paste its masks.
            asked = [{**image, "paste_masks": False} for image in inputs] if streams else inputs
            for evaluator, outputs in zip(evaluators, outputs_of(asked)):
                evaluator.process(inputs, outputs)
    except BaseException:
        for evaluator in streaming:
            evaluator.close()
        raise
    finally:
        if isinstance(model, nn.Module):
            model.train(training)
    return [evaluator.evaluate() or {} for evaluator in evaluators]


def with_progress(data_loader: Any, every_seconds: float = 5.0) -> Iterator[List[Dict[str, Any]]]:
    """Yield the batches; log how many are done, the time of one and the time left."""
    total = len(data_loader)
    start = time.perf_counter()
    for done, inputs in enumerate(data_loader, 1):
        yield inputs
        seconds = (time.perf_counter() - start) / done
        left = datetime.timedelta(seconds=int(seconds * (total - done)))
        log_every_n_seconds(
            logging.INFO,
            f"Inference done {done}/{total}. {seconds:.4f} s/iter. ETA={left}",
            n=every_seconds,
            name="detectron2.eql_d2.evaluation",
        )
    elapsed = time.perf_counter() - start
    logger.info("Inference on %d batches took %.1f s (%.4f s/iter).", total, elapsed, elapsed / max(total, 1))


def weights_digest(model: Callable, is_left_out: Callable[[str], bool] = lambda name: False) -> str:
    """Return a digest of all parameters and buffers, the same with and without DistributedDataParallel.

    Args:
        model: a module; of another callable there is nothing to digest.
        is_left_out: says of a name that it does not count.
    """
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(model, nn.Module):
        for name, tensor in model.state_dict().items():
            if is_left_out(name):
                continue
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def without_images(data_loader: Any, image_ids: frozenset) -> Any:
    """Return a loader of the same batches without the images in ``image_ids``.

    A loader of Detectron2 (``build_detection_test_loader``) does not even read the images that are left out; of any
    other iterable, they are dropped from the batches.
    """
    if not image_ids:
        return data_loader
    records = _records(data_loader)
    if records is None:
        return _Filtered(data_loader, image_ids)
    batches = [
        [index for index in batch if int(records[index]["image_id"]) not in image_ids]
        for batch in data_loader.batch_sampler
    ]
    return DataLoader(
        data_loader.dataset,
        batch_sampler=[batch for batch in batches if batch],
        num_workers=data_loader.num_workers,
        collate_fn=data_loader.collate_fn,
    )


def _records(data_loader: Any) -> Optional[Any]:
    """Return the data set's dicts behind a mapped loader, ``None`` if they cannot be told from outside."""
    dataset = getattr(data_loader, "dataset", None)
    if isinstance(data_loader, DataLoader) and data_loader.batch_sampler and isinstance(dataset, MapDataset):
        # MapDataset maps (loads the image) on access and offers no other way to its dicts.
        return getattr(dataset, "_dataset", None)
    return None


class _Filtered:
    """The batches of any loader, without some images; batches that become empty are left out."""

    def __init__(self, data_loader: Any, image_ids: frozenset):
        self._data_loader = data_loader
        self._image_ids = image_ids

    def __len__(self) -> int:
        return len(self._data_loader)

    def __iter__(self) -> Iterator[List[Dict[str, Any]]]:
        for batch in self._data_loader:
            batch = [image for image in batch if int(image["image_id"]) not in self._image_ids]
            if batch:
                yield batch
