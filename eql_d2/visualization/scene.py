"""One image of a page: its panels side by side, each with a caption, and the image-level labels below."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterable, List, Sequence

import numpy as np

from eql_d2.data.groups import GROUP_NAMES
from eql_d2.visualization.dataset import AnnotatedSet
from eql_d2.visualization.drawing import draw_objects
from eql_d2.visualization.matching import Match
from eql_d2.visualization.objects import VisualObject
from eql_d2.visualization.page import Content, Html, group_badge, join, tag

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
    """

    title: str
    objects: Sequence[VisualObject]
    caption: Content = ""


def scene(
    dataset: AnnotatedSet,
    record: Dict[str, Any],
    image: np.ndarray,
    panels: Sequence[Panel],
    place: Place,
    heading: Content,
    size: int,
    name: str,
) -> Html:
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
    figures = []
    for number, panel in enumerate(panels):
        picture = draw_objects(image, panel.objects, dataset.class_names, dataset.groups, size)
        address = place(f"{name}_{number}" if len(panels) > 1 else name, picture)
        drawn = tag(
            "img",
            src=address,
            alt=f"{panel.title}: {describe_objects(panel.objects, dataset)}",
            width=picture.shape[1],
            height=picture.shape[0],
            loading=False if address.startswith("data:") else "lazy",
        )
        if not address.startswith("data:"):
            drawn = tag("a", drawn, href=address)
        caption = tag("figcaption", tag("strong", panel.title), ": " if panel.caption else "", panel.caption)
        figures.append(tag("figure", drawn, caption))
    return tag(
        "article",
        tag("h3", heading),
        tag("div", *figures, class_="panels"),
        image_labels(dataset, record),
        class_="scene",
        id=f"image-{name}",
    )


def describe_objects(objects: Sequence[VisualObject], dataset: AnnotatedSet) -> str:
    """Return the objects of a picture in words: number, class and group."""
    if not objects:
        return "no object"
    counts = Counter(found.label for found in objects).most_common()
    words = [f"{n} {dataset.class_names[k]} ({GROUP_NAMES[dataset.groups[k]]})" for k, n in counts[:_NAMED]]
    return ", ".join(words) + (f" and {len(counts) - _NAMED} more classes" if len(counts) > _NAMED else "")


def image_labels(dataset: AnnotatedSet, record: Dict[str, Any]) -> Html:
    """Return the positive, the negative and the not exhaustively annotated classes of an image; none for COCO sets."""
    labels = record.get("image_labels")
    if labels is None:
        return Html("")
    sets = [
        ("Positive set (annotated)", labels["positive"]),
        ("Negative set (verified absent)", labels["negative"]),
        ("Not exhaustively annotated", record.get("not_exhaustive_category_ids", ())),
    ]
    entries = [tag("div", tag("dt", f"{title}: "), tag("dd", class_list(members, dataset))) for title, members in sets]
    return tag("dl", *entries, class_="sets")


def class_list(labels: Iterable[int], dataset: AnnotatedSet) -> Content:
    """Return the classes by name with their groups, rare ones first; "none" if there is none."""
    ordered = sorted(map(int, labels), key=lambda k: ("rcf".index(dataset.groups[k]), k))
    return join([group_badge(dataset.class_names[k], dataset.groups[k]) for k in ordered], ", ") or "none"


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
