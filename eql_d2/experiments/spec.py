"""Table specifications: ``configs/tables/*.yaml``, the rows of a paper's table as trainings that can be run.

A specification is a mapping:

``title``, ``dataset``
    what the table is called, and the data set that it is about, in words.
``rows``
    list of rows, see below.
``metrics``
    list of ``kind/metric``, as ``segm/APr`` or ``bbox/AP-fixed``: the columns of the report.
``seeds``
    list of integers; every row is trained once for each.
``baseline``
    the name of the row that differences are taken to; optional. A paper's own baseline: a row can have another one.
``columns``
    names of the extra columns that rows fill in by ``values``; optional.
``opts``
    config overrides of all rows, not of what is prepared: a list of alternating keys and values.
``prepare``
    rows by name that are trained first, with one seed, and not printed: what others start from.
``generate``
    arguments of :func:`eql_d2.mini.generate.generate_mini_dataset` by folder below ``$DETECTRON2_DATASETS``.
``published``
    ids of the tables in ``paper_tables.yaml`` whose numbers are printed; all by default.
``fixed_opts``
    config overrides of a second evaluation of every row's weights, whose metrics are those that end in ``-fixed``.
    AP-fixed needs many more detections of an image than AP counts, which would cost time if masks were computed too.
``caveats``
    list of sentences, printed under the table.
``paper``
    the paper that prints the table, a key of :data:`PAPERS`; optional. docs/coverage.md lists those that have one.
``small_copy``
    name of the specification that makes the same comparison on the generated data set; optional.
``_BASE_``
    another specification, relative to this file. Its keys are taken over unless given here; ``opts`` and ``caveats``
    are put before, ``prepare`` and ``generate`` are merged.

A row is a mapping with ``name`` and ``config`` (below ``configs/``, without ``.yaml``) and, optionally, ``label``,
``opts``, ``seeds``, ``values``, ``start`` (the row or preparation whose last weights become ``MODEL.WEIGHTS``; of the
same seed if it is a row), ``action`` (``train`` or ``evaluate``), ``calibrate`` (collect the logit statistics of LogN
first), ``baseline`` (another row than the table's), ``twin`` (the LVIS config that it is a small copy of) and
``published`` (a reference into ``paper_tables.yaml`` for each source, ``paper`` or ``repository``). What is published
of a row that does not say so itself is what ``references.yaml`` names for its twin or its config; of a config with
``opts`` of the row's own, nothing.

A row that this package cannot run has ``not_expressible``, the reason in a sentence, in the place of ``config``: it is
printed with what is published of it.
"""

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import yaml

from eql_d2.config_files import TABLES_FOLDER, configs_root
from eql_d2.errors import InputError
from eql_d2.experiments.references import find_row, read_references, read_tables

CONFIGS = configs_root()
TABLES = CONFIGS / TABLES_FOLDER
ACTIONS = ("train", "evaluate")
SOURCES = ("paper", "repository")
#: The papers of which every table has a specification, in the order of docs/coverage.md.
PAPERS = {
    "EQL": "arXiv 2003.05176",
    "EQL v2": "arXiv 2012.08548",
    "The Equalization Losses": "arXiv 2210.05566",
    "EFL": "arXiv 2201.02593",
    "ACSL": "arXiv 2104.00885",
    "BAGS": "arXiv 2006.10408",
}
#: The seed of what is prepared once for all rows, as pre-trained weights are.
PREPARATION_SEED = 0

#: End of the name of a metric, and of a row, of the second evaluation.
FIXED = "-fixed"

_MERGED = ("prepare", "generate")
_JOINED = ("opts", "caveats")


