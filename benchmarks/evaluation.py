#!/usr/bin/env python
"""LVIS evaluation from json files to metrics: this package's default back end against lvis 0.5.3.

    python benchmarks/evaluation.py                  LVIS v0.5 val size: 5,000 images x 300 detections, 1230 classes
    python benchmarks/evaluation.py --images 500     a tenth of it

Generates annotations and detections (jittered ground truth, class confusions, random false positives; boxes and
masks), runs each evaluator in a process of its own, asserts that all metrics and every category's AP are equal to
1e-12, and prints time and peak memory of the whole process as a Markdown table. CPU seconds, of all threads together,
tell more than seconds where other programs run beside it. The peer is lvis as Detectron2 calls it, once, because it
takes minutes; this package runs three times and the median counts. "combined" reads one file with box and mask in each
record, the submission format, in which the peer would spend more time than in its own row.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HEIGHT, WIDTH = 480, 640
NUM_CLASSES = 1230
DETECTIONS_PER_IMAGE = 300
POOL_SIZE = 20_000
TOLERANCE = 1e-12
TASKS = {"bbox": "box", "segm": "mask"}
RESULTS = ("box", "mask", "combined")


def random_boxes(rng, count):
    """Return ``[count, 4]`` boxes of 8 to 300 pixels a side, logarithmically uniform, within the image."""
    sizes = np.exp(rng.uniform(np.log(8), np.log(300), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array([WIDTH, HEIGHT]) - sizes)
    return np.concatenate([corners, sizes], axis=1).astype(np.float32)


def blob(rng, box):
    """Return a polygon of ten corners within a box, as a flat list."""
    x, y, w, h = map(float, box)
    angles, radii = np.linspace(0, 2 * np.pi, 10, endpoint=False), rng.uniform(0.6, 1, 10)
    xs = np.clip(x + w / 2 * (1 + np.cos(angles) * radii), 0, WIDTH)
    ys = np.clip(y + h / 2 * (1 + np.sin(angles) * radii), 0, HEIGHT)
    return np.stack([xs, ys], axis=1).ravel().round(2).tolist()


def encode(polygon):
    """Return a polygon's run lengths with counts as text, and its area."""
    from pycocotools import mask as mask_util

    (mask,) = mask_util.frPyObjects([polygon], HEIGHT, WIDTH)
    return mask["counts"].decode(), float(mask_util.area(mask))


