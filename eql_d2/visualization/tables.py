"""The tables of a report: metrics, settings, classes."""

from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence

from markupsafe import Markup

from eql_d2.config import flatten, get_cfg
from eql_d2.data.groups import GROUP_NAMES
from eql_d2.evaluation.metrics import NOT_AVAILABLE
from eql_d2.evaluation.open_images_results import GROUPS
from eql_d2.evaluation.open_images_results import KIND as OPEN_IMAGES
from eql_d2.evaluation.report import count_column
from eql_d2.run_folder import RunFolder
from eql_d2.visualization.page import class_badge, code, render

_METRICS = ("AP", "AP50", "AP75", "APr", "APc", "APf", "APs", "APm", "APl")
_KINDS = {"segm": "Mask", "bbox": "Box"}
#: Kinds with metrics of their own: the name, the same within a sentence, and the metrics of the headline.
_OTHER_KINDS = {
    "classification": ("Accuracy", "accuracy", ("top1", "top5", "Many", "Medium", "Few")),
    OPEN_IMAGES: (*["Open Images AP"] * 2, ("AP", *(f"AP-{group}" for group in GROUPS))),
}
#: The calibration error of classifiers.
_LOWER_IS_BETTER = ("ECE",)
_STRONG = Markup("<strong>{}</strong>")
#: Classes shown as gaining or losing most.
_EXTREMES = 10


def kind_name(kind: str) -> str:
    """Return what a kind of metrics is called: "segm_TTA" is "Mask (test-time augmentation)"."""
    if kind in _OTHER_KINDS:
        return _OTHER_KINDS[kind][0]
    base, _, suffix = kind.partition("_")
    return _KINDS.get(base, base) + (" (test-time augmentation)" if suffix == "TTA" else "")


def number(value: Optional[float], sign: str = "") -> str:
    """Return a metric for a table, "n/a" for ``None``; with ``sign`` "+", a difference."""
    return NOT_AVAILABLE if value is None else f"{value:{sign}.2f}".replace("-", "\N{MINUS SIGN}")


def difference(value: Optional[float], reference: Optional[float]) -> Optional[float]:
    """Return ``value - reference``, ``None`` if one is missing."""
    return None if value is None or reference is None else value - reference


def headline(runs: Sequence[RunFolder]) -> List[Dict[str, str]]:
    """Return the main result of each run (``name``, ``words``): mask or box AP, and what it gains on the first."""
    sentences = []
    for dataset in datasets_of(runs):
        for kind in _KINDS:
            known = [(run, run.results[dataset][kind]) for run in runs if kind in run.results.get(dataset, {})]
            for run, metrics in known:
                values = ", ".join(f"{name} {number(metrics.get(name))}" for name in ("APr", "APc", "APf"))
                gain = difference(metrics.get("AP"), known[0][1].get("AP")) if run is not known[0][0] else None
                against = f", {number(gain, '+')} against {known[0][0].name}" if gain is not None else ""
                words = f"{_KINDS[kind].lower()} AP {number(metrics.get('AP'))} ({values}){against}, on {dataset}."
                sentences.append({"name": run.name, "words": words})
            if known:
                break
        sentences += _other_headlines(runs, dataset)
    return sentences


def _other_headlines(runs: Sequence[RunFolder], dataset: str) -> List[Dict[str, str]]:
    """Return the sentences of the kinds with metrics of their own."""
    sentences = []
    for kind, (_, title, names) in _OTHER_KINDS.items():
        for run in runs:
            metrics = run.results.get(dataset, {}).get(kind, {})
            if metrics:
                values = ", ".join(f"{name} {number(metrics.get(name))}" for name in names)
                sentences.append({"name": run.name, "words": f"{title} {values}, on {dataset}."})
    return sentences


def datasets_of(runs: Sequence[RunFolder]) -> List[str]:
    """Return the data sets that any of the runs was evaluated on, in order."""
    return list(dict.fromkeys(dataset for run in runs for dataset in run.results))


