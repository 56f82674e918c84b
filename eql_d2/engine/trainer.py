"""The trainer behind eql-d2 train."""

import logging
import sys
from collections import OrderedDict
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Tuple, Type
from unittest.mock import patch

import torch
from detectron2.engine import DefaultTrainer, HookBase, create_ddp_model, defaults, hooks
from detectron2.evaluation import print_csv_format
from detectron2.projects.deeplab import build_lr_scheduler
from detectron2.utils import comm

import eql_d2.modeling  # noqa: F401  (registers the heads)
from eql_d2.data.build import build_test_loader, build_train_loader
from eql_d2.data.catalog import category_frequency
from eql_d2.data.classification import is_classification_set
from eql_d2.data.images import build_image_test_loader, build_image_train_loader
from eql_d2.data.random_state import same_random_state_afterwards
from eql_d2.engine.accumulation import accumulating, check_parts
from eql_d2.engine.best_checkpoint import BestCheckpoint, EarlyStop
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.console import ProgressBar, settings_that_matter
from eql_d2.engine.continuation import Continuation
from eql_d2.engine.ema import CHECKPOINT_KEY, WeightAverage
from eql_d2.engine.feature_cache import check_feature_cache, open_feature_cache
from eql_d2.engine.finite import CPUAutocastTrainer, FiniteAMPTrainer, FiniteTrainer, check_finite
from eql_d2.engine.gradient_hook import GradientHook
from eql_d2.engine.last_checkpoint import TAG, remove_leftovers
from eql_d2.engine.optimizer import build_optimizer
from eql_d2.engine.protocol import check_protocol, freeze
from eql_d2.engine.setup import frees_output_dir
from eql_d2.engine.writers import external_writers
from eql_d2.errors import InputError
from eql_d2.evaluation import build_evaluator, evaluate
from eql_d2.modeling.test_time_augmentation import TestTimeAugmentation, check_augmentable
from eql_d2.run_folder import RunFolder, describe_experiment

logger = logging.getLogger("detectron2.eql_d2")


