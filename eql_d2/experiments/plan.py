"""What identifies a run of a table: its config, seed, data and start weights; and the commands that make it up."""

import ast
import hashlib
import os
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

import eql_d2
from eql_d2.config import flatten, get_cfg, load_config
from eql_d2.data.builtin import (
    LVIS_JSON_FILES,
    OPEN_IMAGES_SPLITS,
    data_root,
    open_images_entry,
    open_images_files,
    register_builtin,
    register_masks_entry,
    resolve_path,
)
from eql_d2.data.semantic import is_segmentation_set, segmentation_records
from eql_d2.errors import InputError
from eql_d2.experiments.jobs import TRAIN
from eql_d2.experiments.spec import PREPARATION_SEED, Table, TableRow
from eql_d2.losses import CALIBRATION_REGISTRY
from eql_d2.run_folder import RunFolder

PACKAGE = Path(eql_d2.__file__).resolve().parent
#: The words that start the collection of logit statistics.
CALIBRATE = (*TRAIN[:-1], "calibrate")
#: The rooms of the package that a number depends on.
CODE_ROOMS = ("losses", "data", "modeling", "engine", "evaluation")
#: Keys that say where or how often something is written, not what comes out.
_NO_PART_OF_A_RESULT = ("OUTPUT_DIR", "SOLVER.CHECKPOINT_PERIOD", "VIS_PERIOD", "MODEL.DEVICE", "VERSION", "SEED")


@dataclass(frozen=True)
class PlannedRun:
    """One row with one seed.

    Attributes:
        row: what is run.
        seed: ``SEED``.
        parent: the run whose last weights it starts from.
        runs_dir: folder of all runs; each writes to a folder of its own in it.
        code: :func:`code_digest` if only what this code has measured counts; empty for any code.
    """

    row: TableRow
    seed: int
    runs_dir: Path
    parent: Optional["PlannedRun"] = None
    code: str = ""

    @property
    def name(self) -> str:
        """How tables and messages call it."""
        return f"{self.row.name} (seed {self.seed})"

    @cached_property
    def cfg(self) -> CfgNode:
        """The config, without what depends on the place: the weights of the parent, the output folder."""
        return load_config(str(self.row.config), [*self.row.opts, "SEED", str(self.seed)])

    def identity(self) -> Dict[str, Any]:
        """Return what decides on the result besides the data, as a json-able mapping.

        The config enters as what differs from the defaults, so that a new key with a default changes nothing.
        """
        settings = changed_keys(self.cfg)
        for key in _NO_PART_OF_A_RESULT:
            settings.pop(key, None)
        if self.parent is not None:
            settings["MODEL.WEIGHTS"] = f"run {self.parent.config_digest}"
        if self.row.calibrate:
            settings.pop(self._statistics_key, None)
        return {"settings": settings, "seed": self.seed, "action": self.row.action, "calibrate": self.row.calibrate}

    @property
    def _statistics_key(self) -> str:
        return f"MODEL.LONG_TAIL.CALIBRATION.{self.cfg.MODEL.LONG_TAIL.CALIBRATION.NAME}.STATISTICS"

    @cached_property
    def config_digest(self) -> str:
        """Digest of :meth:`identity`."""
        # Lists and tuples alike, since YAML has lists only.
        leaves = [(key, repr(_as_list(value))) for key, value in flatten(self.identity()).items()]
        return _digest(repr(sorted(leaves)).encode())

    def data_digest(self) -> str:
        """Return a digest of the annotation files of training and test, and of those of the parent.

        Raises:
            InputError: if one is missing.
        """
        parts = [_file_digest(path, path.stat().st_mtime_ns) for path in annotation_files(self.cfg)]
        return _digest(" ".join(parts + ([self.parent.data_digest()] if self.parent else [])).encode())

    @property
    def key(self) -> str:
        """Digest of config, seed, data and start weights, and of the code where the run is asked to be of this one."""
        return _digest(f"{self.config_digest} {self.data_digest()} {self.code}".encode())

    @property
    def folder(self) -> Path:
        """``OUTPUT_DIR``: one for each key, so that a changed config never resumes from another one's checkpoint."""
        return self.runs_dir / f"{self.row.name}-seed{self.seed}-{self.key[:10]}"

    @property
    def weights(self) -> str:
        """Path of the weights that the run leaves, or, if it only evaluates, that it evaluated."""
        if self.row.action == "evaluate":
            return self.parent.weights if self.parent else self.cfg.MODEL.WEIGHTS
        return str(RunFolder(self.folder).weights)

    def commands(self, num_gpus: int = 0) -> List[List[str]]:
        """Return the command lines, to be run one after the other; run again, they go on where they were stopped.

        Args:
            num_gpus: processes of a training; 0 leaves the flag out.
        """
        folder = self.folder
        opts = [*self.row.opts, "SEED", str(self.seed), "OUTPUT_DIR", str(folder)]
        if self.parent is not None:
            opts += ["MODEL.WEIGHTS", self.parent.weights]
        flags = ["--config-file", str(self.row.config)] + (["--num-gpus", str(num_gpus)] if num_gpus else [])
        if self.row.action == "train":
            return [[*TRAIN, *flags, "--resume", *opts]]
        commands = []
        if self.row.calibrate:
            calibration = CALIBRATION_REGISTRY.get(self.cfg.MODEL.LONG_TAIL.CALIBRATION.NAME)
            statistics = str(RunFolder(folder).statistics_files[calibration.statistics_of])
            commands.append([*CALIBRATE, *flags, "--output", statistics, *opts])
            opts = [*opts, self._statistics_key, statistics]
        return [*commands, [*TRAIN, *flags, "--eval-only", *opts]]


