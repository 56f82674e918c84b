"""One image of a page: its panels side by side, each with a caption, and the image-level labels below."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Sequence, Tuple

import numpy as np
from markupsafe import Markup

from eql_d2.data.groups import GROUP_NAMES, GROUPS
from eql_d2.visualization.dataset import AnnotatedSet
from eql_d2.visualization.drawing import draw_objects
from eql_d2.visualization.matching import Match
from eql_d2.visualization.objects import VisualObject
from eql_d2.visualization.page import render

#: Puts a picture (name without suffix, uint8 BGR) where the page finds it, and returns the address for its ``src``.
Place = Callable[[str, np.ndarray], str]
#: Classes that an alternative text or a caption names before it says how many more there are.
_NAMED = 12


@dataclass
class Panel:
    """One drawing of an image.

    Attributes:
        title: "ground truth" or the name of a model.
        objects: what is drawn.
        caption: what is written below, behind the title.
        ignored: the boxes of ignored regions.
    """

    title: str
    objects: Sequence[VisualObject]
    caption: str = ""
    ignored: Sequence[Sequence[float]] = ()


def scene(
    dataset: AnnotatedSet,
    record: Dict[str, Any],
    image: np.ndarray,
    panels: Sequence[Panel],
    place: Place,
    heading: str,
    size: int,
    name: str,
) -> Markup:
    """Draw an image once for each panel and return the part of the page that shows it.

    Args:
        dataset: for names and groups of the classes.
        record: the dataset dict, for the image-level labels.
        image: uint8 BGR ``[H, W, 3]``, on which the objects lie.
        panels: what to draw.
        place: called once for each panel.
        heading: above the panels.
        size: longer side of the pictures in pixels.
        name: unique on the page, for the anchor and the pictures' names.
    """
    drawn = []
    for number, panel in enumerate(panels):
        picture = draw_objects(image, panel.objects, dataset.class_names, dataset.groups, size, panel.ignored)
        address = place(f"{name}_{number}" if len(panels) > 1 else name, picture)
        words = f"{panel.title}: {describe_objects(panel.objects, dataset)}"
        height, width = picture.shape[:2]
        shown = {"title": panel.title, "caption": panel.caption, "address": address, "words": words}
        drawn.append({**shown, "width": width, "height": height, "inlined": address.startswith("data:")})
    return render("scene", name=name, heading=heading, panels=drawn, sets=image_labels(dataset, record))


def describe_objects(objects: Sequence[VisualObject], dataset: AnnotatedSet) -> str:
    """Return the objects of a picture in words: number, class and group."""
    if not objects:
        return "no object"
    counts = Counter(found.label for found in objects).most_common()
    words = [f"{n} {dataset.class_names[k]} ({GROUP_NAMES[dataset.groups[k]]})" for k, n in counts[:_NAMED]]
    return ", ".join(words) + (f" and {len(counts) - _NAMED} more classes" if len(counts) > _NAMED else "")


def image_labels(dataset: AnnotatedSet, record: Dict[str, Any]) -> List[Tuple[str, List[Tuple[str, str]]]]:
    """Return the positive, the negative and the not exhaustively annotated classes of an image; none for COCO sets.

    Each set has a title and (name, group) of its classes, rare ones first.
    """
    labels = record.get("image_labels")
    if labels is None:
        return []
    sets = {
        "Positive set (annotated)": labels["positive"],
        "Negative set (verified absent)": labels["negative"],
        "Not exhaustively annotated": record.get("not_exhaustive_category_ids", ()),
    }
    return [(title, _named(members, dataset)) for title, members in sets.items()]


def _named(labels: Iterable[int], dataset: AnnotatedSet) -> List[Tuple[str, str]]:
    ordered = sorted(map(int, labels), key=lambda k: (GROUPS.index(dataset.groups[k]), k))
    return [(dataset.class_names[k], dataset.groups[k]) for k in ordered]


def comparison_panels(
    truth: List[VisualObject], names: Sequence[str], found: Sequence[List[VisualObject]], matches: Sequence[Match]
) -> List[Panel]:
    """Return the panels of an image: the ground truth, then each model with what its detections are worth."""
    panels = [Panel("Ground truth", truth, f"{len(truth)} object{'s' * (len(truth) != 1)}")]
    for name, objects, match in zip(names, found, matches):
        unjudged = f", {match.unjudged} not judged" if match.unjudged else ""
        words = f"{match.hits} right (✓), {match.wrong} wrong (✗){unjudged}, {match.missed} missed; F1 {match.f1:.2f}"
        panels.append(Panel(name, objects, words))
    return panels
