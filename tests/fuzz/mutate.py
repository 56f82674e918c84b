"""File number N of a seed: a small sound file, damaged in one to three places, always in the same way."""

import copy
import json
import random
from pathlib import Path
from typing import Any, Callable, List, NamedTuple, Tuple

import numpy as np
import pycocotools.mask as mask_util

from tests.conftest import square, write_image

SIZE = 64
IMAGES = {3: "a.png", 5: "b.jpg", 8: "c.png"}

_DEEP = "DEEPLY NESTED"
_NUMBERS = [0, -1, 1, 0.5, -0.0, 2, 7, 255, 256, 65535, 65536, 10**6, 10**9, -(10**9), 2**31 - 1, 2**31, 2**32, 2**53]
_NUMBERS += [2**63 - 1, 2**63, 2**64, -(2**63), 10**30, 10**400, 1e-300, 1e18, 1e300, -1e308]
_NUMBERS += [float("nan"), float("inf"), -float("inf")]
_TEXTS = [
    "",
    "x",
    "a\0b",
    "\0",
    "é漢\U0001f600",
    "\ud800",
    "../../etc/passwd",
    "/etc/hostname",
    "/dev/zero",
    "n" * 5000,
]
_TEXTS += [
    "1",
    "NaN",
    "c",
    "a\nb",
    "\x1b[31m",
    "<b>",
    "04",
    "PP",
    "o" * 40,
    "04`",
    "0J",
    "é",
    "http://x/",
    "/",
    "a/b/c.png",
]
_OTHERS = [
    None,
    True,
    False,
    [],
    {},
    [[]],
    [[[]]],
    [None],
    {"a": 1},
    _DEEP,
    [0] * 5,
    [[0] * 5],
    [[0] * 6],
    [1, 2, 3, 4],
]
_OTHERS += [{"size": [SIZE, SIZE], "counts": [SIZE * SIZE]}, {"size": [10**9, 10**9], "counts": "04"}, "0" * 10**5]


class Case(NamedTuple):
    """A damaged file beside sound ones."""

    kind: str
    format: str
    annotations: bytes
    results: bytes
    #: Bytes in the place of the image of this name, if an image is what was damaged.
    image: Tuple[str, bytes] = ("", b"")


def write_sound_images(folder: Path) -> None:
    """Write the images that the annotations name."""
    for seed, name in enumerate(IMAGES.values()):
        write_image(folder / name, SIZE, seed)


def _mask(counts: str) -> dict:
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[10:30, 20:44] = 1
    encoded = mask_util.encode(mask)["counts"].decode()
    return {"size": [SIZE, SIZE], "counts": encoded if counts == "text" else [20 * SIZE + 10, *[20, 44] * 23, 20, 1314]}


def sound_annotations(format_: str) -> dict:
    """Return a json with polygons, run lengths as text and as numbers, and a crowd region (not LVIS's)."""
    segmentations: List[Any] = [
        [square(8, 10, 20)],
        [square(4, 4, 9), square(30, 30, 20)],
        _mask("text"),
        _mask("numbers"),
    ]
    annotations = []
    for number in range(8):
        x, y, width, height = 20, 10, 24, 20
        annotations.append(
            {
                "id": number + 1,
                "image_id": list(IMAGES)[number % 3],
                "category_id": [2, 4, 9][number % 2],
                "bbox": [x, y, width, height],
                "area": float(width * height),
                "segmentation": copy.deepcopy(segmentations[number % 4]),
                "iscrowd": int(format_ == "coco" and number == 7),
            }
        )
    images = [{"id": id_, "file_name": name, "height": SIZE, "width": SIZE} for id_, name in IMAGES.items()]
    categories: List[dict] = [{"id": id_, "name": f"class {id_}"} for id_ in (4, 2, 9)]
    if format_ == "lvis":
        for image in images:
            image.update(
                neg_category_ids=[9], not_exhaustive_category_ids=[4], coco_url=f"http://x/y/{image['file_name']}"
            )
        for category in categories:
            category.update(frequency="c", image_count=20, instance_count=30)
    return {"info": {}, "images": images, "categories": categories, "annotations": annotations}


def sound_results() -> list:
    """Return detections with boxes and masks in the three forms."""
    masks = [_mask("text"), _mask("numbers"), [square(20, 10, 22)]]
    return [
        {
            "image_id": list(IMAGES)[number % 3],
            "category_id": [2, 4, 9][number % 3],
            "score": round(0.9 - 0.1 * number, 2),
            "bbox": [20.0, 10.0, 24.0, 19.0 + number],
            "segmentation": copy.deepcopy(masks[number % 3 if number > 3 else 0]),
        }
        for number in range(6)
    ]