@dataclass(frozen=True)
class TableRow:
    """One line of a table: a config with its overrides.

    Attributes:
        name: unique in its table; folders are called after it.
        config: path of the YAML file, ``None`` for a row that cannot be run.
        label: how the report calls it.
        opts: config overrides, the table's before the row's own.
        seeds: one training for each.
        start: name of the row or preparation whose weights it starts from, empty for those of the config.
        action: "train" or "evaluate" (only evaluate ``MODEL.WEIGHTS``).
        calibrate: whether the logit statistics of the weights are collected before the evaluation.
        baseline: name of the row that differences are taken to, the table's if the row has none of its own.
        values: contents of the extra columns.
        twin: the config whose published numbers are printed, where it is not ``config``.
        published: reference into ``paper_tables.yaml`` by source.
        not_expressible: why this package cannot run the row; empty if it can.
    """

    name: str
    config: Optional[Path]
    label: str
    opts: Tuple[str, ...] = ()
    seeds: Tuple[int, ...] = (0,)
    start: str = ""
    action: str = "train"
    calibrate: bool = False
    baseline: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    twin: str = ""
    published: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    not_expressible: str = ""


@dataclass(frozen=True)
class Table:
    """A table specification, see the module's docstring.

    Attributes:
        name: the file's name without its suffix.
        prepare: rows that others start from, by name; not printed.
        fixed_opts: config overrides of the second evaluation; empty for none.
        paper: a key of :data:`PAPERS`, empty for a table of this project's own.
        small_copy: name of the table with the same comparison on the generated data set.
    """

    name: str
    title: str
    dataset: str
    rows: Tuple[TableRow, ...]
    metrics: Tuple[str, ...]
    columns: Tuple[str, ...] = ()
    prepare: Mapping[str, TableRow] = field(default_factory=dict)
    generate: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    fixed_opts: Tuple[str, ...] = ()
    caveats: Tuple[str, ...] = ()
    paper: str = ""
    small_copy: str = ""

    @property
    def runnable(self) -> Tuple[TableRow, ...]:
        """The rows that can be run."""
        return tuple(row for row in self.rows if not row.not_expressible)

    def find(self, name: str) -> TableRow:
        """Return the row or preparation of this name."""
        return {**self.prepare, **{row.name: row for row in self.rows}}[name]

    def fixed_row(self, row: TableRow) -> TableRow:
        """Return the second evaluation of a row, which starts from its weights, or from those that it evaluates."""
        start = row.start if row.action == "evaluate" else row.name
        opts = (*row.opts, *self.fixed_opts)
        return replace(row, name=f"{row.name}{FIXED}", opts=opts, start=start, action="evaluate")

    def against(self, baseline: str) -> "Table":
        """Return the table with one row as the baseline of all.

        Raises:
            InputError: if there is no such row.
        """
        names = [row.name for row in self.rows]
        if baseline not in names:
            raise InputError(f"--baseline {baseline}: {self.name} has no such row; there are {', '.join(names)}.")
        return replace(self, rows=tuple(replace(row, baseline=baseline) for row in self.rows))


def table_names(folder: Path = TABLES) -> List[str]:
    """Return the names of all specifications, sorted; those that start with ``Base-`` are left out."""
    return sorted(path.stem for path in folder.glob("*.yaml") if not path.name.startswith("Base-"))


def load_specification(name: str, folder: Path = TABLES) -> Table:
    """Read a specification.

    Args:
        name: of a file in ``folder`` without its suffix, or the path of a YAML file.
        folder: where names are looked up.

    Raises:
        InputError: naming the file and the field, if there is no such table or anything in it is wrong.
    """
    path = Path(name) if str(name).endswith(".yaml") else folder / f"{name}.yaml"
    if not path.is_file():
        names = table_names(folder)
        near = get_close_matches(str(name), names, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(names)}."
        raise InputError(f"There is no table {str(name)!r} ({path}). {hint}")
    return _Parser(path).table()


