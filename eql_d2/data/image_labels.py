"""Which classes an image verifies: the positive, negative and not-exhaustive sets, and what its source verified."""

from typing import TYPE_CHECKING, Any, Dict, Iterable, Iterator, List, NamedTuple, Sequence

import msgspec

if TYPE_CHECKING:  # the reader imports this module
    from eql_d2.data.annotations import Annotation, Image


class ImageSource(msgspec.Struct, gc=False):
    """An entry of ``sources``, one for each data set that a file was merged of; each image names its own.

    ``exhaustive_category_ids``: the categories all of whose objects are annotated in all images of the source. Such a
    category is verified absent from an image that shows none; no image has to list it. In the packed form contiguous
    labels take the place of the ids.
    """

    name: str
    exhaustive_category_ids: List[int] = []
    has_masks: bool = True

    def absent(self, shown: Iterable[int], negative: Iterable[int]) -> List[int]:
        """Return the sorted categories that are verified absent from an image of the source.

        Args:
            shown: categories that the image shows.
            negative: its negative set.
        """
        return sorted({*self.exhaustive_category_ids, *negative}.difference(shown))


class ImageLevelLabels(NamedTuple):
    """Sorted contiguous labels of the categories that are verified to be in an image and not to be in it, and of those
    whose instances are not all annotated. The negative ones without those that follow from the source."""

    positive: List[int]
    negative: List[int]
    not_exhaustive: List[int]


def image_level_labels(image: "Image", annotations: Sequence["Annotation"], labels: Dict[int, int]) -> ImageLevelLabels:
    """Return the image-level labels of an image.

    Args:
        image: of the file.
        annotations: all of the image: a class that only a crowd or an invalid polygon shows is there all the same.
        labels: contiguous label of each category id.
    """
    return ImageLevelLabels(
        *(
            sorted({labels[category_id] for category_id in ids or ()})
            for ids in (positive_ids(annotations), image.neg_category_ids, image.not_exhaustive_category_ids)
        )
    )


def positive_ids(annotations: Iterable["Annotation"]) -> List[int]:
    """Return the ids of the categories that the annotations of an image show, crowd regions too."""
    return sorted({annotation.category_id for annotation in annotations})


def add_source(record: Dict[str, Any], sources: Dict[str, ImageSource]) -> None:
    """Add to an unpacked record what is known of its source, in place.

    Args:
        record: ``source`` and ``image_labels`` where there are any.
        sources: by name, with contiguous labels.
    """
    source = sources.get(record.get("source", ""))
    if source is None:
        return
    labels = record.get("image_labels")
    if labels is not None:
        labels["negative"] = source.absent(labels["positive"], labels["negative"])
    if not source.has_masks:
        record["has_masks"] = False


def wrong_sources(
    sources: Sequence[ImageSource], images: Iterable["Image"], category_ids: Iterable[int]
) -> Iterator[str]:
    """Yield what does not fit together in a file's sources, a clause each."""
    names = [source.name for source in sources]
    for name in sorted({name for name in names if names.count(name) > 1 or not name}):
        yield f"'sources' has {name!r} as a name {names.count(name)} times; each source has a name of its own"
    known = set(category_ids)
    for source in sources:
        for category_id in source.exhaustive_category_ids:
            if category_id not in known:
                yield (
                    f"source {source.name!r} has {category_id} in exhaustive_category_ids, which is not in 'categories'"
                )
    for image in images if sources else ():
        if image.source not in names:
            yield f"image {image.id} has source {image.source!r}; 'sources' has {', '.join(map(repr, names))}"