def result_tables(runs: Sequence[RunFolder]) -> Markup:
    """Return a table for each data set and kind: a row for each run, then what each gains on the first."""
    tables = []
    for dataset in datasets_of(runs):
        kinds = dict.fromkeys(kind for run in runs for kind in run.results.get(dataset, {}))
        order = [*_KINDS, *_OTHER_KINDS]
        for kind in sorted(kinds, key=lambda kind: (kind.count("_"), order.index(kind.split("_")[0]))):
            rows = {run.name: run.results.get(dataset, {}).get(kind, {}) for run in runs}
            measure = kind_name(kind) if kind in _OTHER_KINDS else f"{kind_name(kind)} AP"
            tables.append(_metric_table(f"{measure} on {dataset}, in percent", rows, all_metrics=kind in _OTHER_KINDS))
    return _tables(tables, missing="No run was evaluated yet.")


def _metric_table(caption: str, rows: Mapping[str, Mapping[str, Optional[float]]], all_metrics: bool) -> Dict[str, Any]:
    if all_metrics:
        names = list(dict.fromkeys(name for metrics in rows.values() for name in metrics))
    else:
        names = [*_METRICS, *(f"{name}-fixed" for name in _METRICS)]
    columns = [name for name in names if any(name in metrics for metrics in rows.values())]
    best = {}
    for column in columns:
        values = [metrics[column] for metrics in rows.values() if metrics.get(column) is not None]
        choose = min if column in _LOWER_IS_BETTER else max
        best[column] = [choose(values)] if len(set(values)) > 1 else []
    body = []
    for run, metrics in rows.items():
        cells = [(number(metrics.get(column)), metrics.get(column) in best[column]) for column in columns]
        body.append([run, *(_STRONG.format(text) if is_best else text for text, is_best in cells)])
    first, *others = rows
    for run in others:
        gains = [number(difference(rows[run].get(column), rows[first].get(column)), "+") for column in columns]
        body.append([f"{run} − {first}", *gains])
    note = "; the best of each column in bold and underlined" if others else ""
    return _table(caption + note, ["run", *columns], body)


def _table(caption: str, header: Sequence[str], rows: Iterable[Sequence], class_: str = "") -> Dict[str, Any]:
    """Return a table as the templates take it."""
    return {"caption": caption, "header": header, "rows": list(rows), "class": class_}


def _tables(tables: Sequence, folded: Sequence = (), texts: Sequence = (), missing: str = "") -> Markup:
    return render("tables", tables=tables, folded=folded, texts=texts, missing=missing)


def experiment_table(runs: Sequence[RunFolder]) -> Markup:
    """Return a table of the loss and its settings, the seed, the schedule and the versions of each run."""
    described = [_flat_experiment(run.experiment) for run in runs]
    keys = list(dict.fromkeys(key for one in described for key in one))
    if not keys:
        return _tables([], missing="No results.json says what was run.")
    rows = {key: [one.get(key, "–") for one in described] for key in keys}
    differing = {key: values for key, values in rows.items() if len(runs) == 1 or len(set(values)) > 1}
    header = ["setting", *(run.name for run in runs)]
    captions = ["What was run, as results.json says"]
    if len(runs) > 1:
        captions = ["What differs, as results.json says", "All that results.json says"]
    tables = [
        _table(caption, header, [[code(key), *values] for key, values in shown.items()], "text")
        for caption, shown in zip(captions, (differing, rows))
    ]
    return _tables(tables[:1], tables[1:])


def _flat_experiment(experiment: Mapping[str, Any]) -> Dict[str, str]:
    flat: Dict[str, str] = {}
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


