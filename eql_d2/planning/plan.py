"""From annotations to a plan: what the data set is like, what to train and why, and the config that does."""

from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import msgspec
import yaml
from detectron2.config import CfgNode

from eql_d2.config import flatten, get_cfg, load_config
from eql_d2.data.annotations import PathLike
from eql_d2.errors import InputError
from eql_d2.files import write_whole
from eql_d2.modeling import lite0_weights
from eql_d2.planning.advice import Advice, advise, best_of
from eql_d2.planning.facts import DatasetFacts
from eql_d2.planning.page import worth_knowing, write_page
from eql_d2.planning.readers import Split, read_split
from eql_d2.planning.split import counted, frequent_enough, only_categories, split_content, without_images_of

CONFIG_FILE, PAGE_FILE, WEIGHTS_FILE = "config.yaml", "plan.html", "lite0.pkl"
#: Of docs/results.md, as the evidence of :mod:`eql_d2.planning.advice`.
PRETRAINED_EVIDENCE = (
    "In so few iterations the weights make the difference between learning something and nothing of the photographs "
    "that are trained on",
)


class Plan(NamedTuple):
    """What :func:`plan` wrote and found.

    Attributes:
        config_file: a config that trains as it is.
        page: what the data set is like and the reasons of every recommendation, as HTML.
        train: facts of the images to train on.
        val: of those to validate on; ``None`` if there are none.
        advice: the recommendations.
        notes: sentences on what was done to the data, and on what is missing or looks wrong.
    """

    config_file: Path
    page: Path
    train: DatasetFacts
    val: Optional[DatasetFacts]
    advice: List[Advice]
    notes: List[str]


def plan(
    source: PathLike,
    output: PathLike,
    images: Optional[PathLike] = None,
    val: Optional[PathLike] = None,
    val_images: Optional[PathLike] = None,
    split: float = 0.1,
    min_images: int = 0,
    seed: int = 0,
) -> Plan:
    """Look at a data set and write a plan for it: ``plan.html``, ``config.yaml`` and, where they are made, the jsons.

    Args:
        source: annotations, see :func:`eql_d2.planning.readers.read_split`.
        output: the folder to write.
        images: the image folder.
        val: annotations to validate on; they have the categories of ``source``. Their images are not trained on.
        val_images: their image folder; ``images`` by default.
        split: the share of the images to validate on where neither ``val`` nor the data set names some; 0 for none.
        min_images: leave out the categories that are in fewer images; 1 for those that are in none.
        seed: of the split.

    Raises:
        InputError: if the annotations or images cannot be used, or a library that is needed is missing.
    """
    output = Path(output)
    train, validated = read_split(source, images)
    if val is not None:
        validated = read_split(val, val_images or images)[0]
    notes, content = [], train.content
    if validated is not None:
        content = without_images_of(content, validated.content)
        num_shared = len(train.content["images"]) - len(content["images"])
        if num_shared:
            notes.append(f"{num_shared} images to validate on were among those to train on, and were left out there.")
    if min_images:
        content = frequent_enough(content, min_images)
    if validated is not None:
        validated = Split(_with_categories_of(content, validated.content, val or source), validated.images)
    elif split:
        num_images = len(content["images"])
        content, chosen = split_content(content, split, seed)
        validated = Split(chosen, train.images)
        share = len(chosen["images"]) / num_images
        if share > 1.5 * split:
            notes.append(
                f"{100 * share:.0f}% of the images are to validate on, not {100 * split:.0f}%: classes of few images "
                f"are on both sides. --min-images leaves such classes out, --val takes images of your choice."
            )
    is_as_it_was = content is train.content and Path(source).suffix == ".json"
    train_file = Path(source) if is_as_it_was else _written(output / "train.json", content)
    facts = DatasetFacts.of(train_file, train.images)
    val_facts = validated and DatasetFacts.of(_written(output / "val.json", validated.content), validated.images)
    advice = [*advise(facts), _backbone(output)]
    if val_facts is not None:
        settings = {key: value for one in advice for key, value in one.settings.items()}
        metric = "segm/AP" if settings["MODEL.MASK_ON"] else "bbox/AP"
        advice.append(best_of(metric, settings["SOLVER.MAX_ITER"]))
    name = output.resolve().name
    cfg = _config(name, facts, val_facts, advice)
    notes += worth_knowing(facts, val_facts)
    planned = Plan(output / CONFIG_FILE, output / PAGE_FILE, facts, val_facts, advice, notes)
    write_whole(planned.config_file, _config_text(cfg, advice, source))
    write_page(planned.page, name, facts, val_facts, advice, planned.config_file, notes)
    return planned


