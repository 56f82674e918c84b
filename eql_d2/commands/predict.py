"""Detections of a trained model on images, folders of images or a video.

    eql-d2 predict --config-file output/config.yaml --input images/ --output drawn/ --opts MODEL.WEIGHTS model.pth
    eql-d2 predict ... --input images/ --results detections.json --coco set.json --yolo labels/ --batch-size 8

The flags are those of Detectron2's demo, and --results (LVIS submission format), --coco (a data set in COCO format
whose annotations are the detections), --yolo (a text file for each image: label, box, score; classes.txt names the
labels).
"""

import argparse
import json
import time
from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Deque, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np
import tqdm

from eql_d2 import Predictor
from eql_d2.config import load_config
from eql_d2.data.image_files import read_bgr
from eql_d2.engine.launch import ALLOW_MISSING
from eql_d2.errors import InputError
from eql_d2.evaluation.exchange import coco_dataset, yolo_lines
from eql_d2.evaluation.instances import instances_to_results
from eql_d2.files import write_whole

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}
#: Images that are read while others go through the model, beside those of a batch, and threads that read them.
AHEAD, READERS = 8, 4


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, help="the config of the model")
    parser.add_argument("--input", nargs="+", type=Path, help="images and folders of images")
    parser.add_argument("--video-input", type=Path, help="a video")
    parser.add_argument("--output", type=Path, help="a folder for pictures, or the file of the video")
    parser.add_argument(
        "--thresholds", metavar="FILE",
        help="least score of each class, from eql-d2 thresholds; default: thresholds.json beside the weights, if it is "
        "there; none: all detections",
    )  # fmt: skip
    parser.add_argument(
        "--confidence-threshold", type=float, help="least score of what is drawn (default 0.5, with thresholds 0)"
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="write the detections in LVIS results format")
    parser.add_argument("--coco", type=Path, metavar="FILE", help="write a data set in COCO format")
    parser.add_argument("--yolo", type=Path, metavar="FOLDER", help="write a text file for each image")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1, ...; as the config says by default")
    parser.add_argument("--allow-missing", action="store_true", help=ALLOW_MISSING)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides: KEY VALUE ...")
    args = parser.parse_args(argv)
    if bool(args.input) == bool(args.video_input):
        parser.error("give either --input or --video-input")
    if args.video_input and not args.output:
        parser.error("--video-input needs --output, the file of the drawn video")
    if not (args.output or args.results or args.coco or args.yolo):
        parser.error("nothing would be written; give --output, --results, --coco or --yolo")
    return args


def image_paths(inputs: Iterable[Path]) -> List[Path]:
    """Return the images named, and those in the folders named, sorted."""
    paths: List[Path] = []
    for path in inputs:
        if path.is_dir():
            paths += sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"{path}: there is no such file or folder.")
    if not paths:
        raise InputError(f"{' '.join(map(str, inputs))} holds no image.")
    return paths


def read_image(path: Path) -> np.ndarray:
    try:
        return read_bgr(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read as an image ({error}).") from None


def read_ahead(paths: Sequence[Path], ahead: int) -> Iterator[np.ndarray]:
    """Yield the images in order, while the next ones are read."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting: Deque[Future] = deque()
        for path in paths:
            waiting.append(pool.submit(read_image, path))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def run_images(predictor: Predictor, args: argparse.Namespace) -> None:
    paths = image_paths(args.input)
    _check_names(paths, args)
    labels = {category_id: label for label, category_id in predictor.category_ids.items()}
    images: Deque[np.ndarray] = deque()  # in the model, or waiting for their detections to be written
    sizes: List[Tuple[int, str, int, int]] = []
    detections: List[Dict[str, Any]] = []

    def read() -> Iterator[np.ndarray]:
        for image in read_ahead(paths, AHEAD + args.batch_size):
            images.append(image)
            yield image

    start = time.perf_counter()
    found = predictor.predict(read(), paste_masks=False)
    for image_id, path in enumerate(tqdm.tqdm(paths, unit="image"), 1):
        instances, image = next(found), images.popleft()
        height, width = image.shape[:2]
        sizes.append((image_id, path.name, height, width))
        if args.output:
            draw(predictor, args, path, image, instances)
        records = instances_to_results(instances, image_id, predictor.category_ids)
        if args.yolo:
            lines = yolo_lines(records, height, width, labels)
            write_whole(args.yolo / f"{path.stem}.txt", "".join(f"{line}\n" for line in lines))
        if args.results or args.coco:
            detections += [{**record, "file_name": path.name} for record in records]
    seconds = time.perf_counter() - start
    if args.results:
        write_whole(args.results, json.dumps(detections))
    if args.coco:
        for detection in detections:
            detection.pop("file_name")
        content = coco_dataset(sizes, detections, predictor.category_ids, predictor.class_names)
        write_whole(args.coco, json.dumps(content))
    if args.yolo:
        write_whole(args.yolo / "classes.txt", "".join(f"{name}\n" for name in predictor.class_names))
    print(
        f"{len(paths)} images in {seconds:.1f} s, {len(paths) / seconds:.2f} images/s with all that is written "
        f"(batches of {args.batch_size} on {predictor.cfg.MODEL.DEVICE})"
    )


def draw(predictor: Predictor, args: argparse.Namespace, path: Path, image: np.ndarray, instances: Any) -> None:
    args.output.mkdir(parents=True, exist_ok=True)
    drawn = predictor.draw(image, instances, args.confidence_threshold)
    if not cv2.imwrite(str(args.output / path.name), drawn):
        raise InputError(f"--output {args.output / path.name} cannot be written.")


def _check_names(paths: Sequence[Path], args: argparse.Namespace) -> None:
    """Images of several folders may have the same name, and would overwrite each other's files."""
    for written, names in ((args.output, [path.name for path in paths]), (args.yolo, [path.stem for path in paths])):
        doubled = [name for name, count in Counter(names).items() if count > 1]
        if written and doubled:
            raise InputError(f"--input has several images {doubled[0]}, which would be written to one file.")


def frames_of(video: Any) -> Iterator[np.ndarray]:
    while True:
        found, frame = video.read()
        if not found:
            return
        yield frame


def run_video(predictor: Predictor, args: argparse.Namespace) -> None:
    video = cv2.VideoCapture(str(args.video_input))
    if not video.isOpened():
        raise InputError(f"--video-input {args.video_input} cannot be read as a video.")
    size = int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
    writer = cv2.VideoWriter(str(args.output), cv2.VideoWriter_fourcc(*"mp4v"), video.get(cv2.CAP_PROP_FPS), size)
    if not writer.isOpened():
        raise InputError(f"--output {args.output} cannot be written as a video; name a file that ends in .mp4.")
    for frame in tqdm.tqdm(frames_of(video), total=int(video.get(cv2.CAP_PROP_FRAME_COUNT)), unit="frame"):
        (instances,) = predictor.predict([frame], paste_masks=False)
        writer.write(predictor.draw(frame, instances, args.confidence_threshold))
    writer.release()


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_arguments(argv)
    cfg = load_config(args.config_file, args.opts)
    thresholds = None if args.thresholds == "none" else args.thresholds or ""
    predictor = Predictor(cfg, "", args.device, args.batch_size, thresholds, args.allow_missing)
    if args.confidence_threshold is None:
        args.confidence_threshold = 0.5 if predictor.thresholds is None else 0.0
    run_video(predictor, args) if args.video_input else run_images(predictor, args)
