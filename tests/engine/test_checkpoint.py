"""Checkpoints: those of the authors' repository load whole, and one that is being written is never half there."""

import pytest
import torch
from detectron2.modeling import build_model

from eql_d2.engine.checkpoint import LongTailCheckpointer
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
    checkpointer = LongTailCheckpointer(model, require_classifier=True)
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
    trainer.iter = 0
    trainer.checkpointer.save("model")
    loaded = torch.load(lvis_folder / "output" / "model.pth", weights_only=True)
    assert "roi_heads.box_predictor.cls_score.weight" in loaded["model"] and loaded["trainer"]["iteration"] == 0