class Trainer(DefaultTrainer):
    """Detectron2's ``DefaultTrainer`` with this package's loaders, evaluators and checkpoints.

    Runs on CUDA with NCCL and on CPUs with gloo. Writes to ``OUTPUT_DIR``, besides Detectron2's files,
    ``category_frequency.json`` (the counts that the loss used) and ``results.json`` (every metric, with the loss's
    name and settings).
    """

    def __init__(self, cfg):
        # Detectron2's constructor names these classes itself, where no method can be overridden.
        node = cfg.MODEL.LONG_TAIL.TRAINING
        for key, least in (("CHECKPOINTS_KEPT", 0), ("SKIPPED_STEPS", 1)):
            if node[key] < least:
                raise InputError(f"MODEL.LONG_TAIL.TRAINING.{key} is {node[key]}; it is at least {least}.")
        on_cuda = torch.device(cfg.MODEL.DEVICE).type == "cuda"
        own: Dict[str, Any] = {
            "DetectionCheckpointer": partial(LongTailCheckpointer, keep=node.CHECKPOINTS_KEPT),
            "SimpleTrainer": partial(FiniteTrainer, patience=node.SKIPPED_STEPS),
            "AMPTrainer": partial(FiniteAMPTrainer if on_cuda else CPUAutocastTrainer, patience=node.SKIPPED_STEPS),
        }
        if not on_cuda:
            own["create_ddp_model"] = partial(create_ddp_model, device_ids=None)
        with patch.multiple(defaults, **own):
            super().__init__(cfg)
        # Of the batch as it was scaled to the number of processes.
        check_parts(cfg.MODEL.LONG_TAIL.ACCUMULATE.PARTS, self.cfg.SOLVER.IMS_PER_BATCH, comm.get_world_size())

    def resume_or_load(self, resume: bool = True):
        """Same as ``DefaultTrainer.resume_or_load``; a checkpoint to resume from must fit the model in every shape.

        ``MODEL.LONG_TAIL.INIT_CLASSIFIER`` says what becomes of the classifier in ``MODEL.WEIGHTS``; a checkpoint that
        is resumed from has its own.

        Raises:
            InputError: if the weights are missing or do not fit, or if most of the model is to stay as it is
                (``MODEL.LONG_TAIL.TRAINABLE``) and there are no weights.
        """
        resumes = resume and self.checkpointer.has_checkpoint()
        self.checkpointer.require_all = resumes
        self.checkpointer.start = None if resumes else self.cfg
        trainable = self.cfg.MODEL.LONG_TAIL.TRAINABLE
        if not resumes and trainable != "all" and not self.cfg.MODEL.WEIGHTS:
            raise InputError(
                f"MODEL.LONG_TAIL.TRAINABLE is {trainable!r} and MODEL.WEIGHTS is empty; set it to the weights of a "
                f"trained detector, or train both stages with eql-d2 train-two-stage."
            )
        super().resume_or_load(resume)

    def train(self):
        """Train, and evaluate as ``TEST.EVAL_PERIOD`` says and at the end; metrics go to ``results.json`` too."""
        if comm.is_main_process():
            folder = RunFolder(self.cfg.OUTPUT_DIR)
            remove_leftovers(folder.folder)
            folder.mend_history()
            frequency = category_frequency(self.cfg.DATASETS.TRAIN, self.cfg.MODEL.LONG_TAIL.FREQUENCY)
            folder.write_frequency(frequency)
            log_experiment(self.cfg, self.model)
            logger.info(
                "Settings:\n%s", "\n".join(settings_that_matter(self.cfg, self.model, frequency, self.start_iter))
            )
        if self.cfg.MODEL.LONG_TAIL.FEATURE_CACHE:
            open_feature_cache(self.cfg, self.model, self._trainer.data_loader)
        with suppress(EarlyStop):
            super().train()
        return getattr(self, "_last_eval_results", None) or {}

    def before_train(self):
        super().before_train()
        if self.start_iter:
            self._make_up_for_hooks()

    def _make_up_for_hooks(self) -> None:
        """Call the hooks that follow a checkpoint for the one that is resumed from: it may have been stopped there.

        They evaluate, if that is not done, and write metrics; after the last iteration the final weights are saved. If
        no iteration is left, the training ends after this one.
        """
        iteration = self.start_iter - 1
        is_evaluated = comm.is_main_process() and RunFolder(self.cfg.OUTPUT_DIR).has_evaluated(iteration)
        is_evaluated = comm.all_gather(is_evaluated)[0]
        kinds: Tuple[Type[HookBase], ...] = (hooks.PeriodicWriter,)
        if not is_evaluated:
            kinds += (hooks.EvalHook, BestCheckpoint)
        if self.start_iter == self.max_iter:
            kinds += (Continuation, hooks.PeriodicCheckpointer)
        self.iter = self.storage.iter = iteration
        for hook in [hook for hook in self._hooks if isinstance(hook, kinds)]:
            hook.after_step()

    def run_step(self):
        with accumulating(self._trainer, self.cfg.MODEL.LONG_TAIL.ACCUMULATE.PARTS):
            super().run_step()

    def after_step(self):
        """Call the hooks; before weights are written, see that they are numbers.

        Raises:
            FloatingPointError: if they are not: a step whose gradient was finite has made them infinite.
        """
        if self.is_saved():
            check_finite(self.model.state_dict())
        super().after_step()

    def is_saved(self) -> bool:
        """Return whether this iteration ends with a checkpoint."""
        return (self.iter + 1) % self.cfg.SOLVER.CHECKPOINT_PERIOD == 0 or self.iter + 1 == self.max_iter

    def after_train(self):
        """Call the hooks; Detectron2's evaluate even if the last iteration has raised, and must not."""
        if self.iter < self.max_iter:
            self._hooks: List[HookBase] = [hook for hook in self._hooks if not isinstance(hook, hooks.EvalHook)]
        super().after_train()

    def build_hooks(self):
        ret = super().build_hooks()
        self.evaluated_model = self.model
        if comm.is_main_process() and sys.stdout.isatty():
            ret.append(ProgressBar(sys.stdout))
        if self.cfg.MODEL.LONG_TAIL.EMA.DECAY:
            ret = self._with_average(ret)
        if self.cfg.MODEL.LONG_TAIL.ANALYSIS.PERIOD:
            ret.insert(0, GradientHook(self.cfg, self.model))
        # After the plain evaluation, on every rank alike, and before the writer, which the main process alone has.
        position = len(ret) - 1 if comm.is_main_process() else len(ret)
        if self.cfg.TEST.AUG.ENABLED:
            ret.insert(position, hooks.EvalHook(0, lambda: self.test_with_TTA(self.cfg, self.evaluated_model)))
        if self.cfg.MODEL.LONG_TAIL.BEST.METRIC:
            ret.insert(position, BestCheckpoint(self.cfg, self.evaluated_model))
        # Before checkpoints, which the main process alone writes, and evaluation.
        saving = (hooks.PeriodicCheckpointer, hooks.EvalHook)
        ret.insert([isinstance(hook, saving) for hook in ret].index(True), Continuation())
        return ret

    def build_writers(self):
        return [*super().build_writers(), *external_writers(self.cfg)]

    def _with_average(self, ret: List[HookBase]) -> List[HookBase]:
        """Add the moving average of the weights to the hooks and the checkpoints; it is what is then evaluated."""
        average = WeightAverage(self.cfg, self.model)
        self.evaluated_model = average.model
        self.checkpointer.add_checkpointable(CHECKPOINT_KEY, average.average)

        def evaluate_average():
            self._last_eval_results = self.test(self.cfg, self.evaluated_model)
            return self._last_eval_results

        evaluation = hooks.EvalHook(self.cfg.TEST.EVAL_PERIOD, evaluate_average)
        return [average, *(evaluation if isinstance(hook, hooks.EvalHook) else hook for hook in ret)]

    @classmethod
    def build_model(cls, cfg):
        """Build the model, with all frozen but what ``MODEL.LONG_TAIL.TRAINABLE`` names."""
        check_protocol(cfg)
        check_feature_cache(cfg)
        model = super().build_model(cfg)
        freeze(model, cfg.MODEL.LONG_TAIL.TRAINABLE)
        if cfg.TEST.AUG.ENABLED:
            check_augmentable(cfg, model)
        return model

    @classmethod
    def build_optimizer(cls, cfg, model):
        """Return the optimizer that ``MODEL.LONG_TAIL.OPTIMIZER`` names."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        """Return Detectron2's schedule, or its DeepLab project's ``WarmupPolyLR``."""
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        classifies = any(map(is_classification_set, cfg.DATASETS.TRAIN))
        return (build_image_train_loader if classifies else build_train_loader)(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        build = build_image_test_loader if is_classification_set(dataset_name) else build_test_loader
        return build(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name, output_folder=None):
        """Return the evaluator of a data set's kind; it writes to ``OUTPUT_DIR/inference/<data set>``."""
        output_folder = output_folder or RunFolder(cfg.OUTPUT_DIR).inference_folder(dataset_name)
        return build_evaluator(cfg, dataset_name, str(output_folder))

    @classmethod
    def test(cls, cfg, model, evaluators=None) -> Dict[str, Any]:
        """Evaluate on each of ``DATASETS.TEST``; the main process writes the metrics to ``OUTPUT_DIR/results.json``.

        An evaluation that was interrupted goes on at the next image if weights and settings are the same.

        Args:
            evaluators: one per data set; built by :meth:`build_evaluator` if not given.

        Returns:
            The metrics of the data set, by data set if there are several; empty on other processes.
        """
        results = cls._evaluate(cfg, model, evaluators or [cls.build_evaluator(cfg, n) for n in cfg.DATASETS.TEST])
        if comm.is_main_process():
            RunFolder(cfg.OUTPUT_DIR).write_results(describe_experiment(cfg, model), results)
        return results

    @classmethod
    @same_random_state_afterwards()  # a training that is resumed after its evaluation goes on with the same numbers
    def _evaluate(cls, cfg, model, evaluators) -> Dict[str, Any]:
        _share_batch_norm(model)
        results = OrderedDict()
        for dataset_name, evaluator in zip(cfg.DATASETS.TEST, evaluators):
            results[dataset_name] = evaluate(model, cls.build_test_loader(cfg, dataset_name), evaluator, resume=True)
            if results[dataset_name]:
                logger.info("Results of %s:", dataset_name)
                print_csv_format(results[dataset_name])
        return next(iter(results.values())) if len(results) == 1 else results

    @classmethod
    def test_with_TTA(cls, cfg, model) -> Dict[str, Any]:
        """Evaluate with test-time augmentation (``TEST.AUG``); the metrics get the suffix ``_TTA``.

        Images come from the loader as they are in their files, so that each scale is resized once. An evaluation that
        was interrupted goes on as in :meth:`test`.
        """
        logger.info("Running inference with test-time augmentation ...")
        augmented = TestTimeAugmentation(cfg, model)
        folder = RunFolder(cfg.OUTPUT_DIR)
        evaluators = [
            cls.build_evaluator(cfg, name, folder.inference_folder(name, augmented=True)) for name in cfg.DATASETS.TEST
        ]
        unresized = cfg.clone()
        unresized.defrost()
        unresized.INPUT.MIN_SIZE_TEST = 0
        results = cls._evaluate(unresized, augmented, evaluators)
        results = OrderedDict((f"{key}_TTA", value) for key, value in results.items())
        if comm.is_main_process():
            RunFolder(cfg.OUTPUT_DIR).write_results(describe_experiment(cfg, model), results)
        return results


