"""The ground truth of a data set as a gallery, from the annotations or as the training loader gives it."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, FrozenSet, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng

from eql_d2.config import load_config
from eql_d2.data.build import build_train_loader
from eql_d2.data.builtin import register_from_config
from eql_d2.data.groups import GROUPS
from eql_d2.data.ignored import ignored_boxes
from eql_d2.errors import InputError
from eql_d2.visualization.comparison import truth_of
from eql_d2.visualization.dataset import AnnotatedSet
from eql_d2.visualization.gallery import Gallery
from eql_d2.visualization.objects import VisualObject, objects_of_instances
from eql_d2.visualization.scene import Panel, describe_objects, scene

SOURCES = ("annotation", "dataloader")
_Example = Tuple[Dict[str, Any], np.ndarray, List[VisualObject]]


def visualize_data(
    output: Path,
    config_file: str = "",
    dataset: Sequence[str] = (),
    annotations: Optional[Path] = None,
    images: Optional[Path] = None,
    source: str = "annotation",
    only: str = "",
    max_images: int = 100,
    seed: Optional[int] = None,
    per_page: int = 40,
    size: int = 640,
    opts: Sequence[str] = (),
) -> List[Path]:
    """Draw the annotated objects of data sets into galleries.

    Args:
        output: the gallery's folder; with several data sets, a gallery for each below it.
        config_file: a config; by default all its data sets with annotations are drawn, of ``DATASETS.TRAIN`` and
            ``DATASETS.TEST``.
        dataset: names of registered data sets, of the config or built in.
        annotations, images: a json in LVIS or COCO format and its image folder, in place of names.
        source: "annotation", or "dataloader" for what training sees: sampled, cropped, resized, flipped. The boxes of
            ``MODEL.LONG_TAIL.IGNORED.BOXES`` are drawn dashed with both, with "dataloader" those of ``CROWD`` too.
        only: "rare", "common", "frequent" or the name of a class: images with such objects, and these objects alone.
        max_images: at most so many of each data set; 0 for all (one epoch of the loader).
        seed: shuffles the images, and seeds the loader; the order of the json if ``None``.
        per_page: pictures on a page.
        size: longer side of the pictures in pixels.
        opts: config overrides.

    Returns:
        The first page of each gallery.

    Raises:
        InputError: for anything that the user can mend.
    """
    if max_images < 0:
        raise InputError(f"--max-images {max_images}: give a positive number, or 0 for all images.")
    if annotations is not None:
        if images is None:
            raise InputError("--annotations needs --images, the folder of the images.")
        if source == "dataloader":
            raise InputError("--source dataloader needs --config-file, which has the augmentations.")
        sets = [AnnotatedSet.from_files(annotations, images)]
        cfg = None
    else:
        cfg = load_config(config_file, opts)
        register_from_config(cfg)
        names = list(dataset) or _names_of_config(cfg, source)
        if source == "dataloader":
            if not config_file:
                raise InputError("--source dataloader needs --config-file, which has the augmentations.")
            cfg.DATASETS.TRAIN = tuple(names)
            names = names[:1]
        sets = [AnnotatedSet.from_name(name) for name in names]
        ignored = ignored_boxes(cfg, names)
        for place, one in enumerate(sets):
            if one.name in ignored:
                sets[place] = replace(one, records=ignored[one.name].attach(one.records, one.name))
    if cfg is not None and not dataset and source == "annotation":
        sets = [one for one in sets if len(one.records) and "annotations" in one.records[0]]
    written = []
    for one in sets:
        one.require_annotations()
        chosen = one.select(only)
        examples = _loaded(cfg, one, chosen, seed) if source == "dataloader" else _annotated(one, chosen, seed)
        folder = output / one.name if len(sets) > 1 else output
        lead = _lead(one, source, only, cfg)
        gallery = Gallery(folder, f"Ground truth of {one.name}", lead, per_page)
        _fill(gallery, one, examples, max_images, size)
        if not len(gallery):
            raise one.nothing_to_draw(only)
        written.append(gallery.write())
    return written


def _names_of_config(cfg: CfgNode, source: str) -> List[str]:
    names = list(dict.fromkeys((*cfg.DATASETS.TRAIN, *(cfg.DATASETS.TEST if source == "annotation" else ()))))
    if not names:
        raise InputError("Neither a data set nor a config that names one is given; use --dataset or --config-file.")
    return names


def _lead(dataset: AnnotatedSet, source: str, only: str, cfg: Optional[CfgNode]) -> str:
    sizes = [dataset.groups.count(letter) for letter in GROUPS]
    what = f"{len(dataset.records)} images and {len(dataset.class_names)} classes"
    what += " ({} rare, {} common, {} frequent)".format(*sizes)
    if source == "dataloader":
        what += f"; as the training loader gives them ({', '.join(cfg.DATASETS.TRAIN)}, {cfg.DATALOADER.SAMPLER_TRAIN})"
    return what + (f"; objects of {only} only." if only else ".")


def _fill(gallery: Gallery, dataset: AnnotatedSet, examples: Iterator[_Example], max_images: int, size: int) -> None:
    for number, (record, image, objects) in enumerate(examples, 1):
        count = f"{len(objects)} object{'s' * (len(objects) != 1)}"
        ignored = np.asarray(record.get("ignored_boxes", ()))
        if len(ignored):
            count += f", {len(ignored)} ignored region{'s' * (len(ignored) != 1)} (grey, dashed)"
        gallery.add(
            scene(
                dataset,
                record,
                image,
                [Panel(count, objects, describe_objects(objects, dataset), ignored)],
                gallery.place,
                f"Image {record['image_id']} · {Path(record['file_name']).name}",
                size,
                f"{number:05d}_{record['image_id']}",
            )
        )
        if number == max_images:
            return


def _chosen(objects: List[VisualObject], labels: Optional[FrozenSet[int]]) -> List[VisualObject]:
    return [found for found in objects if labels is None or found.label in labels]


def _annotated(dataset: AnnotatedSet, labels: Optional[FrozenSet[int]], seed: Optional[int]) -> Iterator[_Example]:
    """Yield the images as they are; with ``labels``, those that show one of the classes."""
    for index in dataset.order(seed):
        record = dataset.records[index]
        objects = _chosen(truth_of(record), labels)
        if objects or labels is None:
            yield record, dataset.read_image(record), objects


def _loaded(
    cfg: CfgNode, dataset: AnnotatedSet, labels: Optional[FrozenSet[int]], seed: Optional[int]
) -> Iterator[_Example]:
    """Yield the examples of about one epoch of the training loader."""
    cfg = cfg.clone()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = cfg.SEED if seed is None else seed
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(dataset.class_names)
    seen = 0
    for batch in build_train_loader(cfg):
        for example in batch:
            objects = _chosen(objects_of_instances(example["instances"]), labels)
            if objects or labels is None:
                yield _plain_labels(example), _image_of(example, cfg.INPUT.FORMAT), objects
            seen += 1
        if seen >= len(dataset.records):
            return


def _image_of(example: Dict[str, Any], image_format: str) -> np.ndarray:
    """Return an example's image as uint8 BGR ``[H, W, 3]``."""
    image = example["image"].numpy().transpose(1, 2, 0).astype(np.uint8)
    return np.ascontiguousarray(image[:, :, ::-1] if image_format == "RGB" else image)


def _plain_labels(example: Dict[str, Any]) -> Dict[str, Any]:
    """Return the example with its image-level labels as lists."""
    labels = example.get("image_labels")
    if labels is None:
        return example
    return {**example, "image_labels": {key: value.tolist() for key, value in labels.items()}}
