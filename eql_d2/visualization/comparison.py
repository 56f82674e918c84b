"""Ground truth beside the detections of one or more models: what is shown of each image, and in which order."""

from dataclasses import dataclass
from typing import FrozenSet, Iterator, List, Optional, Sequence, Tuple

from eql_d2.data.records import Record
from eql_d2.errors import InputError
from eql_d2.visualization.dataset import AnnotatedSet
from eql_d2.visualization.detections import Detections
from eql_d2.visualization.matching import Match, match_image
from eql_d2.visualization.objects import VisualObject, object_of_record

#: Orders of images: what is shown first.
SORTS = ("dataset", "difference", "worst", "best")


@dataclass(frozen=True)
class Choice:
    """Which detections of an image are shown and counted, and of which classes.

    Attributes:
        count: the best so many of an image; 0 for as many as there are objects in its ground truth. Scores of different
            methods are not comparable, so a number is fairer than a threshold.
        threshold: all from this score on, in place of ``count``.
        labels: only these classes; ``None`` for all. The best detections are chosen among all classes first, so that a
            model which ranks these classes last is seen to do so.
    """

    count: int = 0
    threshold: Optional[float] = None
    labels: Optional[FrozenSet[int]] = None

    def describe(self) -> str:
        """Say what is shown in a few words."""
        if self.threshold is not None:
            return f"detections with a score of at least {self.threshold:g}"
        if self.count:
            return f"the {self.count} best detections of each image"
        return "as many of each model's best detections as the image has annotated objects"

    def keep(self, objects: Sequence[VisualObject]) -> List[VisualObject]:
        """Return the objects of the chosen classes."""
        return [found for found in objects if self.labels is None or found.label in self.labels]


@dataclass(frozen=True)
class ImageComparison:
    """One image with the detections of every model.

    Attributes:
        index: in the data set's records.
        matches: of each model.
    """

    index: int
    matches: Tuple[Match, ...]

    @property
    def mean_f1(self) -> float:
        """The mean over the models, in [0, 1]."""
        return sum(match.f1 for match in self.matches) / len(self.matches)

    @property
    def hits(self) -> int:
        """Detections that are right, of all models."""
        return sum(match.hits for match in self.matches)

    @property
    def errors(self) -> int:
        """Detections that are wrong and objects that are missed, of all models."""
        return sum(match.wrong + match.missed for match in self.matches)

    @property
    def difference(self) -> float:
        """The largest F1 less the smallest, in [0, 1]."""
        scores = [match.f1 for match in self.matches]
        return max(scores) - min(scores)


def truth_of(record: Record) -> List[VisualObject]:
    """Return the annotated objects of an image."""
    return [object_of_record(annotation) for annotation in record.get("annotations", ())]


def shown_objects(
    record: Record, models: Sequence[Detections], dataset: AnnotatedSet, choice: Choice
) -> Tuple[List[VisualObject], List[List[VisualObject]]]:
    """Return the objects of an image that are shown: of the ground truth, and of each model, verdicts not yet set."""
    truth = truth_of(record)
    count = choice.count or sum(not found.crowd for found in truth)
    found = [choice.keep(model.best(record, dataset.labels, count, choice.threshold)) for model in models]
    return choice.keep(truth), found


def compare(
    dataset: AnnotatedSet, models: Sequence[Detections], choice: Choice, indices: Sequence[int]
) -> Iterator[ImageComparison]:
    """Yield the match of every model on every image whose ground truth has an object of the chosen classes.

    Args:
        indices: of the data set's records, in the order to yield.
    """
    for index in indices:
        record = dataset.records[index]
        truth, found = shown_objects(record, models, dataset, choice)
        if any(not one.crowd for one in truth):
            yield ImageComparison(index, tuple(match_image(truth, detections, record) for detections in found))


def sort_comparisons(comparisons: Sequence[ImageComparison], by: str) -> List[ImageComparison]:
    """Return the images in an order of :data:`SORTS`.

    Of images with the same F1, those with more right ("best") or wrong and missed ("worst", "difference") come first;
    those that are equal in this too stay in the order given.

    Raises:
        InputError: if the order asks for a second model and there is one only.
    """
    if by == "difference" and comparisons and len(comparisons[0].matches) < 2:
        raise InputError("--sort difference compares models, and there is only one; give two or sort by worst.")
    keys = {
        "dataset": lambda one: 0,
        "difference": lambda one: (-one.difference, -one.errors),
        "worst": lambda one: (one.mean_f1, -one.errors),
        "best": lambda one: (-one.mean_f1, -one.hits),
    }
    return sorted(comparisons, key=keys[by])