def _written(path: Path, content: Dict[str, Any]) -> Path:
    write_whole(path, msgspec.json.encode(content))
    return path


def _with_categories_of(train: Dict[str, Any], val: Dict[str, Any], source: PathLike) -> Dict[str, Any]:
    """Return a validation set with the categories of the training set and its counts.

    Raises:
        InputError: if the same id stands for another class.
    """
    names = {one["id"]: one["name"] for one in train["categories"]}
    for one in val["categories"]:
        if names.get(one["id"], one["name"]) != one["name"]:
            raise InputError(
                f"{source}: category {one['id']} is {one['name']!r} and in the training set {names[one['id']]!r}; both "
                f"must have the same categories."
            )
    return only_categories(val, counted(train))


def _backbone(output: Path) -> Advice:
    """Write the ImageNet weights of EfficientNet-Lite0 and advise the backbone that they are of; else ResNet-50."""
    try:
        lite0_weights.convert(output / WEIGHTS_FILE)
    except InputError as error:
        return Advice(
            "backbone",
            "ResNet-50 with ImageNet weights, fetched when training starts",
            {
                "MODEL.WEIGHTS": "detectron2://ImageNetPretrained/MSRA/R-50.pkl",
                "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
            },
            f"{error} With them the smaller EfficientNet-Lite0 is planned, which needs no network.",
        )
    stages = ["stage2", "stage3", "stage4", "stage5"]
    return Advice(
        "backbone",
        "EfficientNet-Lite0 with ImageNet weights",
        {
            "MODEL.BACKBONE.NAME": "build_timm_fpn_backbone",
            "MODEL.BACKBONE.FREEZE_AT": 1,
            "MODEL.LONG_TAIL.TIMM.NAME": lite0_weights.TIMM_NAME,
            "MODEL.LONG_TAIL.TIMM.NORM": "FrozenBN",
            "MODEL.FPN.IN_FEATURES": stages,
            "MODEL.WEIGHTS": str((output / WEIGHTS_FILE).resolve()),
            "MODEL.PIXEL_MEAN": [127.0] * 3,
            "MODEL.PIXEL_STD": [128.0] * 3,
            "INPUT.FORMAT": "RGB",
        },
        "Small, and its weights come with the package index (18.8 MB): no download when training starts.",
        PRETRAINED_EVIDENCE,
    )


def _config(name: str, train: DatasetFacts, val: Optional[DatasetFacts], advice: List[Advice]) -> CfgNode:
    """Return the config that trains what is advised, over the package's Mask R-CNN with FPN."""
    cfg = load_config("Base-Mask-R-CNN-FPN")
    cfg.MODEL.RESNETS.OUT_FEATURES = get_cfg().MODEL.RESNETS.OUT_FEATURES
    settings = {key: value for one in advice for key, value in one.settings.items()}
    sets = [(f"{name}_{part}", facts) for part, facts in (("train", train), ("val", val)) if facts is not None]
    settings["MODEL.LONG_TAIL.DATASETS"] = [
        [title, str(facts.json_file.resolve()), str(facts.images.resolve())] for title, facts in sets
    ]
    settings["DATASETS.TRAIN"] = (sets[0][0],)
    settings["DATASETS.TEST"] = tuple(title for title, _ in sets[1:])
    settings["MODEL.ROI_HEADS.NUM_CLASSES"] = 0
    settings["SEED"] = 0
    cfg.merge_from_list([part for pair in settings.items() for part in pair])
    return cfg


def _config_text(cfg: CfgNode, advice: List[Advice], source: PathLike) -> str:
    """Return what differs from the defaults as YAML, below the recommendations as comments."""
    defaults = flatten(get_cfg())
    nested: Dict[str, Any] = {}
    for key, value in flatten(cfg).items():
        if value != defaults[key]:
            *parents, leaf = key.split(".")
            node = nested
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = list(value) if isinstance(value, tuple) else value
    nested["VERSION"] = cfg.VERSION  # without it Detectron2 warns
    words = [f"Written by eql-d2 plan for {source}; {PAGE_FILE} beside it has the reasons.", ""]
    words += [f"{one.about}: {one.choice}" for one in advice]
    words += ["NUM_CLASSES 0: as many as the data has. Any key may be set on the command line of eql-d2 train, too."]
    comments = "\n".join(f"# {line}".rstrip() for line in words)
    return f"{comments}\n{yaml.safe_dump(nested, sort_keys=False, default_flow_style=None, width=110)}"