def _read(path: Path) -> Dict[str, Any]:
    """Return the content of a specification with that of its ``_BASE_``."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is {type(content).__name__}; a table specification is a mapping.")
    if "_BASE_" not in content:
        return content
    base = _read(path.parent / content.pop("_BASE_"))
    for key in _JOINED:
        content[key] = [*base.get(key, ()), *content.get(key, ())]
    for key in _MERGED:
        content[key] = {**base.get(key, {}), **content.get(key, {})}
    return {**base, **content}


class _Parser:
    """Turns one file into a :class:`Table`, with errors that name the file."""

    def __init__(self, path: Path):
        self.path = path
        self.content = _read(path)

    def fail(self, message: str):
        raise InputError(f"{self.path}: {message}")

    def table(self) -> Table:
        known = {"title", "dataset", "rows", "metrics", "seeds", "baseline", "columns", "published", "fixed_opts"}
        known.update(_MERGED, _JOINED, ("paper", "small_copy"))
        self.check_keys(self.content, known, "")
        for key in ("title", "dataset", "rows", "metrics"):
            if not self.content.get(key):
                self.fail(f"{key} is missing.")
        for metric in self.content["metrics"]:
            if not isinstance(metric, str) or metric.count("/") != 1:
                self.fail(f"metrics has {metric!r}; it must be kind/metric, as segm/APr.")
        paper, small_copy = self.content.get("paper", ""), self.content.get("small_copy", "")
        if paper and paper not in PAPERS:
            self.fail(f"paper is {paper!r}; there are {', '.join(PAPERS)}.")
        if small_copy and not self.path.with_name(f"{small_copy}.yaml").is_file():
            self.fail(f"small_copy is {small_copy!r}, which is no table beside it.")
        prepare = {}
        for name, entry in (self.content.get("prepare") or {}).items():
            entry = {**entry, "name": name, "seeds": [PREPARATION_SEED]}
            prepare[name] = self.row(entry, f"prepare.{name}", shared_opts=())
        shared_opts = self.content.get("opts") or ()
        rows = tuple(self.row(entry, f"rows[{i}]", shared_opts) for i, entry in enumerate(self.content["rows"]))
        table = Table(
            name=self.path.stem,
            title=self.content["title"],
            dataset=self.content["dataset"],
            rows=rows,
            metrics=tuple(self.content["metrics"]),
            columns=tuple(self.content.get("columns") or ()),
            prepare=prepare,
            generate=self.content.get("generate") or {},
            fixed_opts=tuple(str(word) for word in self.content.get("fixed_opts") or ()),
            caveats=tuple(self.content.get("caveats") or ()),
            paper=paper,
            small_copy=small_copy,
        )
        self.check_references(table)
        return table

    def row(self, entry: Any, where: str, shared_opts: Sequence) -> TableRow:
        if not isinstance(entry, dict):
            self.fail(f"{where} is {entry!r}; a row is a mapping.")
        self.check_keys(entry, set(TableRow.__dataclass_fields__), where)
        reason = entry.get("not_expressible", "")
        if reason and "config" in entry:
            self.fail(f"{where} has a config and is not_expressible; it must be one of the two.")
        for key in ("name", "not_expressible" if reason else "config"):
            if not isinstance(entry.get(key), str):
                self.fail(f"{where}.{key} is {entry.get(key)!r}; it must be a string.")
        config = None if reason else CONFIGS / f"{entry['config']}.yaml"
        if config is not None and not config.is_file():
            self.fail(f"{where}.config is {entry['config']!r}, but {config} does not exist.")
        if entry.get("action", "train") not in ACTIONS:
            self.fail(f"{where}.action is {entry['action']!r}; there are {' and '.join(ACTIONS)}.")
        opts = [str(word) for word in [*shared_opts, *(entry.get("opts") or ())]]
        if len(opts) % 2:
            self.fail(f"opts of {where} are not pairs of KEY VALUE: {' '.join(opts)}.")
        return TableRow(
            name=entry["name"],
            config=config,
            label=entry.get("label", entry["name"]),
            opts=tuple(opts),
            seeds=self.seeds(entry.get("seeds", self.content.get("seeds", [0])), where),
            start=entry.get("start", ""),
            action=entry.get("action", "train"),
            calibrate=bool(entry.get("calibrate", False)),
            baseline=entry.get("baseline", self.content.get("baseline")) or "",
            values=entry.get("values") or {},
            twin=entry.get("twin", ""),
            published=self.published(entry, where),
            not_expressible=reason,
        )

    def published(self, entry: Mapping[str, Any], where: str) -> Dict[str, Mapping[str, Any]]:
        """Return what is published of a row: its own references, else those of its twin or its config."""
        given = entry.get("published")
        if given is not None:
            if not isinstance(given, dict) or set(given) - set(SOURCES):
                self.fail(f"{where}.published is {given!r}; it must be a reference for each of {', '.join(SOURCES)}.")
            for reference in given.values():
                try:
                    find_row(read_tables(), reference)
                except (InputError, KeyError, TypeError) as error:
                    self.fail(f"{where}.published has {reference!r}, which names no row: {error}")
            return given
        twin, config = entry.get("twin", ""), entry.get("config", "")
        if twin and not (CONFIGS / f"{twin}.yaml").is_file():
            self.fail(f"{where}.twin is {twin!r}, but there is no configs/{twin}.yaml.")
        if not twin and (not config or entry.get("opts")):
            return {}
        return self.published_of_config(twin or config)

    def published_of_config(self, config: str) -> Dict[str, Mapping[str, Any]]:
        """Return, by source, the first reference of a config into a table that is asked for."""
        tables = self.content.get("published")
        unknown = sorted(set(tables or ()) - set(read_tables()))
        if unknown:
            self.fail(f"published has {unknown[0]!r}, which paper_tables.yaml lacks.")
        found = {}
        for source in SOURCES:
            references = read_references().get(config, {}).get(source, ())
            fitting = [reference for reference in references if tables is None or reference["table"] in tables]
            if fitting:
                found[source] = fitting[0]
        return found

    def seeds(self, seeds: Any, where: str) -> Tuple[int, ...]:
        is_list = isinstance(seeds, list) and seeds and all(type(seed) is int and seed >= 0 for seed in seeds)
        if not is_list or len(set(seeds)) < len(seeds):
            self.fail(f"seeds of {where} are {seeds!r}; they must be different whole numbers from 0 on.")
        return tuple(seeds)

    def check_references(self, table: Table) -> None:
        names = [row.name for row in table.rows]
        repeated = sorted({name for name in [*names, *table.prepare] if [*names, *table.prepare].count(name) > 1})
        if repeated:
            self.fail(f"the name {repeated[0]!r} stands for two rows.")
        for row in [*table.rows, *table.prepare.values()]:
            if row.baseline and row.baseline not in names:
                self.fail(f"baseline of {row.name!r} is {row.baseline!r}, no row; there are {', '.join(names)}.")
            self.check_start(table, row)
            if row.start and not row.not_expressible and table.find(row.start).not_expressible:
                self.fail(f"start of {row.name!r} is {row.start!r}, which is not expressible.")
            unknown = sorted(set(row.values) - set(table.columns))
            if unknown:
                self.fail(f"values of {row.name!r} has {unknown[0]!r}, which is not in columns.")

    def check_start(self, table: Table, row: TableRow) -> None:
        seen = [row.name]
        while row.start:
            names = [*table.prepare, *(other.name for other in table.rows)]
            if row.start not in names:
                self.fail(f"start of {row.name!r} is {row.start!r}; there are {', '.join(names)}.")
            if row.start in seen:
                self.fail(f"{' starts from '.join([*seen, row.start])}: that is a circle.")
            seen.append(row.start)
            following = table.find(row.start)
            lacking = set(row.seeds) - set(following.seeds)
            if row.start not in table.prepare and lacking:
                self.fail(f"{row.name!r} has the seed {min(lacking)}, which {row.start!r}, where it starts, has not.")
            row = following

    def check_keys(self, mapping: Mapping[str, Any], known: Sequence[str], where: str) -> None:
        for key in mapping:
            if key not in known:
                near: Optional[List[str]] = get_close_matches(str(key), sorted(known), n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}."
                self.fail(f"{where + '.' if where else ''}{key} is no field of a table; {hint}")
