"""Choosing the free constants of what is done at test time to a trained classifier's scores, on held-out data."""

import itertools
import math
import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

import yaml
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from eql_d2.engine.trainer import Trainer, load_trained_model
from eql_d2.errors import InputError
from eql_d2.evaluation.loop import evaluate_each
from eql_d2.evaluation.metrics import format_value
from eql_d2.evaluation.report import markdown_row, write_category_csv
from eql_d2.files import write_whole
from eql_d2.losses import CALIBRATION_REGISTRY
from eql_d2.losses.registry import argument_name
from eql_d2.losses.tau_norm import TAUS
from eql_d2.modeling.classifier_layer import classifier_layers, classifier_settings
from eql_d2.modeling.rescoring import remembering
from eql_d2.run_folder import RunFolder

#: What may be tuned: keys below ``MODEL.LONG_TAIL`` that change the scores of a trained classifier and nothing else.
_NODES = ("CALIBRATION.", "TAU_NORM.")
_ROOT = "MODEL.LONG_TAIL."
#: Values by key, of one point of the grid; and the values of each key, which make the grid.
Point = Dict[str, Any]
Grid = Dict[str, List[Any]]


def tune(cfg: CfgNode, args: Namespace) -> Path:
    """Evaluate each point of a grid of constants in one pass over a data set, and write the best as a config.

    The network runs once for each image: its outputs in front of the classifier are kept while the regions are scored,
    suppressed and capped anew for each point (:func:`eql_d2.modeling.rescoring.remembering`). So the detections of a
    point, which come from other regions and classes than those of the next, are those of an evaluation with it.

    Args:
        cfg: of the trained model, with ``MODEL.WEIGHTS``.
        args: what :func:`eql_d2.engine.calibrate.calibrate_parser` parsed.

    Returns:
        The file written, the best point as a config over that of this run. The metrics of all lie in ``tuning.csv``.

    Raises:
        InputError: for a grid that is empty or has a key that changes more than scores, a data set that is not named, a
            metric that is not there, and as :func:`eql_d2.engine.trainer.load_trained_model`.
    """
    metric = args.metric or ("segm/AP" if cfg.MODEL.MASK_ON else "bbox/AP")
    grid = _grid(cfg, args.grid)
    _check(cfg, args, metric)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = cfg.MODEL.MASK_ON and not metric.startswith("bbox/")
    points = [dict(zip(grid, values)) for values in itertools.product(*grid.values())]
    configs = [_config_of(cfg, point) for point in points]
    model = load_trained_model(configs[0], args.resume, "Tuning", args.allow_missing)
    folder = RunFolder(cfg.OUTPUT_DIR)
    evaluators = [
        Trainer.build_evaluator(of_point, args.dataset, folder.tuning_folder / str(number))
        for number, of_point in enumerate(configs)
    ]
    results = _evaluate(model, configs, Trainer.build_test_loader(cfg, args.dataset), evaluators)
    output = Path(args.output or folder.tuned_file)
    if comm.is_main_process():
        metrics = [flatten_results_dict(of_point) for of_point in results]
        write_category_csv([{**point, **of_point} for point, of_point in zip(points, metrics)], folder.tuning_file)
        best = _best(metrics, metric)
        shutil.rmtree(folder.tuning_folder, ignore_errors=True)
        print(_table(points, metrics, metric, best), flush=True)
        for warning in _at_the_border(grid, points[best]):
            print(warning, flush=True)
        write_whole(output, _as_config(cfg, points[best], metrics[best][metric], metric, args.dataset))
        lines = " ".join(f"{_ROOT}{key} {value}" for key, value in points[best].items())
        print(f"{output}: {metric} {metrics[best][metric]:.2f} on {args.dataset} with {lines}", flush=True)
    comm.synchronize()
    return output


def _check(cfg: CfgNode, args: Namespace, metric: str) -> None:
    """Check what can be known before the model runs."""
    if not args.dataset:
        raise InputError("--tune needs held-out data: name by --dataset a registered data set that was not trained on.")
    if args.max_images:
        raise InputError("--max-images is not for --tune; name a smaller data set by --dataset.")
    if args.dataset in cfg.DATASETS.TRAIN and comm.is_main_process():
        print(f"warning: {args.dataset} is in DATASETS.TRAIN; the model has seen what it is tuned on.", flush=True)
    if metric.startswith("segm/") and not cfg.MODEL.MASK_ON:
        raise InputError(f"--metric is {metric}, but MODEL.MASK_ON is False; name one of boxes, such as bbox/AP.")
    if metric.endswith("-fixed") and not cfg.MODEL.LONG_TAIL.AP_FIXED:
        raise InputError(f"--metric is {metric}; it needs MODEL.LONG_TAIL.AP_FIXED True.")


def _grid(cfg: CfgNode, given: Sequence[str]) -> Grid:
    """Return the values of each key: ``KEY=V,V,...`` as given, or the free constants of the config's calibration, or
    tau of the tau-normalisation where it has none."""
    node = cfg.MODEL.LONG_TAIL
    if given:
        return dict(_parse(node, text) for text in given)
    name = node.CALIBRATION.NAME
    if not name:
        return {"TAU_NORM.TAU": TAUS}
    free = CALIBRATION_REGISTRY.get(name).free_constants
    grid = {f"CALIBRATION.{name}.{key}": list(free.get(argument_name(key), ())) for key in node.CALIBRATION[name]}
    grid = {key: values for key, values in grid.items() if values}
    if not grid:
        raise InputError(
            f"MODEL.LONG_TAIL.CALIBRATION.NAME is {name}, which has no free constants; name some by --grid."
        )
    return grid


