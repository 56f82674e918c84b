"""A second stage on cached region features: the weights of one without, to the bit, and what is refused."""

import json
import shutil
from collections import namedtuple

import numpy as np
import pytest
import torch

from eql_d2.data.feature_cache import FeatureCacheMapper
from eql_d2.data.mapper import LongTailDatasetMapper
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from tests.conftest import tiny_config
from tests.engine.test_protocol import protocol_of, stage2, trained_weights, trainer_of

STEPS = 12  # of 4 images and their flips


def second_stage(folder, weights, *opts, cache=True, architecture="Mask-R-CNN-FPN", loss="BAGS"):
    """Train a second stage and return its trainer."""
    shutil.rmtree(folder / "output", ignore_errors=True)
    cfg = stage2(
        folder,
        weights,
        architecture,
        loss,
        *protocol_of("classifier"),
        *("SOLVER.MAX_ITER", STEPS, "SOLVER.IMS_PER_BATCH", 1, "DATALOADER.SAMPLER_TRAIN", "ClassAwareSampler"),
        *("MODEL.LONG_TAIL.FEATURE_CACHE", str(folder / "features") if cache else "", "DATASETS.TEST", ()),
        *opts,
    )
    trainer = trainer_of(cfg)
    trainer.train()
    return trainer


def files_of(folder):
    return sorted((folder / "features").glob("*/*/*.safetensors"))


def assert_equal_weights(one, other):
    state, expected = one.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


def without_images(monkeypatch):
    """Let every training image that is read, and every pass through the frozen part in training, be an error."""
    read = LongTailDatasetMapper._map

    def fail(*args, **kwargs):
        raise AssertionError("this is in the cache")

    monkeypatch.setattr(
        LongTailDatasetMapper, "_map", lambda self, record: fail() if self.is_train else read(self, record)
    )
    monkeypatch.setattr("eql_d2.modeling.frozen._compute_regions", fail)


@pytest.mark.parametrize("architecture, steps", [("Mask-R-CNN-FPN", STEPS), ("Mask-R-CNN-C4", 4)])
def test_cached_and_uncached_weights_are_equal(lvis_folder, architecture, steps, monkeypatch):
    """With flips, a loss that draws at random, and class-aware sampling; filling the cache, and from a full one."""
    weights = trained_weights(lvis_folder, architecture)
    opts = ["SOLVER.MAX_ITER", steps]
    plain = second_stage(lvis_folder, weights, *opts, cache=False, architecture=architecture)
    filling = second_stage(lvis_folder, weights, *opts, architecture=architecture)
    assert_equal_weights(filling, plain)
    files = files_of(lvis_folder)
    flipped = [file for file in files if file.stem.endswith("_flipped")]
    assert 0 < len(flipped) < len(files) <= min(8, steps)
    without_images(monkeypatch)
    cached = second_stage(lvis_folder, weights, *opts, architecture=architecture)
    assert_equal_weights(cached, plain)
    assert files_of(lvis_folder) == files


def test_batches_workers_and_other_methods_share_it(lvis_folder, monkeypatch):
    """Images go through the frozen part one by one, so that batches are equal whatever the cache holds; another loss
    uses the features of the first."""
    weights = trained_weights(lvis_folder)
    opts = ["SOLVER.IMS_PER_BATCH", 2, "DATALOADER.NUM_WORKERS", 2]
    filling = second_stage(lvis_folder, weights, *opts, "SOLVER.MAX_ITER", 8)
    plain = second_stage(lvis_folder, weights, *opts, "SOLVER.MAX_ITER", 8, cache=False)
    weight = [trainer.model.roi_heads.box_predictor.cls_score.weight for trainer in (filling, plain)]
    torch.testing.assert_close(*weight, rtol=1e-4, atol=1e-6)
    without_images(monkeypatch)
    assert_equal_weights(second_stage(lvis_folder, weights, *opts, "SOLVER.MAX_ITER", 8), filling)
    second_stage(lvis_folder, weights, "SOLVER.MAX_ITER", 3, loss="SEESAW")
    for name in ("model_final.pth", "metrics.json"):
        assert (lvis_folder / "output" / name).is_file()


def test_image_level_labels_and_ignored_boxes(lvis_folder):
    """What is known of an image reaches the cached regions as it does the others."""
    content = json.loads((lvis_folder / "train.json").read_text())
    for annotation in content["annotations"][::2]:
        content["annotations"].append(
            {**annotation, "id": 90 + annotation["id"], "iscrowd": 1, "bbox": [30, 30, 30, 30]}
        )
    (lvis_folder / "train.json").write_text(json.dumps(content))
    weights = trained_weights(lvis_folder)
    opts = ["MODEL.LONG_TAIL.IGNORED.CROWD", True, "MODEL.MASK_ON", False, "SOLVER.IMS_PER_BATCH", 1]
    plain = second_stage(lvis_folder, weights, *opts, cache=False, loss="EQL")
    for _ in range(2):
        assert_equal_weights(second_stage(lvis_folder, weights, *opts, loss="EQL"), plain)


def test_an_interrupted_stage_goes_on(lvis_folder, monkeypatch):
    weights = trained_weights(lvis_folder)
    whole = second_stage(lvis_folder, weights, "SOLVER.CHECKPOINT_PERIOD", 5)
    run_step = Trainer.run_step

    def interrupted(self):
        if self.iter == 7:
            raise KeyboardInterrupt
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        second_stage(lvis_folder, weights, "SOLVER.CHECKPOINT_PERIOD", 5)
    monkeypatch.setattr(Trainer, "run_step", run_step)
    resumed = trainer_of(whole.cfg.clone(), resume=True)
    assert resumed.start_iter == 5
    resumed.train()
    assert_equal_weights(resumed, whole)


