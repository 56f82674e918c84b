"""Checkpoints: those of the authors' repository load whole, and one that is being written is never half there."""

import os
import random

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.last_checkpoint import remove_leftovers
from eql_d2.errors import InputError
from tests.conftest import ARCHITECTURES, NUM_CLASSES, tiny_config


def authors_checkpoint(cfg) -> dict:
    """Return a state dict as tztztztztz/eql.detectron2 saves it: stock Detectron2's names, K classifier rows, K masks,
    K x 4 box deltas, and the anchors, which Detectron2 kept in checkpoints in early 2020."""
    stock = cfg.clone()
    stock.merge_from_list(
        ["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
        + ["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"]
    )
    state = {name: torch.randn_like(value) if value.is_floating_point() else value
             for name, value in build_model(stock).state_dict().items()}  # fmt: skip
    for kind in ("weight", "bias"):
        name = f"roi_heads.box_predictor.cls_score.{kind}"
        state[name] = state[name][:NUM_CLASSES].clone()
    for level in range(5):
        state[f"proposal_generator.anchor_generator.cell_anchors.{level}"] = torch.zeros(3, 4)
    return state


def test_the_authors_checkpoints_load_without_a_mismatch(lvis_folder):
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", "EQL")
    state = authors_checkpoint(cfg)
    assert state["roi_heads.mask_head.predictor.weight"].shape[0] == NUM_CLASSES
    assert state["roi_heads.box_predictor.bbox_pred.weight"].shape[0] == 4 * NUM_CLASSES
    path = lvis_folder / "authors.pth"
    torch.save({"model": state, "optimizer": {}, "iteration": 89999}, path)
    model = build_model(cfg)
    checkpointer = LongTailCheckpointer(model, require_all=True)
    incompatible = []
    inner = checkpointer._load_model
    checkpointer._load_model = lambda checkpoint: incompatible.append(inner(checkpoint)) or incompatible[0]
    checkpointer.load(str(path))
    assert incompatible[0].missing_keys == [] and incompatible[0].unexpected_keys == []
    assert incompatible[0].incorrect_shapes == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_parameter_names_are_detectron2_s(lvis_folder, architecture):
    cfg = tiny_config(lvis_folder, architecture, "EQL")
    ours = set(build_model(cfg).state_dict())
    heads = {"Mask-R-CNN-FPN": "StandardROIHeads", "Mask-R-CNN-C4": "Res5ROIHeads"}.get(architecture, "CascadeROIHeads")
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", heads])
    cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"])
    assert ours == set(build_model(cfg).state_dict())


def test_an_interrupted_save_leaves_the_previous_checkpoint(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    checkpointer = LongTailCheckpointer(model, str(tmp_path))
    checkpointer.save("model")
    before = (tmp_path / "model.pth").read_bytes()

    def die_half_way(data, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", die_half_way)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model")
    assert (tmp_path / "model.pth").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last_checkpoint", "model.pth"]


def test_checkpoints_hold_tensors_and_plain_values_only(lvis_folder):
    from eql_d2.data.builtin import register_from_config
    from eql_d2.engine.trainer import Trainer

    cfg = tiny_config(lvis_folder)
    register_from_config(cfg)
    trainer = Trainer(cfg)
    trainer.iter, trainer.storage = 0, EventStorage()
    trainer.checkpointer.save("model")
    loaded = torch.load(lvis_folder / "output" / "model.pth", weights_only=True)
    assert "roi_heads.box_predictor.cls_score.weight" in loaded["model"] and loaded["trainer"]["iteration"] == 0


def saved(folder, iterations=(4, 9, 14), keep=0):
    """Save checkpoints of these iterations, the weights of each filled with its number; return their folder."""
    model = torch.nn.Linear(64, 64)
    checkpointer = LongTailCheckpointer(model, str(folder), keep=keep)
    for order, iteration in enumerate(iterations):
        model.weight.data.fill_(iteration)
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        os.utime(folder / f"model_{iteration:07d}.pth", (order, order))
    return folder


def resumed(folder):
    """Return the iteration of the checkpoint that a new process goes on from."""
    model = torch.nn.Linear(64, 64)
    loaded = LongTailCheckpointer(model, str(folder)).resume_or_load("", resume=True)
    assert not loaded or (model.weight == loaded["iteration"]).all()
    return loaded.get("iteration")


def flip_bytes(path, count=64):
    content = bytearray(path.read_bytes())
    for place in range(len(content) // 2, len(content) // 2 + count):
        content[place] ^= 0xFF
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "random": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "64 bytes flipped": flip_bytes,
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, warned, how):
    saved(tmp_path)
    DAMAGE[how](tmp_path / "model_0000014.pth")
    assert resumed(tmp_path) == 9
    (warning,) = warned
    assert "model_0000014.pth" in warning and f"Going on from {tmp_path}/model_0000009.pth." in warning
    DAMAGE[how](tmp_path / "model_0000009.pth")
    assert resumed(tmp_path) == 4


@pytest.mark.parametrize(
    "tag", [b"\xff\xfe\x00\x80", b"", None, b"no.pth", b"../model_0000014.pth", b"evil.pkl", b"model_0000014.pth\0"]
)
def test_a_damaged_last_checkpoint_file_is_passed_over(tmp_path, warned, tag):
    saved(tmp_path)
    if tag is None:
        (tmp_path / "last_checkpoint").unlink()
    else:
        (tmp_path / "last_checkpoint").write_bytes(tag)
    assert resumed(tmp_path) == 14
    assert len(warned) == 1


def test_going_back_to_an_earlier_checkpoint_is_possible(tmp_path, warned):
    saved(tmp_path)
    (tmp_path / "last_checkpoint").write_text("model_0000004.pth\n")
    assert resumed(tmp_path) == 4 and not warned


def test_no_sound_checkpoint_is_an_error_and_none_a_start(tmp_path):
    assert resumed(tmp_path) is None
    saved(tmp_path, (4,))
    DAMAGE["empty"](tmp_path / "model_0000004.pth")
    with pytest.raises(InputError, match=r"no checkpoint to go on from\. .*model_0000004\.pth is no file of "):
        resumed(tmp_path)
    (tmp_path / "model_0000004.pth").unlink()
    with pytest.raises(InputError, match=r"model_0000004\.pth: there is no such file"):
        resumed(tmp_path)


@pytest.mark.parametrize("keep, left", [(0, [4, 9, 14]), (2, [9, 14]), (1, [14])])
def test_as_many_checkpoints_are_kept_as_the_setting_says(tmp_path, keep, left):
    (tmp_path / "model_final.pth").write_bytes(b"of an earlier stage")
    saved(tmp_path, keep=keep)
    names = [f"model_{iteration:07d}.pth" for iteration in left]
    assert sorted(path.name for path in tmp_path.glob("*.pth")) == [*names, "model_final.pth"]
    assert resumed(tmp_path) == 14


def test_leftovers_of_a_killed_process_are_removed(tmp_path):
    for name in ("model_0000004.pth.tmp123", "last_checkpoint.tmp9", "mine.tmp", "notes.tmp1.txt"):
        (tmp_path / name).write_text("half")
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.tmp", "notes.tmp1.txt"]


def test_after_a_failure_another_file_can_be_loaded(tmp_path):
    (tmp_path / "broken.pth").write_text("no weights")
    checkpointer = LongTailCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    with pytest.raises(InputError, match=r"broken\.pth"):
        checkpointer.load(str(tmp_path / "broken.pth"))
    checkpointer.save("sound")
    assert checkpointer.load(str(tmp_path / "sound.pth")) == {}