def _parse(node: CfgNode, text: str) -> Tuple[str, List[Any]]:
    key, _, values = text.partition("=")
    key = key[len(_ROOT) :] if key.startswith(_ROOT) else key
    default: Any = node
    for part in key.split("."):
        default = default.get(part) if isinstance(default, CfgNode) else None
    if not key.startswith(_NODES) or default is None or isinstance(default, CfgNode):
        raise InputError(
            f"--grid {text}: {key} is no key of MODEL.LONG_TAIL.CALIBRATION or TAU_NORM, which alone leave the network "
            f"as it is; write it as CALIBRATION.NORCAL.GAMMA=0,0.5,1."
        )
    try:
        return key, [type(default)(value) for value in values.split(",")]
    except ValueError:
        raise InputError(f"--grid {text}: the values of {key} are {type(default).__name__}s, as {default}.") from None


def _config_of(cfg: CfgNode, point: Point) -> CfgNode:
    cfg = cfg.clone()
    cfg.merge_from_list([word for key, value in point.items() for word in (_ROOT + key, value)])
    return cfg


def _evaluate(
    model: nn.Module, configs: Sequence[CfgNode], loader: Any, evaluators: Sequence[Any]
) -> Sequence[Mapping[str, Any]]:
    """Return the metrics of each config, whose scores differ; empty ones on all but the main process."""
    classifiers = [classifier for _, classifier in classifier_layers(model)]
    if not classifiers:
        raise InputError("The model has no classifier of this package; set MODEL.ROI_HEADS.NAME to one of its heads.")
    ways = [[classifier_settings(cfg, stage) for stage in range(len(classifiers))] for cfg in configs]
    for settings in itertools.chain(*ways):
        if settings["calibration"] is not None:
            settings["calibration"].to(next(model.parameters()).device).eval()
    with remembering(model) as memory:

        def outputs_of(inputs: List[Dict[str, Any]]) -> Iterator[Any]:
            memory.forget()
            for way in ways:
                memory.rewind()
                for classifier, settings in zip(classifiers, way):
                    classifier.score_by(settings["calibration"], settings["tau"])
                yield model(inputs)

        return evaluate_each(model, loader, evaluators, outputs_of, resume=True)


def _best(metrics: Sequence[Mapping[str, float]], metric: str) -> int:
    """Return the place of the point with the largest value of a metric, the first of equals."""
    if metric not in metrics[0]:
        raise InputError(
            f"--metric is {metric!r}, which the evaluation does not have; there are {', '.join(metrics[0])}."
        )
    values = [-math.inf if math.isnan(of_point[metric]) else of_point[metric] for of_point in metrics]
    if max(values) == -math.inf:
        raise InputError(f"--metric {metric} is not a number at any point: the data set has no object that it counts.")
    return values.index(max(values))


def _table(points: Sequence[Point], metrics: Sequence[Mapping[str, float]], metric: str, best: int) -> str:
    """Return the grid as a Markdown table: the constants, the metric, and AP of each task and group."""
    shown = [metric] + [
        name for name in metrics[0] if name != metric and name.split("/")[1] in ("AP", "APr", "APc", "APf")
    ]
    lines = [[*points[0], *shown, ""], ["---"] * (len(points[0]) + len(shown) + 1)]
    for number, (point, of_point) in enumerate(zip(points, metrics)):
        values = [format_value(of_point[name], scale=1.0) for name in shown]
        lines.append([*map(str, point.values()), *values, "best" if number == best else ""])
    return "\n".join(map(markdown_row, lines))


def _at_the_border(grid: Grid, best: Point) -> Iterator[str]:
    """Yield a sentence for each number of the best point that is the least or the largest of its grid."""
    for key, values in grid.items():
        if len(values) > 1 and not isinstance(best[key], str) and best[key] in (min(values), max(values)):
            side = "least" if best[key] == min(values) else "largest"
            yield (
                f"warning: the best {_ROOT}{key}, {best[key]}, is the {side} of the grid; a better one may lie beyond "
                f"it, if there is a meaning to it: --grid {key}=..."
            )


def _as_config(cfg: CfgNode, point: Point, value: float, metric: str, dataset: str) -> str:
    """Return the point as YAML over the config that the run has written."""
    tree: Dict[str, Any] = {}
    named = {"CALIBRATION.NAME": cfg.MODEL.LONG_TAIL.CALIBRATION.NAME, **point}
    for key, constant in named.items():
        *path, leaf = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = constant
    content = {
        "_BASE_": str(RunFolder(cfg.OUTPUT_DIR).config_file.resolve()),
        "MODEL": {"LONG_TAIL": tree},
    }
    return (
        f"# {metric} {value:.2f} on {dataset}, by eql-d2 calibrate --tune.\n{yaml.safe_dump(content, sort_keys=False)}"
    )
