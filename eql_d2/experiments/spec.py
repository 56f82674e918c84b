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
    arguments of :func:`eql_d2.mini.generate_mini_dataset` by folder below ``$DETECTRON2_DATASETS``, with ``format:
    openimages`` of :func:`eql_d2.mini.generate_open_images_dataset`; with ``objects``, those of
    :func:`eql_d2.mini.photographs.generate_photograph_dataset`.
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
first), ``augmented`` (the numbers are those of test-time augmentation, which the config asks for), ``baseline``
(another row than the table's), ``twin`` (the LVIS config that it is a small copy of) and ``published`` (a reference
into ``paper_tables.yaml`` for each source, ``paper`` or ``repository``). What is published of a row that does not say
so itself is what ``references.yaml`` names for its twin or its config; of a config with ``opts`` of its own, nothing.

A row that this package cannot run has ``not_expressible``, the reason in a sentence, in the place of ``config``: it is
printed with what is published of it.
"""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Dict,
    List,
    Literal,
    Mapping,
    Optional,
    Tuple,
    Type,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
import yaml
from msgspec import Meta
from msgspec.structs import replace

from eql_d2.config_files import TABLES_FOLDER, configs_root
from eql_d2.errors import InputError
from eql_d2.experiments.references import find_row, read_references, read_tables

CONFIGS = configs_root()
TABLES = CONFIGS / TABLES_FOLDER
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
#: Keys of a table that its rows take over, or choose from.
_OF_ROWS = ("opts", "seeds", "baseline", "published")

_Text = Annotated[str, Meta(min_length=1)]
_Seeds = Annotated[Tuple[Annotated[int, Meta(ge=0)], ...], Meta(min_length=1)]
_Struct = TypeVar("_Struct", bound=msgspec.Struct)


class TableRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
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
        augmented: whether a metric of ``segm`` is that of ``segm_TTA``, and so on.
        baseline: name of the row that differences are taken to, the table's if the row has none of its own.
        values: contents of the extra columns.
        twin: the config whose published numbers are printed, where it is not ``config``.
        published: reference into ``paper_tables.yaml`` by source.
        not_expressible: why this package cannot run the row; empty if it can.
    """

    name: _Text
    config: Optional[Path] = None
    label: str = ""
    opts: Tuple[str, ...] = ()
    seeds: _Seeds = (0,)
    start: str = ""
    action: Literal["train", "evaluate"] = "train"
    calibrate: bool = False
    augmented: bool = False
    baseline: str = ""
    values: Dict[str, Any] = {}
    twin: str = ""
    published: Dict[Literal["paper", "repository"], Dict[str, Any]] = {}
    not_expressible: str = ""

    def __post_init__(self):
        if (self.config is None) != bool(self.not_expressible):
            raise ValueError("a row has either a config or the reason why it is not_expressible")
        if len(self.opts) % 2:
            raise ValueError(f"opts are not pairs of KEY VALUE: {' '.join(self.opts)}")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {list(self.seeds)}; they must be different whole numbers from 0 on")


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table specification, see the module's docstring.

    Attributes:
        name: the file's name without its suffix.
        prepare: rows that others start from, by name; not printed.
        fixed_opts: config overrides of the second evaluation; empty for none.
        paper: a key of :data:`PAPERS`, empty for a table of this project's own.
        small_copy: name of the table with the same comparison on the generated data set.
    """

    name: str
    title: _Text
    dataset: _Text
    metrics: Annotated[Tuple[Annotated[str, Meta(pattern="^[^/]+/[^/]+$")], ...], Meta(min_length=1)]
    rows: Tuple[TableRow, ...] = ()
    columns: Tuple[str, ...] = ()
    prepare: Dict[str, TableRow] = {}
    generate: Dict[str, Dict[str, Any]] = {}
    fixed_opts: Tuple[str, ...] = ()
    caveats: Tuple[str, ...] = ()
    paper: Literal[("", *PAPERS)] = ""
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
    return _parse(path, _read(path))


def _read(path: Path) -> Dict[str, Any]:
    """Return the content of a specification with that of its ``_BASE_``."""
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}).") from None
    except RecursionError:
        raise InputError(f"{path} leads back to itself by _BASE_, or is nested too deep.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is {type(content).__name__}; a table specification is a mapping.")
    if "_BASE_" not in content:
        return content
    base_path = path.parent / str(content.pop("_BASE_"))
    if not base_path.is_file():
        raise InputError(f"{path}: _BASE_ is {str(base_path)!r}; there is no such file.")
    base = _read(base_path)
    for key in _JOINED:
        content[key] = [*base.get(key, ()), *content.get(key, ())]
    for key in _MERGED:
        content[key] = {**base.get(key, {}), **content.get(key, {})}
    return {**base, **content}


def _parse(path: Path, content: Dict[str, Any]) -> Table:
    """Turn the content of a file into a table; whatever is wrong in it is an error that names the file."""
    shared = {key: content.pop(key, None) for key in _OF_ROWS}
    entries, prepared = content.pop("rows", None), content.pop("prepare", None) or {}
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{path}: rows is {entries!r}; it must be a list of at least one row.")
    fixed_opts = [str(word) for word in content.get("fixed_opts") or ()]
    table = _convert(path, {**content, "name": path.stem, "fixed_opts": fixed_opts}, Table, "")
    if table.small_copy and not path.with_name(f"{table.small_copy}.yaml").is_file():
        raise InputError(f"{path}: small_copy is {table.small_copy!r}, which is no table beside it.")
    unknown = sorted(set(shared["published"] or ()) - set(read_tables()))
    if unknown:
        raise InputError(f"{path}: published has {unknown[0]!r}, which paper_tables.yaml lacks.")
    prepare = {
        name: _row(path, entry, f"prepare.{name}", {**shared, "opts": None}, name=name, seeds=[PREPARATION_SEED])
        for name, entry in prepared.items()
    }
    rows = tuple(_row(path, entry, f"rows[{i}]", shared) for i, entry in enumerate(entries))
    table = replace(table, rows=rows, prepare=prepare)
    _check_references(path, table)
    return table


def _row(path: Path, entry: Any, where: str, shared: Mapping[str, Any], **given) -> TableRow:
    """Return a row with what it takes over from its table and from what is published of its config."""
    if not isinstance(entry, dict):
        raise InputError(f"{path}: {where} is {entry!r}; a row is a mapping.")
    opts = [str(word) for word in [*(shared["opts"] or ()), *(entry.get("opts") or ())]]
    inherited = {"seeds": shared["seeds"], "baseline": shared["baseline"], "label": entry.get("name")}
    row = _convert(path, {**inherited, **entry, **given, "opts": opts}, TableRow, where)
    if row.twin and not (CONFIGS / f"{row.twin}.yaml").is_file():
        raise InputError(f"{path}: {where}.twin is {row.twin!r}, but there is no configs/{row.twin}.yaml.")
    for reference in row.published.values():
        try:
            find_row(read_tables(), reference)
        except (InputError, KeyError, TypeError) as error:
            raise InputError(f"{path}: {where}.published has {reference!r}, which names no row: {error}") from None
    if "published" in entry or (not row.twin and (row.config is None or entry.get("opts"))):
        return row
    return replace(row, published=_published_of_config(row.twin or entry["config"], shared["published"]))


def _published_of_config(config: str, tables: Optional[List[str]]) -> Dict[str, Mapping[str, Any]]:
    """Return, by source, the first reference of a config into one of the tables; ``None`` for all tables."""
    found = {}
    for source in SOURCES:
        references = read_references().get(config, {}).get(source, ())
        fitting = [reference for reference in references if tables is None or reference["table"] in tables]
        if fitting:
            found[source] = fitting[0]
    return found


def _convert(path: Path, content: Mapping[str, Any], kind: Type[_Struct], where: str) -> _Struct:
    """Return the content as a typed object; keys without a value count as absent.

    Raises:
        InputError: naming the file, the field and its value.
    """
    content = {key: value for key, value in content.items() if value is not None}
    try:
        return msgspec.convert(content, kind, dec_hook=_config_path)
    except msgspec.ValidationError as error:
        message, place = re.fullmatch(r"(.*?)(?: - at .*?`\$(.*)`)?", str(error), re.DOTALL).groups()
        field = re.sub(r"\[.*", "", (place or "").lstrip("."))
        said = f"{field} is {content[field]!r}: " if field in content else ""
        hint = ""
        unknown = re.search("unknown field `(.*)`", message)
        if unknown:
            near = get_close_matches(unknown.group(1), [*kind.__struct_fields__, *_OF_ROWS], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
        elif message.startswith("Invalid enum value"):
            hint = f" There are {', '.join(filter(None, _choices(get_type_hints(kind)[field])))}."
        raise InputError(f"{path}: {where + ': ' if where else ''}{said}{message}.{hint}") from None


def _choices(hint: Any) -> Tuple[str, ...]:
    """Return the values of the first ``Literal`` in a type."""
    return get_args(hint) if get_origin(hint) is Literal else _choices(get_args(hint)[0])


def _config_path(kind: Type, name: Any) -> Path:
    """Return the file of a config, for msgspec, which puts the field's name before the error."""
    path = CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    return path


