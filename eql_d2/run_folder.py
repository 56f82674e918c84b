"""The output folder of a training: what lies where in it."""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from detectron2.config import CfgNode

from eql_d2.errors import InputError

#: What an evaluation writes to ``OUTPUT_DIR/inference/<data set>``: the detections, and AP of each category.
RESULTS_NAMES = ("lvis_instances_results.json", "coco_instances_results.json")
AP_FILE = "per_category_ap.json"


def run_config(folder: Path) -> CfgNode:
    """Return what a run's ``config.yaml`` says, over today's defaults.

    Raises:
        InputError: if the folder or the file is missing, or a key in it cannot be used.
    """
    from eql_d2.config import load_config

    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder; a run is an output folder of tools/train_net.py.")
    config = folder / "config.yaml"
    if not config.is_file():
        raise InputError(f"{config}: there is no such file; a run is an output folder of tools/train_net.py.")
    return load_config(str(config))


def read_json(path: Path) -> Any:
    """Return the content of a file that a run wrote, ``None`` if it is not there.

    Raises:
        InputError: if it is damaged.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not valid json ({error}); evaluate the run again.") from None


def category_ap(folder: Path, dataset: str) -> List[Dict[str, Any]]:
    """Return the rows that evaluation wrote, by label: id, name, group, counts, ``bbox_AP`` and its like in percent.

    Empty if the run was not evaluated on that data set.

    Raises:
        InputError: if the file is damaged.
    """
    path = folder / "inference" / dataset / AP_FILE
    try:
        return sorted(read_json(path) or [], key=lambda row: row["id"])
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is no table of evaluation ({error!r}).") from None


def results_file(source: Path, dataset: str) -> Path:
    """Return the results file that a path names: the file itself, or that of a run's folder.

    Raises:
        InputError: if there is none, naming the data sets that the run was evaluated on.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise InputError(f"{source}: there is no such results file or run folder.")
    for name in RESULTS_NAMES:
        if (source / "inference" / dataset / name).is_file():
            return source / "inference" / dataset / name
    there = sorted({path.parent.name for name in RESULTS_NAMES for path in source.glob(f"inference/*/{name}")})
    hint = f"; it has results on {', '.join(there)}: choose one with --dataset" if there else "; evaluate the run first"
    raise InputError(f"{source} has no {RESULTS_NAMES[0]} in inference/{dataset}{hint}.")


def unique_names(sources: Sequence[Path], names: Optional[Sequence[str]] = None) -> List[str]:
    """Return a name for each run or results file: those given, else as much of the end of its path as tells them apart.

    Raises:
        InputError: if names are given, but not one for each, or one twice.
    """
    if names:
        if len(names) != len(sources):
            raise InputError(f"--names has {len(names)} names for {len(sources)} runs; give one for each.")
        if len(set(names)) < len(names):
            raise InputError(f"--names {' '.join(names)}: the names must differ.")
        return list(names)
    parts = [Path(source).resolve().parts for source in sources]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-depth:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    raise InputError(f"{sources[0]} is given twice; a comparison needs different runs.")