def settings(runs: Sequence[RunFolder]) -> Markup:
    """Return the settings that differ between the runs, or of one run from the defaults; and all of them, folded."""
    texts = [(run.name, run.cfg.dump()) for run in runs]
    compared = {run.name: flatten(run.cfg) for run in runs}
    if len(runs) == 1:
        compared = {"value": compared[runs[0].name], "default": flatten(get_cfg())}
    first, *others = compared.values()
    keys = [key for key in first if any(one.get(key) != first[key] for one in others)]
    if len(runs) > 1:
        keys = [key for key in keys if key != "OUTPUT_DIR"]  # the page says at its top where the runs are
    rows = [[code(key), *(_value(one.get(key)) for one in compared.values())] for key in keys]
    caption = "Keys that differ between the runs" if len(runs) > 1 else "Keys that differ from the defaults"
    changed = [_table(caption, ["key", *compared], rows, "text")]
    return _tables(changed, texts=texts) if len(runs) > 1 else _tables([], changed, texts)


def _value(value: Any) -> Markup:
    return Markup("<code>{}</code>").format(repr(list(value) if isinstance(value, tuple) else value))


def category_tables(runs: Sequence[RunFolder], dataset: str) -> Markup:
    """Return which classes gained and lost most against the first run, and the AP of all classes, folded."""
    rows_of = {run.name: {row["name"]: row for row in run.category_ap(dataset)} for run in runs}
    rows_of = {name: rows for name, rows in rows_of.items() if rows}
    if not rows_of:
        return _tables([], missing=f"No run has a per_category_ap.json on {dataset}.")
    column = _ap_column(rows_of.values())
    first, *others = rows_of
    compared = [_compared(rows_of, first, other, column) for other in others]
    count = count_column(list(rows_of[first].values()))
    rows = []
    for name, row in rows_of[first].items():
        values = [_ap(rows_of[run], name, column) for run in rows_of]
        if any(value is not None for value in values):
            rows.append([class_badge(name, row["group"]), _count(row.get(count)), *map(number, values)])
    caption = f"{_column_name(column)} of each class on {dataset}, in percent"
    whole = _table(caption, ["class", count.replace("_", " "), *rows_of], rows)
    return render("classes", compared=compared, whole=whole)


def _ap_column(tables) -> str:
    columns = set.intersection(*(set(next(iter(rows.values()))) for rows in tables))
    return next((column for column in ("segm_AP", f"{OPEN_IMAGES}_AP") if column in columns), "bbox_AP")


def _column_name(column: str) -> str:
    """Return "Mask AP" for "segm_AP"."""
    kind, name = column.split("_", 1)
    title = kind_name(kind)
    return title if title.endswith(name) else f"{title} {name}"


def _ap(rows: Mapping[str, Mapping[str, Any]], name: str, column: str) -> Optional[float]:
    return rows.get(name, {}).get(column)


def _count(value: Optional[int]) -> str:
    return NOT_AVAILABLE if value is None else str(value)


def _compared(rows_of: Mapping[str, Mapping[str, Any]], first: str, other: str, column: str) -> Dict[str, Any]:
    """Return the classes that ``other`` gains and loses most against ``first``."""
    old, new = rows_of[first], rows_of[other]
    gains = {name: difference(_ap(new, name, column), _ap(old, name, column)) for name in old}
    gains = {name: gain for name, gain in gains.items() if gain is not None}
    ordered = sorted(gains, key=lambda name: (-gains[name], name))
    gained = [name for name in ordered if gains[name] > 0][:_EXTREMES]
    lost = [name for name in reversed(ordered) if gains[name] < 0][:_EXTREMES]
    count = count_column(list(old.values()))
    tables = []
    for title, names in (("gained", gained), ("lost", lost)):
        rows = [
            (
                class_badge(name, old[name]["group"]),
                number(gains[name], "+"),
                number(_ap(old, name, column)),
                number(_ap(new, name, column)),
                _count(old[name].get(count)),
            )
            for name in names
        ]
        caption = f"Classes that {title} most, {_column_name(column)} in percent"
        header = ["class", "difference", first, other, count.replace("_", " ")]
        tables.append({**_table(caption, header, rows), "change": title})
    return {"title": f"{other} against {first}", "summary": _group_summary(old, gains), "tables": tables}


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
