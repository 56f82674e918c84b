"""Trainings that are killed again and again, and compared with one that was not.

Used by the tests for a few kills, and by benchmarks/soak_kills.py for many.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from PIL import Image

from eql_d2.data.builtin import register_from_config
from eql_d2.engine.continuation import TIMES
from eql_d2.engine.trainer import Trainer
from eql_d2.run_folder import RunFolder
from tests.conftest import ROOT, make_lvis_json, tiny_config
from tests.engine.ranks import start_ranks

#: Number of processes and settings: each sampler, with workers and without, on one process and on two.
CASES: Dict[str, Tuple[int, List[Any]]] = {
    "shuffled, no worker": (1, ["DATALOADER.SAMPLER_TRAIN", "TrainingSampler"]),
    "repeat factors, two workers": (
        1,
        ["DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler", "DATALOADER.REPEAT_THRESHOLD", 0.9]
        + ["DATALOADER.NUM_WORKERS", 2, "MODEL.LONG_TAIL.ANALYSIS.PERIOD", 1],
    ),
    "class-aware, two processes with a worker each": (
        2,
        ["DATALOADER.SAMPLER_TRAIN", "ClassAwareSampler", "DATALOADER.NUM_WORKERS", 1, "SOLVER.IMS_PER_BATCH", 4],
    ),
}


def write_dataset(folder: Path, num_images: int) -> None:
    """Write ``train.json``, ``frequency.json`` and ``images/``: noise, every third image wider than high.

    So batches of one kind have to wait for images of theirs.
    """
    content = make_lvis_json(num_images)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(content["images"]):
        image["width"] = 80 if i % 3 == 0 else 64
        pixels = Image.effect_noise((image["width"], image["height"]), 50 + i)
        pixels.convert("RGB").save(folder / "images" / image["file_name"])
    (folder / "train.json").write_text(json.dumps(content))
    counts = [category["image_count"] for category in content["categories"]]
    frequency = {"image_count": counts, "instance_count": counts, "num_images": 200}
    (folder / "frequency.json").write_text(json.dumps(frequency))


def train(cfg: Any) -> None:
    """What a process of the training does; it resumes if there is a checkpoint."""
    seed_all_rng(cfg.SEED + comm.get_rank())  # as default_setup does
    register_from_config(cfg)
    Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()


def configured(folder: Path, output: str, *opts: Any) -> Any:
    """A tiny training on the folder's data that writes a checkpoint after every second iteration."""
    settings = ["INPUT.MIN_SIZE_TRAIN", (32, 40), "INPUT.MAX_SIZE_TRAIN", 48, "SOLVER.MAX_ITER", 10]
    settings += [
        "INPUT.MIN_SIZE_TEST",
        32,
        "SOLVER.CHECKPOINT_PERIOD",
        2,
        "TEST.EVAL_PERIOD",
        4,
        "OUTPUT_DIR",
        str(folder / output),
    ]
    settings += ["MODEL.LONG_TAIL.TRAINING.CHECKPOINTS_KEPT", 2]
    settings += ["SOLVER.BASE_LR", 0.001]
    # Narrow, so that checkpoints are a few megabytes.
    settings += ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.WIDTH_PER_GROUP", 4]
    settings += ["MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 16]
    settings += ["MODEL.RPN.PRE_NMS_TOPK_TRAIN", 50, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 20]
    settings += ["MODEL.RPN.PRE_NMS_TOPK_TEST", 20, "MODEL.RPN.POST_NMS_TOPK_TEST", 10, "MODEL.MASK_ON", False]
    return tiny_config(folder, "Mask-R-CNN-FPN", "EQL_V2", *settings, *opts)


def run_to_the_end(cfg: Any, folder: Path, world_size: int, kills: int, seed: int = 0) -> List[int]:
    """Train, killing one of the processes ``kills`` times at a random moment, and starting all of them again.

    Returns:
        The iteration of the last checkpoint at each kill, -1 before the first.
    """
    moments = random.Random(seed)
    at: List[int] = []
    interval = 1.0  # seconds from one checkpoint to the next
    for attempt in range(10 * (kills + 1)):
        processes = start_ranks(train, world_size, folder / f"meet_{Path(cfg.OUTPUT_DIR).name}_{attempt}", cfg)
        # A moment between two checkpoints, the first of which this run has written itself, or none at all.
        began, seen, awaited = time.monotonic(), last_iteration(cfg), moments.randint(0, 2)
        while len(at) < kills and awaited and processes[0].is_alive():
            if last_iteration(cfg) != seen:
                seen, awaited = last_iteration(cfg), awaited - 1
                began, interval = time.monotonic(), max(time.monotonic() - began, 0.1)
            time.sleep(0.01)
        processes[0].join(moments.uniform(0, interval) if len(at) < kills else None)
        if not processes[0].is_alive():
            for process in processes:
                process.join()
            assert [process.exitcode for process in processes] == [0] * world_size
            if len(at) == kills:
                return at
            shutil.rmtree(cfg.OUTPUT_DIR)  # it has ended before all kills: once more from the start
            continue
        moments.choice(processes).kill()
        for process in processes:  # those that are left wait for it for ever
            process.kill()
            process.join()
        at.append(last_iteration(cfg))
    raise AssertionError(f"{len(at)} of {kills} kills after {attempt + 1} runs.")


def run_under_torchrun(cfg: Any, folder: Path, restarts: int, seed: int = 0, processes: int = 2) -> str:
    """Train by ``torchrun --max-restarts``, killing a process at a random moment for each restart.

    Returns:
        What torchrun and its processes have said.
    """
    moments = random.Random(seed)
    (folder / "torchrun.yaml").write_text(cfg.dump())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command += [f"--max-restarts={restarts}", "tools/train_net.py", "--config-file", str(folder / "torchrun.yaml")]
    said = folder / "torchrun.txt"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with said.open("w") as file:
        agent = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=file)
    for _ in range(restarts):
        # Not before the training goes on: a restart that has not yet begun would count as one more.
        seen = last_iteration(cfg)
        while last_iteration(cfg) == seen and agent.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.5))
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        os.kill(int(moments.choice(children[-processes:])), signal.SIGKILL)
    assert agent.wait() == 0, said.read_text()[-3000:]
    return said.read_text()