def runs_of(table: Table, runs_dir: Path, code: str = "") -> Dict[Tuple[str, int], PlannedRun]:
    """Return every run of a table by row name and seed, each after the one that it starts from.

    ``code`` is that of every :class:`PlannedRun`. With ``fixed_opts`` a row's second evaluation is there too, under
    the row's name with ``-fixed``.
    """
    runs: Dict[Tuple[str, int], PlannedRun] = {}

    def add(row: TableRow, seed: int) -> PlannedRun:
        if (row.name, seed) not in runs:
            parent = None
            if row.start:
                start = table.find(row.start)
                parent = add(start, PREPARATION_SEED if start.name in table.prepare else seed)
            runs[row.name, seed] = PlannedRun(row, seed, Path(runs_dir), parent, code)
        return runs[row.name, seed]

    # All rows with the first seed come first: a table that is cut short has something of every row.
    for position in range(max((len(row.seeds) for row in table.runnable), default=0)):
        for row in table.runnable:
            if position < len(row.seeds):
                add(row, row.seeds[position])
                if table.fixed_opts:
                    add(table.fixed_row(row), row.seeds[position])
    return runs


def annotation_files(cfg: CfgNode) -> List[Path]:
    """Return the annotation files of ``DATASETS.TRAIN`` and ``DATASETS.TEST``; index masks are such, too.

    Raises:
        InputError: if one is missing or its data set is not known.
    """
    given = {name: resolve_path(json_file, name) for name, json_file, _ in cfg.MODEL.LONG_TAIL.DATASETS}
    images = {entry["name"]: entry["path"] for entry in cfg.MODEL.LONG_TAIL.CLASSIFICATION.DATASETS}
    builtin = {name: os.path.join(data_root(), json_file) for name, json_file in LVIS_JSON_FILES.items()}
    files = []
    open_images = {name: files for name, files, _ in map(open_images_entry, cfg.MODEL.LONG_TAIL.OPEN_IMAGES.DATASETS)}
    open_images = {**{name: open_images_files(name) for name in OPEN_IMAGES_SPLITS}, **open_images}
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for entry in cfg.MODEL.LONG_TAIL.SEM_SEG.DATASETS:
        register_masks_entry(entry)
    register_builtin({*names}.difference(given, images, builtin, open_images))
    for name in names:
        if name in DatasetCatalog and is_segmentation_set(name):
            files += [Path(mask) for mask in segmentation_records(name).table.masks.masks]
            continue
        if name in images:
            files += _files_at(resolve_path(images[name], name), name)
            continue
        if name in open_images:
            for path in open_images[name].given:
                files += _files_at(path, name)
            continue
        path = given.get(name) or builtin.get(name)
        if path is None:
            raise InputError(
                f"DATASETS names {name!r}, which neither the config registers nor LVIS, Open Images or ADE20K has."
            )
        if not Path(path).is_file():
            raise InputError(f"{path}: there is no such file; it should hold the annotations of {name}.")
        files.append(Path(path))
    return files


def _files_at(path: str, name: str) -> List[Path]:
    """Return a file itself, or the files in a folder, in whose folders only images are."""
    found = Path(path)
    if not found.exists():
        raise InputError(f"{path}: there is no such file or folder; it should hold the data set {name}.")
    return sorted(file for file in found.iterdir() if file.is_file()) if found.is_dir() else [found]


def changed_keys(cfg: CfgNode) -> Dict[str, Any]:
    """Return the value of every key that differs from the default, by its full name."""
    defaults = flatten(get_cfg())
    return {key: value for key, value in flatten(cfg).items() if key not in defaults or defaults[key] != value}


@cache
def code_digest() -> str:
    """Return a digest of the source that numbers depend on, comments and docstrings left out; see ``CODE_ROOMS``."""
    paths = [path for room in CODE_ROOMS for path in sorted((PACKAGE / room).glob("*.py"))]
    parts = [f"{path.parent.name}/{path.name} {_digest(bare_source(path.read_text()).encode())}" for path in paths]
    return _digest("\n".join(parts).encode())


def bare_source(source: str) -> str:
    """Return Python source without comments and docstrings, in a form of its own."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


@cache
def _file_digest(path: Path, mtime_ns: int) -> str:
    return _digest(path.read_bytes())


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _as_list(value: Any) -> Any:
    return [_as_list(item) for item in value] if isinstance(value, (list, tuple)) else value