def _check_references(path: Path, table: Table) -> None:
    """Raise an :class:`InputError` if rows name one another, or columns, that are not there."""
    names = [row.name for row in table.rows]
    every = [*table.prepare, *names]
    repeated = sorted({name for name in every if every.count(name) > 1})
    if repeated:
        raise InputError(f"{path}: the name {repeated[0]!r} stands for two rows.")
    for row in [*table.rows, *table.prepare.values()]:
        if row.baseline and row.baseline not in names:
            raise InputError(
                f"{path}: baseline of {row.name!r} is {row.baseline!r}, no row; there are {', '.join(names)}."
            )
        _check_start(path, table, row)
        if row.start and not row.not_expressible and table.find(row.start).not_expressible:
            raise InputError(f"{path}: start of {row.name!r} is {row.start!r}, which is not expressible.")
        unknown = sorted(set(row.values) - set(table.columns))
        if unknown:
            raise InputError(f"{path}: values of {row.name!r} has {unknown[0]!r}, which is not in columns.")


def _check_start(path: Path, table: Table, row: TableRow) -> None:
    """Raise an :class:`InputError` if there is no way from a row back to one that starts from none."""
    names = [*table.prepare, *(other.name for other in table.rows)]
    seen = [row.name]
    while row.start:
        if row.start not in names:
            raise InputError(f"{path}: start of {row.name!r} is {row.start!r}; there are {', '.join(names)}.")
        if row.start in seen:
            raise InputError(f"{path}: {' starts from '.join([*seen, row.start])}: that is a circle.")
        seen.append(row.start)
        following = table.find(row.start)
        lacking = set(row.seeds) - set(following.seeds)
        if row.start not in table.prepare and lacking:
            raise InputError(
                f"{path}: {row.name!r} has the seed {min(lacking)}, which {row.start!r}, where it starts, has not."
            )
        row = following
