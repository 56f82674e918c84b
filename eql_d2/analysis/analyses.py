"""Analysing finished runs: one pass of each model serves all analyses that need one."""

from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

from eql_d2.analysis import confusion, curves, weighting
from eql_d2.analysis.ap import ap
from eql_d2.analysis.cap import ap_cap
from eql_d2.analysis.passes import Pass, pass_over
from eql_d2.analysis.produced import ANALYSES, Produced
from eql_d2.analysis.trained_model import open_models
from eql_d2.errors import InputError
from eql_d2.run_folder import FINAL_WEIGHTS

#: Analyses of what the regions of a data set say; they share one pass.
OF_REGIONS: Dict[str, Callable[..., Produced]] = {
    "gradients": curves.gradients,
    "probabilities": curves.probabilities,
    "gradient-ratio": curves.gradient_ratio,
    "confusion": confusion.confusion,
}
#: Analyses of what evaluation left.
OF_EVALUATIONS: Dict[str, Callable[..., Produced]] = {"ap": ap, "ap-cap": ap_cap}
OF_RUNS: Dict[str, Callable[..., Produced]] = {
    "weights": curves.weights,
    "weight-functions": weighting.weight_functions,
    "tail-ratio": weighting.tail_ratio,
}


def analyze(
    runs: Sequence[Path],
    output_dir: Path,
    only: Optional[Sequence[str]] = None,
    names: Optional[Sequence[str]] = None,
    max_images: int = 0,
    dataset: Optional[str] = None,
    device: Optional[str] = None,
    weights: str = FINAL_WEIGHTS,
    allow_missing: bool = False,
) -> List[Produced]:
    """Analyse finished runs; write tables (CSV) and figures (PNG, SVG) to a folder.

    Categories are sorted by the training counts of the first run.

    Args:
        runs: output folders of eql-d2 train, with the same number of classes.
        output_dir: where to; made if it is not there.
        only: names of analyses, see :data:`ANALYSES`; all if not given.
        names: of the runs in tables and legends; their folders' if not given.
        max_images: of the pass over the data set, every n-th image; 0 for all.
        dataset: of that pass; the first of ``DATASETS.TRAIN`` if not given. AP is that of the data set too if the runs
            were evaluated on it, else of the one that they were evaluated on.
        device: as ``MODEL.DEVICE``; that of each run's config if not given.
        weights: name of the checkpoint in each run's folder.
        allow_missing: whether parameters that a checkpoint lacks may stay as they are initialized, with a warning.

    Returns:
        What each analysis wrote, in the order of :data:`ANALYSES`.

    Raises:
        InputError: for an unknown analysis, a run that lacks what an analysis reads, runs that cannot be compared, or
            an unknown data set.
    """
    chosen = _chosen(only)
    opened = open_models(runs, names, weights, device, allow_missing)
    if dataset is not None:
        for run in opened:
            run.dataset(dataset)
    categories = opened[0].categories()
    if set(chosen) & set(OF_EVALUATIONS):  # a run that was not evaluated is worth an answer before models run
        for run in opened:
            run.evaluated_dataset(dataset)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    passes: List[Pass] = []
    if set(chosen) & set(OF_REGIONS):
        passes = [pass_over(run, dataset, max_images) for run in opened]
    produced = []
    for name in chosen:
        if name in OF_REGIONS:
            produced.append(OF_REGIONS[name](opened, passes, categories, folder))
        elif name in OF_EVALUATIONS:
            produced.append(OF_EVALUATIONS[name](opened, categories, folder, dataset))
        else:
            produced.append(OF_RUNS[name](opened, categories, folder))
    return produced


def _chosen(only: Optional[Sequence[str]]) -> List[str]:
    unknown = [name for name in only or () if name not in ANALYSES]
    if unknown:
        raise InputError(f"--only {unknown[0]}: there is no such analysis; there are {', '.join(ANALYSES)}.")
    return [name for name in ANALYSES if not only or name in only]