def make_case(seed: int, number: int) -> Case:
    """Return case ``number`` of a seed."""
    chance = random.Random(f"{seed}/{number}")
    format_ = chance.choice(["lvis", "coco"])
    annotations, results = sound_annotations(format_), sound_results()
    if chance.random() < 0.3:  # of a results file of text masks alone nothing is parsed by Python
        results = [record for record in results if isinstance(record["segmentation"], dict)][:4]
    kind = chance.choices(["annotations", "results", "image"], [65, 30, 5])[0]
    if kind == "image":
        name = chance.choice(list(IMAGES.values()))
        return Case(kind, format_, _dump(annotations), _dump(results), (name, b""))
    damaged = _damaged(annotations if kind == "annotations" else results, chance)
    whole = _dump(results if kind == "annotations" else annotations)
    return Case(kind, format_, *((damaged, whole) if kind == "annotations" else (whole, damaged)))


def damage_image(content: bytes, seed: int, number: int) -> bytes:
    """Return the bytes of an image damaged as a file is."""
    return _damaged_bytes(content, random.Random(f"{seed}/{number}/image"))


def _damaged(content: Any, chance: random.Random) -> bytes:
    only_bytes = chance.random() < 0.12
    for _ in range(0 if only_bytes else chance.choice([1, 1, 2, 3])):
        content = _damaged_value(content, chance)
    text = _dump(content)
    return _damaged_bytes(text, chance) if only_bytes or chance.random() < 0.05 else text


def _dump(content: Any) -> bytes:
    # 10**400 as an integer is what json.dumps writes; NaN and Infinity are Python's own words.
    text = json.dumps(content).replace(f'"{_DEEP}"', "[" * 20000 + "]" * 20000)
    return text.encode("utf-8", "surrogatepass")


def _damaged_value(content: Any, chance: random.Random) -> Any:
    """Change one place of a json. Fields are equally likely, whatever the number of their values."""
    places: dict = {}
    _collect(content, "", places, lambda name, where: places.setdefault(name, []).append(where))
    container, key = chance.choice(places[chance.choice(sorted(places))])
    value = container[key]
    action = chance.choice([_replace, _replace, _replace, _drop, _double, _tweak, _tweak, _swap])
    action(container, key, value, chance, places)
    return content


def _collect(value: Any, name: str, places: dict, note: Callable[[str, Tuple[Any, Any]], None]) -> None:
    keys: Any = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        inner = key if isinstance(key, str) else f"{name}[]"
        note(inner, (value, key))
        _collect(value[key], inner, places, note)


def _replace(container: Any, key: Any, value: Any, chance: random.Random, places: dict) -> None:
    container[key] = copy.deepcopy(chance.choice(chance.choice([_NUMBERS, _TEXTS, _OTHERS])))


def _drop(container: Any, key: Any, value: Any, chance: random.Random, places: dict) -> None:
    del container[key]


def _double(container: Any, key: Any, value: Any, chance: random.Random, places: dict) -> None:
    if isinstance(container, list):
        container.insert(chance.randrange(len(container) + 1), copy.deepcopy(value))
    else:
        container[chance.choice([f"{key}2", "extra"])] = copy.deepcopy(value)


def _swap(container: Any, key: Any, value: Any, chance: random.Random, places: dict) -> None:
    other, other_key = chance.choice(places[chance.choice(sorted(places))])
    container[key] = copy.deepcopy(other[other_key])


def _tweak(container: Any, key: Any, value: Any, chance: random.Random, places: dict) -> None:
    """Change a value into one of its own type."""
    if isinstance(value, bool) or value is None:
        container[key] = not value
    elif isinstance(value, (int, float)):
        # An earlier change may have made an integer that no float holds.
        small = value if isinstance(value, float) or abs(value) < 10**300 else 10**300
        container[key] = chance.choice(
            [-value, value + 1, value - 1, value * 1000, value * 10**9, small / 3, float(small)]
        )
    elif isinstance(value, str):
        cut = chance.randrange(len(value) + 1)
        container[key] = value[:cut] + chance.choice(["", "0", "`", "o", "P", "~", "é", "\0", value]) + value[cut + 1 :]
    elif isinstance(value, list):
        few = chance.randrange(len(value) + 1)
        container[key] = chance.choice(
            [value[:few], value[few:], value * 2, [value], value[::-1], value + [chance.choice(_NUMBERS)]]
        )
    else:
        container[key] = chance.choice([[value], list(value), list(value.values()), {**value, "size": [1, 1]}])


def _damaged_bytes(text: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.choice([1, 1, 3])):
        cut, end = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        action = chance.randrange(6)
        if action == 0:
            text = text[:cut]
        elif action == 1:
            text = text[:cut] + bytes(chance.randrange(256) for _ in range(chance.randrange(1, 9))) + text[cut + 4 :]
        elif action == 2 and cut < len(text):
            text = text[:cut] + bytes([text[cut] ^ 1 << chance.randrange(8)]) + text[cut + 1 :]
        elif action == 3:
            text = text[:cut] + text[min(end, cut + 200) :]
        elif action == 4:
            text = text[:cut] + text[cut : cut + 300] * 2 + text[cut + 300 :]
        else:
            text = (
                text[:cut]
                + chance.choice([b"NaN", b"Infinity", b"-", b"1e999", b"\xff", b"[" * 3000, b"0" * 500, b'"'])
                + text[cut:]
            )
    return text
