"""The tables of a report: metrics, settings, classes."""

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from eql_d2.config import flatten, get_cfg
from eql_d2.data.groups import GROUP_NAMES
from eql_d2.evaluation.metrics import NOT_AVAILABLE
from eql_d2.evaluation.report import count_column
from eql_d2.run_folder import RunFolder
from eql_d2.visualization.page import Content, Html, code, details, group_badge, join, table, tag

_METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "APs", "APm", "APl")
_KINDS = {"segm": "Mask", "bbox": "Box"}
#: Classes shown as gaining or losing most.
_EXTREMES = 10


def kind_name(kind: str) -> str:
    """Return what a kind of metrics is called: "segm_TTA" is "Mask (test-time augmentation)"."""
    base, _, suffix = kind.partition("_")
    return _KINDS.get(base, base) + (" (test-time augmentation)" if suffix == "TTA" else "")


def number(value: Optional[float], sign: str = "") -> str:
    """Return a metric for a table, "n/a" for ``None``; with ``sign`` "+", a difference."""
    return NOT_AVAILABLE if value is None else f"{value:{sign}.2f}".replace("-", "\N{MINUS SIGN}")


def difference(value: Optional[float], reference: Optional[float]) -> Optional[float]:
    """Return ``value - reference``, ``None`` if one is missing."""
    return None if value is None or reference is None else value - reference


def headline(runs: Sequence[RunFolder]) -> Html:
    """Return the main result in one paragraph: mask (or box) AP of each run, and what it gains on the first."""
    sentences = []
    for dataset in datasets_of(runs):
        for kind in _KINDS:
            known = [(run, run.results[dataset][kind]) for run in runs if kind in run.results.get(dataset, {})]
            for run, metrics in known:
                values = ", ".join(f"{name} {number(metrics.get(name))}" for name in ("APr", "APc", "APf"))
                sentence = [tag("strong", run.name), f": {_KINDS[kind].lower()} AP ", number(metrics.get("AP"))]
                gain = difference(metrics.get("AP"), known[0][1].get("AP")) if run is not known[0][0] else None
                against = f", {number(gain, '+')} against {known[0][0].name}" if gain is not None else ""
                sentences.append(tag("li", *sentence, f" ({values}){against}, on {dataset}."))
            if known:
                break
    return tag("ul", *sentences) if sentences else tag("p", "No run was evaluated yet.", class_="note")


def datasets_of(runs: Sequence[RunFolder]) -> List[str]:
    """Return the data sets that any of the runs was evaluated on, in order."""
    return list(dict.fromkeys(dataset for run in runs for dataset in run.results))


def result_tables(runs: Sequence[RunFolder]) -> Html:
    """Return a table for each data set and kind: a row for each run, then what each gains on the first."""
    tables = []
    for dataset in datasets_of(runs):
        kinds = dict.fromkeys(kind for run in runs for kind in run.results.get(dataset, {}))
        for kind in sorted(kinds, key=lambda kind: (kind.count("_"), list(_KINDS).index(kind.split("_")[0]))):
            rows = {run.name: run.results.get(dataset, {}).get(kind, {}) for run in runs}
            tables.append(_metric_table(f"{kind_name(kind)} AP on {dataset}, in percent", rows))
    return join(tables) if tables else tag("p", "No run was evaluated yet.", class_="note")


def _metric_table(caption: str, rows: Mapping[str, Mapping[str, Optional[float]]]) -> Html:
    names = [*_METRICS, *(f"{name}-fixed" for name in _METRICS)]
    columns = [name for name in names if any(name in metrics for metrics in rows.values())]
    best = {}
    for column in columns:
        values = [metrics[column] for metrics in rows.values() if metrics.get(column) is not None]
        best[column] = max(values) if len(set(values)) > 1 else None
    body: List[List[Content]] = []
    for run, metrics in rows.items():
        cells = [(metrics.get(column), best[column]) for column in columns]
        body.append([run, *(tag("strong", number(v)) if v is not None and v == top else number(v) for v, top in cells)])
    first, *others = rows
    for run in others:
        gains = [number(difference(rows[run].get(column), rows[first].get(column)), "+") for column in columns]
        body.append([f"{run} − {first}", *gains])
    note = "; the best of each column in bold and underlined" if others else ""
    return table(caption + note, ["run", *columns], body)


def experiment_table(runs: Sequence[RunFolder]) -> Html:
    """Return a table of the loss and its settings, the seed, the schedule and the versions of each run."""
    described = [_flat_experiment(run.experiment) for run in runs]
    keys = list(dict.fromkeys(key for one in described for key in one))
    if not keys:
        return tag("p", "No results.json says what was run.", class_="note")
    rows = {key: [one.get(key, "–") for one in described] for key in keys}
    differing = {key: values for key, values in rows.items() if len(runs) == 1 or len(set(values)) > 1}
    header = ["setting", *(run.name for run in runs)]
    captions = ["What was run, as results.json says"]
    if len(runs) > 1:
        captions = ["What differs, as results.json says", "All that results.json says"]
    tables = [
        table(caption, header, [[code(key), *values] for key, values in shown.items()], class_="text")
        for caption, shown in zip(captions, (differing, rows))
    ]
    return join([tables[0], *(details(captions[1], whole) for whole in tables[1:])])


