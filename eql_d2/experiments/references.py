"""MODEL_ZOO.md: every config with its training, the numbers published for it, and what was measured here."""

from functools import cache
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

import yaml
from detectron2.config import CfgNode

from eql_d2.config import load_config
from eql_d2.config_files import configs_root, list_configs
from eql_d2.data.groups import GROUPS
from eql_d2.errors import InputError

TABLES_FILE = Path(__file__).with_name("paper_tables.yaml")
ROWS_FILE = Path(__file__).with_name("references.yaml")
SECTIONS = {
    "LVISv0.5": "LVIS v0.5",
    "LVISv1": "LVIS v1",
    "OpenImages": "Open Images, challenge 2019",
    "classification": "Image classification",
    "segmentation": "Semantic segmentation of ADE20K",
    "mini": "The generated data set",
    "mini_openimages": "The generated data set in the format of Open Images",
    "mini_semseg": "The generated data set as index masks",
    "mini_partly": "The generated data set, half of the classes labelled in each half of its images",
    "mini_challenge": "The road map of the challenge of 2019 on the generated data set",
    "photographs": "Photographs of CIFAR-100, four to an image",
    "real": "A few real photographs",
}
ABSENT = "n/a"
INTRODUCTION = """\
# Model zoo

Every config with the numbers that its paper and its authors' repository print for the same row. Made by
`python tools/make_model_zoo.py` from the configs, `eql_d2/experiments/paper_tables.yaml` and
`eql_d2/experiments/references.yaml`; a test fails when it is out of date. There are no weights to download: none of
the configs for LVIS and Open Images was run here.

Numbers are AP on the validation set, of masks or boxes, with that of the rare, common and frequent classes in brackets;
of Open Images AP at IoU 0.5; of image classifiers the top-1 and top-5 accuracy in percent. "n/a" is a number that is
not published or could not be recovered. The tags name the source, see
[docs/methods/README.md](docs/methods/README.md#sources). Rows of different schedules are not comparable: `paper` (EQL's
paper, 25 epochs, class-agnostic masks), `repo` (EQL's repository, class-specific masks, scale jitter), `1x` and `2x`
(12 and 24 epochs, scale jitter), `coco_1x` (12 epochs from a COCO detector, one scale), `stage2` (the classifier
trained further, all else frozen; how to run a pair: [docs/methods/README.md](docs/methods/README.md#two-stages)).
"""
NOTES = {
    "mini": "Made to compare methods on a laptop; nothing is published for it. What was measured is in "
    "[docs/results.md](docs/results.md).",
    "mini_openimages": "A small copy of Open Images: its files, its metric, its groups; nothing is published for it. "
    "The set is in [docs/mini_dataset.md](docs/mini_dataset.md).",
    "segmentation": "The numbers of The Equalization Losses on ADE20K could not be recovered, and of these models with "
    "these losses none are known. None was run here; [docs/segmentation.md](docs/segmentation.md) is about them.",
    "mini_semseg": "A small copy of a segmentation set; nothing is published for it. The set is in "
    "[docs/mini_dataset.md](docs/mini_dataset.md), what was measured in [docs/results.md](docs/results.md).",
    "mini_partly": "Made to see what it gains to exempt what nobody verified; nothing is published for it. The sets "
    "are in [docs/merged_data.md](docs/merged_data.md).",
    "photographs": "Made to see what holds beyond generated shapes; nothing is published for it. The set and the "
    "protocol are in [docs/mini_dataset.md](docs/mini_dataset.md).",
    "real": "Proof that real annotations flow through; nothing is published for it. What was measured is in "
    "[docs/results.md](docs/results.md).",
}


def leaves() -> List[Path]:
    """Return the configs of :func:`~eql_d2.config_files.list_configs` in the folders of :data:`SECTIONS`."""
    return [configs_root() / f"{name}.yaml" for name in list_configs() if name.split("/")[0] in SECTIONS]


@cache
def read_references() -> Dict[str, Dict[str, Any]]:
    """Return which rows of the papers' tables a config is to be held against, by config and source."""
    return yaml.safe_load(ROWS_FILE.read_text())


@cache
def read_tables() -> Dict[str, Dict[str, Any]]:
    """Return the papers' tables by their id."""
    return {table["id"]: table for table in yaml.safe_load(TABLES_FILE.read_text())["tables"]}


