"""Ground truth beside the detections of one or more models as a gallery (Figure 4 of EQL)."""

from itertools import islice
from pathlib import Path
from typing import Optional, Sequence

from markupsafe import Markup

from eql_d2.config import load_config
from eql_d2.errors import InputError
from eql_d2.run_folder import RunFolder, find_detections, unique_names
from eql_d2.visualization.comparison import Choice, ImageComparison, compare, shown_objects, sort_comparisons
from eql_d2.visualization.dataset import AnnotatedSet
from eql_d2.visualization.detections import Detections
from eql_d2.visualization.gallery import Gallery
from eql_d2.visualization.matching import match_image
from eql_d2.visualization.scene import Place, comparison_panels, scene

#: What the numbers below the pictures are, for pages.
MEASURE = (
    "A detection is right (✓) if it matches an annotated object of its class at an IoU of at least 0.5, the best "
    "score first, each object once; otherwise it is wrong (✗), or not judged (?) where the annotations do not say "
    "whether its class is in the image. F1 = 2 right / (2 right + wrong + missed), of the detections shown."
)


def visualize_results(
    sources: Sequence[Path],
    output: Path,
    names: Optional[Sequence[str]] = None,
    config_file: str = "",
    dataset: str = "",
    annotations: Optional[Path] = None,
    images: Optional[Path] = None,
    only: str = "",
    conf_threshold: Optional[float] = None,
    best: int = 0,
    sort: str = "dataset",
    max_images: int = 100,
    seed: Optional[int] = None,
    per_page: int = 20,
    size: int = 640,
    opts: Sequence[str] = (),
) -> Path:
    """Draw the ground truth and the detections of each model side by side into a gallery.

    Args:
        sources: results files, or folders of runs that were evaluated.
        output: the gallery's folder.
        names: of the models; by default the ends of their paths.
        config_file: a config that names the data set; the first run's own if none is given and a run is.
        dataset: name of a registered data set; by default the first of the config's ``DATASETS.TEST``.
        annotations, images: a json in LVIS or COCO format and its image folder, in place of a name.
        only: "rare", "common", "frequent" or the name of a class: images whose ground truth has such objects, and
            objects and detections of these classes alone.
        conf_threshold: draw what scores at least this much, in place of the best few.
        best: draw the so many best of each image; 0 for as many as there are annotated objects.
        sort: "dataset" (as in the json, or shuffled by ``seed``), "difference" (where the models' F1 differ most),
            "worst" or "best" (lowest or highest mean F1 first).
        max_images: at most so many; 0 for all.
        seed: shuffles the images; those that ``sort`` finds equal come in this order.
        per_page: images on a page.
        size: longer side of the pictures in pixels.
        opts: config overrides.

    Returns:
        The first page.

    Raises:
        InputError: for anything that the user can mend.
    """
    if max_images < 0 or best < 0:
        raise InputError("--max-images and --best take a positive number, or 0 for all and for the default.")
    annotated = _annotated_set(sources, config_file, dataset, annotations, images, opts)
    annotated.require_annotations()
    files = [find_detections(source, dataset or annotated.name) for source in sources]
    named = zip(files, unique_names(list(sources), names))
    models = [Detections.read(path, name, annotated) for path, name in named]
    choice = Choice(best, conf_threshold, annotated.select(only))
    comparisons = compare(annotated, models, choice, annotated.order(seed))
    if sort == "dataset":  # no image need be matched but those that are drawn
        comparisons = islice(comparisons, max_images or None)
    ordered = sort_comparisons(list(comparisons), sort)
    if not ordered:
        raise annotated.nothing_to_draw(only)
    lead = f"Shown: {choice.describe()}{f'; classes: {only} only' if only else ''}. {MEASURE}"
    title = f"Detections on {annotated.name}: {', '.join(model.name for model in models)}"
    gallery = Gallery(output, title, lead, per_page, class_="")
    for number, comparison in enumerate(ordered[: max_images or None], 1):
        name = f"{number:05d}_{annotated.records[comparison.index]['image_id']}"
        gallery.add(comparison_scene(annotated, models, choice, comparison, gallery.place, size, name))
    return gallery.write()


def comparison_scene(
    dataset: AnnotatedSet,
    models: Sequence[Detections],
    choice: Choice,
    comparison: ImageComparison,
    place: Place,
    size: int,
    name: str,
) -> Markup:
    """Return the part of a page that shows one image with the detections of every model; see :func:`scene`."""
    record = dataset.records[comparison.index]
    truth, found = shown_objects(record, models, dataset, choice)
    for detections in found:
        match_image(truth, detections, record)
    panels = comparison_panels(truth, [model.name for model in models], found, comparison.matches)
    heading = f"Image {record['image_id']} · {Path(record['file_name']).name}"
    return scene(dataset, record, dataset.read_image(record), panels, place, heading, size, name)


def _annotated_set(
    sources: Sequence[Path],
    config_file: str,
    dataset: str,
    annotations: Optional[Path],
    images: Optional[Path],
    opts: Sequence[str],
) -> AnnotatedSet:
    """Return the data set that the results are of, from whatever names it."""
    if annotations is not None:
        if images is None:
            raise InputError("--annotations needs --images, the folder of the images.")
        return AnnotatedSet.from_files(annotations, images)
    run = next((run for run in map(RunFolder, sources) if run.config_file.is_file()), None)
    if not config_file and run is not None:
        config_file = str(run.config_file)
    if not config_file and not dataset:
        raise InputError(
            "The data set of the results is not known: give --annotations and --images, --dataset or --config-file."
        )
    frequency = run.frequency_file if run is not None else None
    return AnnotatedSet.from_config(load_config(config_file, opts), dataset, frequency)