def make_image(rng, image_id, class_probability, pool, first_annotation):
    """Return the record, the annotations and the detections (class, box, score, counts) of one image."""
    num_classes, num_instances = len(class_probability), int(rng.integers(1, 20))
    shown = rng.choice(num_classes, size=max(1, num_instances // 2), p=class_probability)
    classes = rng.choice(shown, size=num_instances)
    negative = np.setdiff1d(rng.choice(num_classes, size=8, p=class_probability), classes)
    boxes = random_boxes(rng, num_instances)
    annotations = []
    for k, (label, box) in enumerate(zip(classes, boxes)):
        polygon = blob(rng, box)
        annotations.append(
            {
                "id": first_annotation + k,
                "image_id": image_id,
                "category_id": int(label) + 1,
                "bbox": [round(float(value), 2) for value in box],
                "area": encode(polygon)[1],
                "segmentation": [polygon],
            }
        )
    image = {
        "id": image_id,
        "height": HEIGHT,
        "width": WIDTH,
        "neg_category_ids": [int(label) + 1 for label in negative],
        "not_exhaustive_category_ids": [int(classes[0]) + 1] if rng.random() < 0.2 else [],
    }
    detections = []
    for k in range(4 * num_instances):
        truth = k % num_instances
        box = boxes[truth] + rng.normal(0, 0.08, 4).astype(np.float32) * np.tile(boxes[truth][2:], 2)
        box[2:] = np.maximum(box[2:], 1)
        points = np.array(annotations[truth]["segmentation"][0]) + np.tile(box[:2] - boxes[truth][:2], 10)
        label = classes[truth] if rng.random() < 0.7 else rng.integers(num_classes)
        detections.append((label, box, rng.beta(3, 2), encode(points.tolist())[0]))
    count = DETECTIONS_PER_IMAGE - len(detections)
    verified = rng.choice(np.concatenate([negative, classes]), count)
    labels = np.where(rng.random(count) < 0.1, verified, rng.integers(num_classes, size=count))
    chosen = (pool[i] for i in rng.integers(len(pool), size=count))
    for label, (box, counts), score in zip(labels, chosen, rng.beta(1, 6, count)):
        detections.append((label, box, score, counts))
    return image, annotations, detections


def generate(folder, num_images, seed, num_classes=NUM_CLASSES, names=RESULTS):
    """Write gt.json and, of box.json, mask.json and combined.json, those that are named."""
    rng = np.random.default_rng(seed)
    class_probability = 1 / np.arange(1, num_classes + 1)
    class_probability /= class_probability.sum()
    pool = [(box, encode(blob(rng, box))[0]) for box in random_boxes(rng, POOL_SIZE)]
    images, annotations = [], []
    files = {name: (folder / f"{name}.json").open("w") for name in names}
    separator = "["
    for image_id in range(1, num_images + 1):
        image, new, detections = make_image(rng, image_id, class_probability, pool, len(annotations) + 1)
        images.append(image)
        annotations += new
        for label, box, score, counts in detections:
            record = {"image_id": image_id, "category_id": int(label) + 1, "score": float(np.float32(score))}
            box = {"bbox": [float(value) for value in box]}
            mask = {"segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}}
            contents = {"box": box, "mask": mask, "combined": {**box, **mask}}
            for name, file in files.items():
                file.write(separator + json.dumps({**record, **contents[name]}))
            separator = ", "
    for file in files.values():
        file.write("]")
        file.close()
    categories = [
        {"id": k + 1, "name": f"class_{k}", "frequency": "fcr"[3 * k // num_classes]} for k in range(num_classes)
    ]
    (folder / "gt.json").write_text(
        json.dumps({"images": images, "annotations": annotations, "categories": categories})
    )


def run_package(annotations, results, iou_type):
    """Score with this package's default back end."""
    from eql_d2.evaluation.backends import evaluate_results

    evaluation = evaluate_results(annotations, results, iou_type)
    return evaluation.metrics, evaluation.category_ap.tolist()


def run_lvis(annotations, results, iou_type):
    """Score with lvis as Detectron2's ``_evaluate_predictions_on_lvis`` does; only ``np.float`` is mended."""
    from eql_d2.evaluation.reference_backend import import_lvis

    lvis = import_lvis()
    with open(results) as file:
        detections = json.load(file)
    if iou_type == "segm":
        for detection in detections:
            detection.pop("bbox", None)
    ground_truth = lvis.LVIS(annotations)
    evaluation = lvis.LVISEval(ground_truth, lvis.LVISResults(ground_truth, detections, max_dets=300), iou_type)
    evaluation.run()
    precision = evaluation.eval["precision"][..., 0]
    category_ap = [precision[:, :, k][precision[:, :, k] > -1] for k in range(precision.shape[2])]
    metrics = {name: float("nan") if value == -1 else value for name, value in evaluation.get_results().items()}
    return metrics, [values.mean() if values.size else float("nan") for values in category_ap]


PROGRAMS = {"eql_d2": run_package, "lvis": run_lvis}


def measure(program, folder, results, iou_type):
    """Run a program in a process of its own; return its numbers, seconds, CPU seconds and peak memory in GB."""
    output = folder / "output.json"
    command = [sys.executable, __file__, "--run", program, str(folder / "gt.json"), str(folder / results), iou_type]
    start = time.perf_counter()
    process = subprocess.Popen([*command, str(output)])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{program} failed with status {process.returncode}")
    return json.loads(output.read_text()), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9


def assert_equal(ours, reference):
    """Assert that all metrics and every category's AP are equal."""
    assert list(ours[0]) == list(reference[0])
    np.testing.assert_allclose(list(ours[0].values()), list(reference[0].values()), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours[1], reference[1], rtol=0, atol=TOLERANCE)


def compare(folder, repeats):
    """Run both programs on boxes and masks and print the table."""
    print("| task | file | program | seconds | CPU seconds | peak GB | faster | faster (CPU) | memory | AP |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for iou_type, task in TASKS.items():
        reference, *peer = measure("lvis", folder, f"{task}.json", iou_type)
        print_row(task, f"{task} only", "lvis", peer, peer, reference)
        for results, described in ((task, f"{task} only"), ("combined", "combined")):
            runs = [measure("eql_d2", folder, f"{results}.json", iou_type) for _ in range(repeats)]
            for numbers, *_ in runs:
                assert_equal(numbers, reference)
            costs = [statistics.median(run[i] for run in runs) for i in (1, 2, 3)]
            print_row(task, described, "eql_d2", costs, peer, runs[0][0])


def print_row(task, described, program, costs, peer, numbers):
    """Print one row of the table as soon as it is known; ``costs`` are seconds, CPU seconds and GB."""
    seconds, cpu, memory = costs
    print(
        f"| {task} | {described} | {program} | {seconds:.1f} | {cpu:.1f} | {memory:.2f} | {peer[0] / seconds:.0f}x | "
        f"{peer[1] / cpu:.0f}x | {memory / peer[2]:.2f}x | {100 * numbers[0]['AP']:.2f} |",
        flush=True,
    )


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000, help="number of images (default: 5000)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of this package; the median counts (default: 3)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the generated files here, and use those that are there")
    parser.add_argument("--run", nargs=5, help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    args = parse_args()
    if args.run:
        program, annotations, results, iou_type, output = args.run
        Path(output).write_text(json.dumps(PROGRAMS[program](annotations, results, iou_type)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "gt.json").is_file():
            generate(folder, args.images, args.seed)
        print(
            f"{args.images} images x {DETECTIONS_PER_IMAGE} detections, {NUM_CLASSES} classes, {os.cpu_count()} cores; "
            f"lvis once, eql_d2 median of {args.repeats}; equal to {TOLERANCE}\n"
        )
        compare(folder, args.repeats)


if __name__ == "__main__":
    main()