def _share_batch_norm(model: torch.nn.Module) -> None:
    """Give every rank the batch norm statistics of rank 0, which are those of the checkpoint.

    Ranks train with ``broadcast_buffers=False``: each keeps the statistics of its own images, and an evaluation that is
    shared among them would be of several slightly different models.
    """
    if comm.get_world_size() > 1:
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                for buffer in module.buffers(recurse=False):
                    torch.distributed.broadcast(buffer, src=0)


def _has_been_restarted(cfg, args) -> bool:
    """Return whether torchrun has started this training again, which has written a checkpoint of its own before."""
    since = getattr(args, "restarted_since", None)
    if since is None:
        return False
    file = Path(cfg.OUTPUT_DIR) / TAG
    return comm.all_gather(file.is_file() and file.stat().st_mtime >= since)[0]


def log_experiment(cfg, model) -> None:
    """Log the classifier's loss, its settings, and how many classes it treats as tail."""
    for i, described in enumerate(describe_experiment(cfg, model)["classifier_losses"]):
        words = ", ".join(f"{key}={value}" for key, value in described.items())
        logger.info("Classifier loss%s: %s", f" of stage {i}" if i else "", words)


def load_trained_model(cfg, resume: bool, purpose: str, allow_missing: bool = False) -> torch.nn.Module:
    """Build the model and load ``MODEL.WEIGHTS``, or with ``resume`` the last checkpoint in ``OUTPUT_DIR``.

    Args:
        cfg: of the model.
        resume: whether the last checkpoint comes first.
        purpose: what the weights are for, for the message where there are none.
        allow_missing: whether parameters that the weights lack may stay as they are initialized, with a warning.

    Raises:
        InputError: for weights that are missing, do not fit or hold NaN.
    """
    model = Trainer.build_model(cfg)
    checkpointer = LongTailCheckpointer(model, cfg.OUTPUT_DIR, require_all=True, allow_missing=allow_missing)
    if not (cfg.MODEL.WEIGHTS or (resume and checkpointer.has_checkpoint())):
        raise InputError(f"{purpose} needs weights: set MODEL.WEIGHTS, or --resume for the last checkpoint.")
    checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=resume)
    return model


@frees_output_dir
def run(cfg, args) -> Dict[str, Any]:
    """Train, or evaluate only, as the arguments of eql-d2 train say.

    Returns:
        The metrics on the main process, an empty dict elsewhere.

    Raises:
        InputError: for weights that are missing or do not fit.
    """
    if args.eval_only:
        model = load_trained_model(cfg, args.resume, "--eval-only", args.allow_missing)
        results = Trainer.test(cfg, model)
        if cfg.TEST.AUG.ENABLED:
            results.update(Trainer.test_with_TTA(cfg, model))
        return results
    if args.allow_missing:
        raise InputError(
            "--allow-missing is for --eval-only; a training may start from weights of a part of its model."
        )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume or _has_been_restarted(cfg, args))
    return trainer.train()