def test_other_weights_have_features_of_their_own(lvis_folder):
    weights = trained_weights(lvis_folder)
    second_stage(lvis_folder, weights)
    content = torch.load(weights)
    content["model"]["roi_heads.box_head.fc2.bias"] += 1
    torch.save(content, lvis_folder / "other.pth")
    other = second_stage(lvis_folder, lvis_folder / "other.pth")
    assert len({file.parents[1] for file in files_of(lvis_folder)}) == 2
    assert_equal_weights(second_stage(lvis_folder, lvis_folder / "other.pth", cache=False), other)


def test_the_mapper_draws_the_same_numbers(lvis_folder):
    """Whether the image is there or not: the same flip, size, labels and random state."""
    cfg = tiny_config(
        lvis_folder, "Mask-R-CNN-FPN", "EQL", "MODEL.LONG_TAIL.FEATURE_CACHE", str(lvis_folder / "features")
    )
    record = {"file_name": str(lvis_folder / "images" / f"{1:012d}.png"), "image_id": 1, "height": 64, "width": 64}
    box = {"bbox": [10, 12, 30, 30], "bbox_mode": 1, "category_id": 3, "segmentation": [[10, 12, 40, 12, 40, 42]]}
    record.update(annotations=[box], image_labels={"positive": [3], "negative": [1]})
    mapper, plain = FeatureCacheMapper(cfg), LongTailDatasetMapper(cfg, True)
    mapper.cache.open("digest")
    for flipped in (True, False):
        path = mapper.cache.file_of(record, flipped)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    seen = set()
    for seed in range(8):
        examples, states = [], []
        for each in (mapper, plain):
            np.random.seed(seed)
            examples.append(each(record))
            states.append(np.random.get_state()[1].tolist())
        example, expected = examples
        assert "image" not in example and states[0] == states[1]
        seen.add(example["feature_file"])
        assert example["image_size"] == expected["instances"].image_size and "annotations" not in example
        assert example["image_labels"]["positive"].tolist() == [3]
        is_flipped = bool(expected["instances"].gt_boxes.tensor[0, 0] != 10)
        assert example["feature_file"].endswith("_flipped.safetensors") == is_flipped
    assert len(seen) == 2 and "annotations" in record


@pytest.mark.parametrize(
    "opts, words",
    [
        (
            ["MODEL.LONG_TAIL.TRAINABLE", "box_head"],
            "needs MODEL.LONG_TAIL.TRAINABLE 'classifier' or 'scale', and it is",
        ),
        (["INPUT.MIN_SIZE_TRAIN", (64, 80)], "needs INPUT.MIN_SIZE_TRAIN one size"),
        (["INPUT.CROP.ENABLED", True], "needs INPUT.CROP.ENABLED False"),
        (["MODEL.LONG_TAIL.AUGMENT.SCALE_JITTER", (0.1, 2.0)], "needs MODEL.LONG_TAIL.AUGMENT.SCALE_JITTER"),
        (["SOLVER.AMP.ENABLED", True], "needs SOLVER.AMP.ENABLED False"),
    ],
)
def test_what_features_depend_on_is_refused(lvis_folder, opts, words):
    features = ["MODEL.LONG_TAIL.FEATURE_CACHE", "features", "MODEL.LONG_TAIL.TRAINABLE", "classifier"]
    with pytest.raises(InputError, match=words):
        Trainer.build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "BAGS", *features, *opts))


def test_a_cascade_is_refused(lvis_folder):
    weights = trained_weights(lvis_folder, "Cascade-Mask-R-CNN-FPN")
    with pytest.raises(InputError, match="in a cascade the boxes of a stage depend"):
        second_stage(lvis_folder, weights, architecture="Cascade-Mask-R-CNN-FPN")


def test_a_disk_without_room_is_refused_before_anything_is_written(lvis_folder, monkeypatch):
    Usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr("eql_d2.engine.feature_cache.shutil.disk_usage", lambda path: Usage(10, 10, 1000))
    with pytest.raises(
        InputError, match=r"would take at most .* GiB for 8 images and flips.*its disk has 9.31e-07 GiB"
    ):
        second_stage(lvis_folder, trained_weights(lvis_folder))
    assert not files_of(lvis_folder)


def test_damaged_files_and_other_annotations(lvis_folder):
    weights = trained_weights(lvis_folder)
    second_stage(lvis_folder, weights)
    files = files_of(lvis_folder)
    content = json.loads((lvis_folder / "train.json").read_text())
    for annotation in content["annotations"]:
        annotation["bbox"][0] += 1
    (lvis_folder / "moved.json").write_text(json.dumps(content))
    moved = [[f"{lvis_folder.name}_moved", str(lvis_folder / "moved.json"), str(lvis_folder / "images")]]
    opts = ["MODEL.LONG_TAIL.DATASETS", moved, "DATASETS.TRAIN", (moved[0][0],)]
    other = second_stage(lvis_folder, weights, *opts)
    assert set(files) < set(files_of(lvis_folder)) and len(files_of(lvis_folder)) == 2 * len(files)
    assert_equal_weights(second_stage(lvis_folder, weights, *opts, cache=False), other)
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cannot be read .* delete it"):
        second_stage(lvis_folder, weights)