def find_row(tables: Mapping[str, Dict[str, Any]], reference: Mapping[str, Any]) -> Tuple[Dict, Dict]:
    """Return the published table and its row that a reference names.

    Args:
        tables: by id, as :func:`read_tables` returns them.
        reference: ``table`` and ``row`` (values of the columns that pick a row).

    Raises:
        InputError: if there is no such table, or not exactly one such row.
    """
    if reference["table"] not in tables:
        raise InputError(f"A row refers to the table {reference['table']!r}, which {TABLES_FILE.name} lacks.")
    table, wanted = tables[reference["table"]], reference["row"]
    rows = [row for row in table["rows"] if all(row.get(key) == value for key, value in wanted.items())]
    if len(rows) != 1:
        raise InputError(f"{len(rows)} rows of {table['id']} in {TABLES_FILE.name} have {wanted}; it must be one.")
    return table, rows[0]


def published_number(tables: Mapping[str, Dict[str, Any]], reference: Mapping[str, Any]) -> str:
    """Return what a table prints in one row, with its source.

    Args:
        tables: by id, as :func:`read_tables` returns them.
        reference: ``table``, ``row`` (values of the columns that pick a row) and, where a cell holds two numbers,
            ``part``.

    Raises:
        InputError: if there is no such table, or not exactly one such row.
    """
    table, row = find_row(tables, reference)
    source = row.get("source", table["source"])
    if "box AP / mask AP" in row:
        numbers = zip(("box", "mask"), str(row["box AP / mask AP"]).split(" / "))
        return ", ".join(f"{kind} {number}" for kind, number in numbers) + f" {source}"
    if "top1" in row:
        accuracies = (f"top-{k} {row[f'top{k}']}" for k in (1, 5) if row.get(f"top{k}") is not None)
        return f"{', '.join(accuracies)} {source}"
    kind = "box" if table["metric"].startswith("box") else "mask"
    value = row[table.get("columns", {}).get("AP", "AP")]
    value = value if "part" not in reference else value.split(" / ")[reference["part"]]
    groups = [ABSENT if row.get(f"AP{group}") is None else str(row[f"AP{group}"]) for group in GROUPS]
    text = f"{kind} {value}" + (f" ({', '.join(groups)})" if set(groups) != {ABSENT} else "")
    if row.get("APbbox") is not None:
        text += f", box {row['APbbox']}"
    return f"{text} {source}"


def describe_training(cfg: CfgNode) -> str:
    """Return in a few words what a config trains, how long, and from where."""
    node = cfg.MODEL.LONG_TAIL
    start = cfg.MODEL.WEIGHTS or "scratch"
    folders = (f"{folder}/" for folder in SECTIONS)
    for part in ("detectron2://", "catalog://", "output/", *folders, "/model_final.pth", ".pkl"):
        start = start.replace(part, "")
    if node.CALIBRATION.NAME or node.TAU_NORM.TAU:
        return f"none, starts from {start}"
    part = {"all": "", "box_head": "box head, ", "scale": "scales, "}.get(node.TRAINABLE, f"{node.TRAINABLE}, ")
    return f"{part}{cfg.SOLVER.MAX_ITER:,} x {cfg.SOLVER.IMS_PER_BATCH} images from {start}"


def make_model_zoo() -> str:
    """Return the content of MODEL_ZOO.md.

    Raises:
        InputError: if the mapping names a config, a table or a row that does not exist.
    """
    tables, rows = read_tables(), read_references()
    names = {path.relative_to(configs_root()).with_suffix("").as_posix(): path for path in leaves()}
    unknown = sorted(set(rows) - set(names))
    if unknown:
        raise InputError(f"{ROWS_FILE.name} names configs that do not exist: {', '.join(unknown)}.")
    parts = [INTRODUCTION]
    for folder, title in SECTIONS.items():
        published = folder not in NOTES
        parts.append(f"## {title}\n" + ("" if published else f"\n{NOTES[folder]}\n"))
        header = ["config", "loss", "training"] + (["paper", "authors' repository", "here"] if published else [])
        lines = [header, ["---"] * len(header)]
        for name, path in names.items():
            if not name.startswith(f"{folder}/"):
                continue
            cfg = load_config(str(path))
            node = cfg.MODEL.LONG_TAIL
            loss = " + ".join(filter(None, (node.LOSS, node.REGULARIZER.NAME)))
            line = [f"[{name[len(folder) + 1 :]}](configs/{name}.yaml)", loss]
            line.append(describe_training(cfg))
            if published:
                entry = rows.get(name, {})
                for key in ("paper", "repository"):
                    numbers = [published_number(tables, reference) for reference in entry.get(key, ())]
                    # One row may stand in several tables of a paper.
                    line.append("; ".join(dict.fromkeys(numbers)) or ABSENT)
                line.append(entry.get("here", "not run here"))
            lines.append(line)
        parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)
