"""Checkpoints that appear whole or not at all, and clear words where one cannot be loaded."""

import os
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional
from urllib.error import URLError
from urllib.parse import parse_qs

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils import comm

from eql_d2.engine.ema import averaged_weights
from eql_d2.engine.finite import check_finite
from eql_d2.engine.last_checkpoint import TAG, drop_old_checkpoints, last_sound_checkpoint
from eql_d2.engine.protocol import check_start, drop_classifier
from eql_d2.engine.trained_weights import check_complete, check_numbers
from eql_d2.engine.warm_start import match_classes
from eql_d2.errors import InputError
from eql_d2.files import write_whole
from eql_d2.weights import read_checkpoint, write_checkpoint


class LongTailCheckpointer(DetectionCheckpointer):
    """``DetectionCheckpointer`` that writes to a temporary name and renames, and explains what it cannot load.

    To resume is to go on from the last checkpoint that is sound, see :mod:`eql_d2.engine.last_checkpoint`. Files
    are read by :mod:`eql_d2.weights`, which executes nothing in them. Of a checkpoint with an average of the weights
    (:mod:`eql_d2.engine.ema`) that average is loaded, but to resume.

    Args:
        require_all: raise, rather than skip with a warning, where parameters are missing in the checkpoint, or of
            other shapes than the model's: right for evaluating and resuming. What a training may start from is decided
            by ``start``.
        allow_missing: with ``require_all``, warn where parameters are missing; other shapes are an error all the same.
        keep: how many of the checkpoints that are saved on the way are kept; 0 for all.
    """

    def __init__(
        self,
        model,
        save_dir="",
        *,
        require_all: bool = False,
        allow_missing: bool = False,
        keep: int = 0,
        **kwargs,
    ):
        super().__init__(model, save_dir, **kwargs)
        self.require_all, self.allow_missing, self.keep = require_all, allow_missing, keep
        self._source = ""
        self._last: Optional[str] = None
        #: The config of a training that starts from what is loaded; ``None`` for resuming and evaluating.
        self.start: Optional[CfgNode] = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Same as ``Checkpointer.save``; a run that is killed meanwhile keeps its previous checkpoint.

        Raises:
            FloatingPointError: if anything that is to be saved holds a NaN or an infinity.
            InputError: if the file cannot be written.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: checkpointable.state_dict() for key, checkpointable in self.checkpointables.items()})
        data.update(kwargs)
        check_finite(data)
        path = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info("Saving checkpoint to %s", path)
        write_checkpoint(path, data)
        self.tag_last_checkpoint(f"{name}.pth")
        drop_old_checkpoints(Path(self.save_dir), self.keep)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_whole(os.path.join(self.save_dir, TAG), last_filename_basename)
        self._last = os.path.join(self.save_dir, last_filename_basename)

    def has_checkpoint(self) -> bool:
        """Return whether there is a checkpoint to go on from; see :meth:`get_checkpoint_file`."""
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """Return the checkpoint to go on from, empty if there has never been one; the same answer on every process.

        A collective, until it has been asked once: the main process looks.

        Raises:
            InputError: if there are checkpoints, or was one, and none can be used.
        """
        if self._last is None:
            found, problem = "", ""
            if comm.is_main_process() and self.save_dir:
                try:
                    found = str(last_sound_checkpoint(Path(self.save_dir)) or "")
                except InputError as error:
                    problem = str(error)
            found, problem = comm.all_gather((found, problem))[0]
            if problem:
                raise InputError(problem)
            self._last = found
        return self._last

    def load(self, path: str, checkpointables: Optional[List[str]] = None):
        """Same as ``DetectionCheckpointer.load``.

        Raises:
            InputError: if the file is missing, cannot be fetched or is no checkpoint; if it does not fit the model, or
                holds NaN.
        """
        try:
            return super().load(path, checkpointables)
        except InputError:
            raise
        except (URLError, TimeoutError, ConnectionError) as error:
            raise InputError(_how_to_place_by_hand(path, error)) from None
        except (AssertionError, OSError) as error:
            if os.path.isfile(path) or ("://" not in path and os.path.exists(path)):
                raise InputError(f"MODEL.WEIGHTS {path} cannot be read ({error}).") from None
            if path.startswith(("http://", "https://", "detectron2://", "catalog://")):
                raise InputError(_how_to_place_by_hand(path, error)) from None
            raise InputError(f"MODEL.WEIGHTS {path}: there is no such file.") from None
        finally:
            self._parsed_url_during_load = None  # where loading failed, Detectron2 would refuse to load again

    def _load_file(self, filename: str) -> Dict[str, Any]:
        self._source = filename
        content = read_checkpoint(filename)
        url = self._parsed_url_during_load
        queries: Dict[str, List[str]] = parse_qs(url.query) if url else {}
        if queries == {"matching_heuristics": ["True"]}:
            content["matching_heuristics"] = True
        elif queries:
            raise InputError(f"MODEL.WEIGHTS {filename}: after ?, matching_heuristics=True alone is known.")
        return content

    def _load_model(self, checkpoint):
        resumes = self.start is None and "trainer" in self.checkpointables
        if not resumes:
            checkpoint["model"] = averaged_weights(checkpoint)
        start = "keep" if self.start is None else self.start.MODEL.LONG_TAIL.INIT_CLASSIFIER
        if start == "reset":
            drop_classifier(self.model, checkpoint["model"])
        elif start == "match":
            match_classes(self.start, self.model, checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        if self.start is not None:
            check_start(self.start, self.model, incompatible.missing_keys, incompatible.incorrect_shapes)
        if self.require_all:
            if incompatible.incorrect_shapes:
                raise InputError(_describe_shapes(incompatible.incorrect_shapes))
            missing, unexpected = incompatible.missing_keys, incompatible.unexpected_keys
            check_complete(self.model, missing, unexpected, self._source, self.allow_missing)
        check_numbers(self.model.state_dict().items(), self._source)
        return incompatible


def _describe_shapes(shapes: Iterable) -> str:
    shapes = list(shapes)
    name, in_checkpoint, in_model = next((s for s in shapes if "cls_score" in s[0]), shapes[0])
    return (
        f"The weights do not fit the model: {name} is {list(in_checkpoint)} in MODEL.WEIGHTS and {list(in_model)} in "
        f"the model ({len(shapes)} parameters differ). Set MODEL.ROI_HEADS.NUM_CLASSES, MODEL.LONG_TAIL.LOSS and the "
        f"CLS_AGNOSTIC keys as they were in training."
    )


def _how_to_place_by_hand(path: str, error: Exception) -> str:
    address = path.replace("detectron2://", "https://dl.fbaipublicfiles.com/detectron2/")
    reason = getattr(error, "reason", None) or error
    return (
        f"MODEL.WEIGHTS {path} could not be fetched ({reason}). Download {address} where there is a network, "
        f'copy it to this machine and set MODEL.WEIGHTS to its path, or set MODEL.WEIGHTS "" to start from scratch.'
    )
