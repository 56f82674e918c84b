"""The page of a plan: recommendations with their reasons, and figures of the data set."""

from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from eql_d2.analysis.weighting import draw_tail_ratio
from eql_d2.data.frequency import USUAL_TAIL_RATIO
from eql_d2.data.groups import GROUP_COLORS, GROUP_NAMES, GROUPS
from eql_d2.errors import InputError
from eql_d2.files import write_whole
from eql_d2.planning.advice import Advice
from eql_d2.planning.facts import SIZE_BOUNDS, DatasetFacts
from eql_d2.plotting import panels, svg
from eql_d2.visualization.page import class_badge, code, data_uri, render


def write_page(
    path: Path,
    name: str,
    train: DatasetFacts,
    val: Optional[DatasetFacts],
    advice: Sequence[Advice],
    config: Path,
    notes: Sequence[str],
) -> None:
    """Write the plan as one self-contained HTML page.

    Args:
        path: of the page.
        name: of the data set.
        train: facts of the images to train on.
        val: of those to validate on, if there are some.
        advice: the recommendations.
        config: the file that has them as settings.
        notes: sentences on what was done to the data, and on what is missing or looks wrong.
    """
    figures = [_figure(draw, words, train) for draw, words in _FIGURES]
    page = render(
        "plan",
        title=f"Plan for {name}",
        config=str(config),
        advice=[
            {
                "about": one.about,
                "choice": one.choice,
                "reason": one.reason,
                "evidence": list(one.evidence),
                "settings": [(code(key), str(value)) for key, value in one.settings.items()],
            }
            for one in advice
        ],
        facts={"caption": "The data set", "header": ["", "train", *["val"] * bool(val)], "rows": fact_rows(train, val)},
        notes=notes,
        findings=train.findings,
        figures=figures,
        classes=_class_table(train, val),
    )
    write_whole(path, page)


def fact_rows(train: DatasetFacts, val: Optional[DatasetFacts]) -> List[List[str]]:
    """Return the numbers of both sets, a line for each: what it is, then a cell for each set."""
    return [[label, *(make(facts) for facts in (train, val) if facts is not None)] for label, make in _NUMBERS]


def worth_knowing(train: DatasetFacts, val: Optional[DatasetFacts]) -> List[str]:
    """Return sentences on what is missing or looks wrong."""
    words = []
    if train.empty:
        words.append(
            f"{_count(train.empty, 'class', 'es')} in no image cannot be learnt ({_some(train.empty)}); --min-images 1 "
            f"leaves such classes out."
        )
    if train.same_names:
        pairs = [f"{first!r} and {second!r}" for first, second in train.same_names]
        words.append(f"Names that may be one class: {_some(pairs)}. Two names of one class compete with each other.")
    for facts, part, consequence in (
        (train, "to train on", "left out of training (DATALOADER.FILTER_EMPTY_ANNOTATIONS)"),
        (val, "to validate on", "every detection on them counts as wrong, but where LVIS's image-level sets spare it"),
    ):
        if facts is not None and facts.without_annotations:
            images = _count(range(facts.without_annotations), "image", "s")
            words.append(f"{images} {part} without an annotated object: {consequence}.")
        if facts is not None and facts.missing_files:
            words.append(f"{_count(range(facts.missing_files), 'image file', 's')} {part} not found in {facts.images}.")
    if val is not None:
        here, there = train.frequency.image_count > 0, val.frequency.image_count > 0
        lacking = [train.categories.names[label] for label in np.flatnonzero((here & ~there).numpy())]
        if lacking:
            words.append(
                f"{_count(lacking, 'class', 'es')} in no image to validate on, without an AP: {_some(lacking)}."
            )
    if not train.has_image_labels:
        words.append(
            "No image says which classes were looked for and not found: an object without an annotation counts as "
            "background, so what is not annotated is learnt as absent."
        )
    return words


def _count(things: Sequence[Any], noun: str, plural: str) -> str:
    return f"{len(things):,} {noun}{plural * (len(things) != 1)}"


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _groups(facts: DatasetFacts, counts: Any) -> str:
    sums = [int(counts[facts.frequency.group_mask(group)].sum()) for group in GROUPS]
    return ", ".join(f"{count:,} {GROUP_NAMES[group]}" for group, count in zip(GROUPS, sums))


