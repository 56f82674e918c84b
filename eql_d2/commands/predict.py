"""Detections of a trained model on images, folders of images or a video; the flags are those of Detectron2's demo."""

import argparse
import json
from pathlib import Path
from typing import Optional, Sequence

import cv2
import tqdm

from eql_d2 import Predictor
from eql_d2.config import load_config
from eql_d2.engine.launch import ALLOW_MISSING
from eql_d2.errors import InputError
from eql_d2.evaluation.instances import instances_to_results
from eql_d2.files import write_whole

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"}


def parse_arguments(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config-file", required=True, help="the config of the model")
    parser.add_argument("--input", nargs="+", type=Path, help="images and folders of images")
    parser.add_argument("--video-input", type=Path, help="a video")
    parser.add_argument("--output", type=Path, required=True, help="a folder for pictures, or the file of the video")
    parser.add_argument(
        "--thresholds", metavar="FILE",
        help="least score of each class, from eql-d2 thresholds; default: thresholds.json beside the weights, if it is "
        "there; none: all detections",
    )  # fmt: skip
    parser.add_argument(
        "--confidence-threshold", type=float, help="least score of what is drawn (default 0.5, with thresholds 0)"
    )
    parser.add_argument("--results", type=Path, help="also write all detections to this json, in LVIS results format")
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:1, ...; as the config says by default")
    parser.add_argument("--allow-missing", action="store_true", help=ALLOW_MISSING)
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="config overrides: KEY VALUE ...")
    args = parser.parse_args(argv)
    if bool(args.input) == bool(args.video_input):
        parser.error("give either --input or --video-input")
    return args


def image_paths(inputs):
    """Return the images named, and those in the folders named, sorted."""
    paths = []
    for path in inputs:
        if path.is_dir():
            paths += sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"--input {path}: there is no such file or folder.")
    if not paths:
        raise InputError(f"--input {' '.join(map(str, inputs))} holds no image.")
    return paths


def read_image(path):
    image = cv2.imread(str(path))
    if image is None:
        raise InputError(f"--input {path} cannot be read as an image.")
    return image


def run_images(predictor, args):
    paths = image_paths(args.input)
    args.output.mkdir(parents=True, exist_ok=True)
    detections = []
    instances_of = predictor.predict(map(read_image, paths))
    for image_id, path in enumerate(tqdm.tqdm(paths, unit="image"), 1):
        instances = next(instances_of)
        drawn = predictor.draw(read_image(path), instances, args.confidence_threshold)
        if not cv2.imwrite(str(args.output / path.name), drawn):
            raise InputError(f"--output {args.output / path.name} cannot be written.")
        records = instances_to_results(instances, image_id, predictor.category_ids)
        detections += [{**record, "file_name": path.name} for record in records]
    if args.results:
        write_whole(args.results, json.dumps(detections))


def frames_of(video):
    while True:
        found, frame = video.read()
        if not found:
            return
        yield frame


def run_video(predictor, args):
    video = cv2.VideoCapture(str(args.video_input))
    if not video.isOpened():
        raise InputError(f"--video-input {args.video_input} cannot be read as a video.")
    size = int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT))
    writer = cv2.VideoWriter(str(args.output), cv2.VideoWriter_fourcc(*"mp4v"), video.get(cv2.CAP_PROP_FPS), size)
    if not writer.isOpened():
        raise InputError(f"--output {args.output} cannot be written as a video; name a file that ends in .mp4.")
    for frame in tqdm.tqdm(frames_of(video), total=int(video.get(cv2.CAP_PROP_FRAME_COUNT)), unit="frame"):
        writer.write(predictor.draw(frame, predictor(frame), args.confidence_threshold))
    writer.release()


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse_arguments(argv)
    cfg = load_config(args.config_file, args.opts)
    thresholds = None if args.thresholds == "none" else args.thresholds or ""
    predictor = Predictor(cfg, "", args.device, args.batch_size, thresholds, args.allow_missing)
    if args.confidence_threshold is None:
        args.confidence_threshold = 0.5 if predictor.thresholds is None else 0.0
    run_video(predictor, args) if args.video_input else run_images(predictor, args)