def last_iteration(cfg: Any) -> int:
    """Return the iteration of the last checkpoint, -1 if there is none."""
    file = Path(cfg.OUTPUT_DIR) / "last_checkpoint"
    name = file.read_text() if file.is_file() else "model_-1.pth"
    return int(name[len("model_") : -len(".pth")].replace("final", str(cfg.SOLVER.MAX_ITER)))


def outcome(cfg: Any) -> Dict[str, Any]:
    """Return all that a training leaves, but for its times: the last checkpoint, metrics over time, results."""
    folder = RunFolder(cfg.OUTPUT_DIR)
    checkpoint = torch.load(folder.weights, weights_only=True)
    history = [{key: value for key, value in line.items() if key not in TIMES} for line in folder.history]
    return {"checkpoint": checkpoint, "history": history, "results": folder.read_results()["results"]}


def differences(expected: Any, found: Any, name: str = "") -> List[str]:
    """Return the names of what is not the same to the bit."""
    if isinstance(expected, dict) and isinstance(found, dict):
        return [
            difference
            for key in {**expected, **found}
            for difference in differences(expected.get(key), found.get(key), f"{name}/{key}")
        ]
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)) and len(expected) == len(found):
        pairs = enumerate(zip(expected, found))
        return [difference for i, pair in pairs for difference in differences(*pair, f"{name}/{i}")]
    if isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor):
        return [] if expected.dtype == found.dtype and torch.equal(expected, found) else [name]
    return [] if repr(expected) == repr(found) else [name]  # NaN is NaN