def _sizes(shares: Sequence[float]) -> str:
    return ", ".join(f"{100 * share:.0f}% {word}" for share, word in zip(shares, ("small", "medium", "large")))


_NUMBERS: Sequence[Tuple[str, Callable[[DatasetFacts], str]]] = (
    ("annotations", lambda facts: str(facts.json_file)),
    ("format", lambda facts: "LVIS" if facts.is_lvis else "COCO"),
    ("images", lambda facts: f"{len(facts.objects_of_image):,}"),
    ("images without an object", lambda facts: f"{facts.without_annotations:,}"),
    ("objects", lambda facts: f"{len(facts.objects):,}, at most {facts.objects_of_image.max()} in an image"),
    ("objects with a mask", lambda facts: f"{100 * facts.with_mask:.0f}%"),
    ("classes", lambda facts: f"{len(facts.categories)}, {len(facts.empty)} of them in no image"),
    ("classes by group", lambda facts: _groups(facts, facts.frequency.image_count * 0 + 1)),
    ("objects by group", lambda facts: _groups(facts, facts.frequency.instance_count)),
    ("imbalance factor", lambda facts: f"{facts.imbalance:.1f} (images of the most and the least frequent class)"),
    ("object sizes", lambda facts: _sizes(facts.size_shares(facts.objects))),
)


def _class_table(train: DatasetFacts, val: Optional[DatasetFacts]) -> Dict[str, Any]:
    header = ["class", "images", "objects", *["images to validate on"] * bool(val)]
    rows = []
    for label in train.categories.order().tolist():
        row = train.categories.row(label)
        counts = [row["train_images"], row["train_instances"]]
        counts += [int(val.frequency.image_count[label])] if val is not None else []
        rows.append([class_badge(row["name"], row["group"]), *counts])
    return {"caption": "Classes by falling number of images", "header": header, "rows": rows}


def _figure(draw: Callable[[Any, DatasetFacts], None], words: str, facts: DatasetFacts) -> Dict[str, str]:
    figure, axes = panels(1, width=5.6, height=3.4)
    draw(axes[0, 0], facts)
    axes[0, 0].grid(alpha=0.3)
    return {"address": data_uri(svg(figure), "image/svg+xml"), "words": words}


def _draw_counts(panel: Any, facts: DatasetFacts) -> None:
    order = facts.categories.order()
    counts = facts.frequency.image_count[order].numpy()
    for group in GROUPS:
        here = np.array([facts.frequency.groups[label] == group for label in order.tolist()])
        if here.any():
            ranks = np.flatnonzero(here)
            panel.bar(ranks, counts[here], width=1.0, color=GROUP_COLORS[group], label=GROUP_NAMES[group])
    if counts.max() > 20:
        panel.set_yscale("symlog", linthresh=1)
    panel.set_xlabel("class, by falling number of images")
    panel.set_ylabel("images")
    panel.legend(fontsize=8)


def _draw_tail_ratio(panel: Any, facts: DatasetFacts) -> None:
    try:
        chosen = [facts.frequency.lambda_of(USUAL_TAIL_RATIO)]
    except InputError:
        chosen = []
    draw_tail_ratio(panel, facts.frequency, chosen)


def _draw_sizes(panel: Any, facts: DatasetFacts) -> None:
    panel.hist(np.maximum(facts.objects, 1), bins=np.geomspace(1, max(facts.objects.max(), 2), 40), color="0.4")
    for bound in SIZE_BOUNDS:
        panel.axvline(bound, color="black", linestyle="--", linewidth=1)
    panel.set_xscale("log")
    panel.set_xlabel("square root of the box's area, pixels of the file; COCO's small, medium, large")
    panel.set_ylabel("objects")


def _draw_objects(panel: Any, facts: DatasetFacts) -> None:
    most = int(facts.objects_of_image.max())
    width = max(1, most // 40)
    panel.hist(facts.objects_of_image, bins=np.arange(-0.5, most + width + 0.5, width), color="0.4")
    panel.set_xlabel("objects of an image")
    panel.set_ylabel("images")


_FIGURES: Sequence[Tuple[Callable[[Any, DatasetFacts], None], str]] = (
    (_draw_counts, "Images of each class to train on, by LVIS's groups."),
    (_draw_tail_ratio, "The tail ratio: share of the image counts of the classes below a threshold (EQL, equation 8)."),
    (_draw_sizes, "Sizes of the objects."),
    (_draw_objects, "Objects of an image."),
)