def _flat_experiment(experiment: Mapping[str, Any]) -> Dict[str, Content]:
    flat: Dict[str, Content] = {}
    losses = experiment.get("classifier_losses", [])
    for stage, loss in enumerate(losses):
        prefix = f"stage {stage}: " if len(losses) > 1 else ""
        flat.update({prefix + key: _short(value) for key, value in loss.items()})
    for key, value in experiment.items():
        if isinstance(value, Mapping):
            flat[key] = ", ".join(f"{name} {inner}" for name, inner in value.items() if inner != "") or "none"
        elif key != "classifier_losses":
            flat[key] = _short(value)
    return flat


def _short(value: Any) -> str:
    """Return a setting for a table; numbers with four digits."""
    return f"{value:.4g}" if isinstance(value, float) else "none" if value == "" else str(value)


def settings(runs: Sequence[RunFolder]) -> Html:
    """Return the settings that differ between the runs, or of one run from the defaults; and all of them, folded."""
    leaves = [flatten(run.cfg) for run in runs]
    if len(runs) > 1:
        keys = [key for key in leaves[0] if any(one.get(key) != leaves[0][key] for one in leaves)]
        keys = [key for key in keys if key != "OUTPUT_DIR"]  # the page says at its top where the runs are
        rows = [[code(key), *(_value(one.get(key)) for one in leaves)] for key in keys]
        changed = table("Keys that differ between the runs", ["key", *(run.name for run in runs)], rows, class_="text")
    else:
        defaults = flatten(get_cfg())
        keys = [key for key in leaves[0] if leaves[0][key] != defaults.get(key)]
        rows = [[code(key), _value(leaves[0][key]), _value(defaults.get(key))] for key in keys]
        caption = "Keys that differ from the defaults"
        changed = details(caption, table(caption, ["key", "value", "default"], rows, class_="text"))
    folded = [details(f"Whole configuration of {run.name}", tag("pre", run.cfg.dump(), tabindex=0)) for run in runs]
    return join([changed, *folded])


def _value(value: Any) -> Html:
    return tag("code", repr(list(value) if isinstance(value, tuple) else value))


def category_tables(runs: Sequence[RunFolder], dataset: str) -> Html:
    """Return which classes gained and lost most against the first run, and the AP of all classes, folded."""
    rows_of = {run.name: {row["name"]: row for row in run.category_ap(dataset)} for run in runs}
    rows_of = {name: rows for name, rows in rows_of.items() if rows}
    if not rows_of:
        return tag("p", f"No run has a per_category_ap.json on {dataset}.", class_="note")
    column = _ap_column(rows_of.values())
    first, *others = rows_of
    parts: List[Content] = [_compared(rows_of, first, other, column) for other in others]
    count = count_column(list(rows_of[first].values()))
    rows = []
    for name, row in rows_of[first].items():
        values = [_ap(rows_of[run], name, column) for run in rows_of]
        if any(value is not None for value in values):
            rows.append([group_badge(name, row["group"]), _count(row.get(count)), *map(number, values)])
    caption = f"{_column_name(column)} of each class on {dataset}, in percent"
    parts.append(details(caption, table(caption, ["class", count.replace("_", " "), *rows_of], rows)))
    return join(parts)


def _ap_column(tables) -> str:
    columns = set.intersection(*(set(next(iter(rows.values()))) for rows in tables))
    return "segm_AP" if "segm_AP" in columns else "bbox_AP"


def _column_name(column: str) -> str:
    """Return "Mask AP" for "segm_AP"."""
    kind, name = column.split("_", 1)
    return f"{kind_name(kind)} {name}"


def _ap(rows: Mapping[str, Mapping[str, Any]], name: str, column: str) -> Optional[float]:
    return rows.get(name, {}).get(column)


def _count(value: Optional[int]) -> str:
    return NOT_AVAILABLE if value is None else str(value)


def _compared(rows_of: Mapping[str, Mapping[str, Any]], first: str, other: str, column: str) -> Html:
    """Return the classes that ``other`` gains and loses most against ``first``."""
    old, new = rows_of[first], rows_of[other]
    gains = {name: difference(_ap(new, name, column), _ap(old, name, column)) for name in old}
    gains = {name: gain for name, gain in gains.items() if gain is not None}
    ordered = sorted(gains, key=lambda name: (-gains[name], name))
    gained = [name for name in ordered if gains[name] > 0][:_EXTREMES]
    lost = [name for name in reversed(ordered) if gains[name] < 0][:_EXTREMES]
    count = count_column(list(old.values()))
    parts = [tag("h3", f"{other} against {first}"), tag("p", _group_summary(old, gains))]
    for title, names in (("gained", gained), ("lost", lost)):
        rows: List[Tuple[Content, ...]] = [
            (
                group_badge(name, old[name]["group"]),
                number(gains[name], "+"),
                number(_ap(old, name, column)),
                number(_ap(new, name, column)),
                _count(old[name].get(count)),
            )
            for name in names
        ]
        caption = f"Classes that {title} most, {_column_name(column)} in percent"
        header = ["class", "difference", first, other, count.replace("_", " ")]
        parts.append(table(caption, header, rows) if rows else tag("p", f"No class {title}."))
    return join(parts)


def _group_summary(rows: Mapping[str, Mapping[str, Any]], gains: Mapping[str, float]) -> str:
    parts = []
    for letter, word in GROUP_NAMES.items():
        members = [gains[name] for name in gains if rows[name]["group"] == letter]
        if members:
            up, down = sum(gain > 0 for gain in members), sum(gain < 0 for gain in members)
            mean = number(sum(members) / len(members), "+")
            parts.append(f"of {len(members)} {word} classes {up} gained and {down} lost (mean {mean})")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else "No class has an AP in both."
