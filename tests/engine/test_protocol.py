"""Training a part of the model: what stays as it is, and where the classifier starts."""

import copy
import re

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from eql_d2.engine import argument_parser
from eql_d2.engine import setup as setup_run
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.trainer import Trainer, run
from eql_d2.errors import InputError
from eql_d2.modeling.classifier_layer import classifier_layers
from tests.conftest import ARCHITECTURES, tiny_config
from tests.modeling.test_heads import example

TRAINED = {
    "box_head": r"\.box_head\.|\.(cls_score|bbox_pred)\.(weight|bias)$",
    "predictors": r"^proposal_generator\.|\.mask_head\.|\.(cls_score|bbox_pred)\.(weight|bias)$",
    "classifier": r"\.cls_score\.(weight|bias)$",
    "scale": r"\.cls_scale$",
}
LOSS_STATE = r"\.classifier_loss\."


def trained_weights(folder, architecture="Mask-R-CNN-FPN", loss="SOFTMAX", *opts):
    """Save the weights of a model whose batch norm has seen images; return the file."""
    torch.manual_seed(7)
    cfg = tiny_config(folder, architecture, loss, *opts)
    model = Trainer.build_model(cfg).train()
    with EventStorage():
        model([example(), example(classes=(1,), seed=1)])
    for _, predictor in classifier_layers(model):
        nn.init.normal_(predictor.cls_score.bias)
    path = folder / f"{architecture}_{loss}.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


def stage2(folder, weights, architecture="Mask-R-CNN-FPN", loss="EQL_V2", *opts):
    return tiny_config(folder, architecture, loss, "MODEL.WEIGHTS", str(weights), "SOLVER.IMS_PER_BATCH", 2, *opts)


def trainer_of(cfg, resume=False):
    setup_like_the_tool(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def setup_like_the_tool(cfg):
    path = f"{cfg.OUTPUT_DIR}.yaml"
    with open(path, "w") as file:
        file.write(cfg.dump())
    setup_run(argument_parser().parse_args(["--config-file", path]))


def changed(before, model):
    after = model.state_dict()
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def protocol_of(trainable):
    reset = ["MODEL.LONG_TAIL.INIT_CLASSIFIER", "reset"] if trainable == "classifier" else []
    return ["MODEL.LONG_TAIL.TRAINABLE", trainable, *reset]


@pytest.mark.parametrize("trainable", TRAINED)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_else_moves(lvis_folder, architecture, trainable):
    """After training, with weight decay, evaluation in between and dropout in the box head, all parameters and buffers
    but the trained ones and the loss's own state are what they were, to the bit."""
    loss = "EQL_V2" if trainable == "classifier" else "SOFTMAX"
    weights = trained_weights(lvis_folder, architecture)
    cfg = stage2(lvis_folder, weights, architecture, loss, *protocol_of(trainable), "TEST.EVAL_PERIOD", 2)
    trainer = trainer_of(cfg)
    model = trainer.model
    before = copy.deepcopy(model.state_dict())
    trainer.train()
    moved = changed(before, model)
    stages = 3 if architecture.startswith("Cascade") else 1
    trained = {name for name in before if re.search(TRAINED[trainable], name)}
    head = {name for name in before if ".box_head." in name}
    layers = {name for name in trained - head if ".box_predictor." in name}
    assert len(layers) == stages * {"box_head": 4, "predictors": 4, "classifier": 2, "scale": 1}[trainable]
    assert (trained & head == head) == (trainable == "box_head" or not head)
    assert trained <= moved
    assert all(re.search(LOSS_STATE, name) for name in moved - trained), moved
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if trainable == "classifier":
        assert moved - trained  # EQL v2 did accumulate gradients


@pytest.mark.parametrize("trainable", TRAINED)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_trains_nothing_is_not_computed(lvis_folder, architecture, trainable, monkeypatch):
    """No loss of a frozen part, but the same sampled regions, gradients and random numbers afterwards, to the bit."""
    torch.manual_seed(3)
    model = Trainer.build_model(tiny_config(lvis_folder, architecture, "SOFTMAX", *protocol_of(trainable))).train()
    steps = []
    for skips in (True, False):
        if not skips:
            for name in ("box_predictor", "roi_heads", "ignored"):
                monkeypatch.setattr(f"eql_d2.modeling.{name}.is_frozen", lambda module: False)
        torch.manual_seed(0)
        model.zero_grad()
        with EventStorage():
            losses = model([example(), example(classes=(1,), seed=1)])
        sum(losses.values()).backward()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.requires_grad]
        steps.append((losses, gradients, torch.get_rng_state()))
    (skipping, gradients, state), (whole, expected, expected_state) = steps
    trained = {"box_head": "cls|box_reg", "predictors": ".*"}.get(trainable, "cls")
    assert set(skipping) == {name for name in whole if re.fullmatch(rf"loss_({trained})(_stage\d)?", name)}
    assert {"loss_mask", "loss_rpn_cls", "loss_rpn_loc"} < set(whole)
    assert all(torch.equal(value, whole[name]) for name, value in skipping.items())
    assert all(map(torch.equal, gradients, expected)) and torch.equal(state, expected_state)


def test_all_moves_by_default(lvis_folder):
    """The check above can fail: without freezing, backbone, statistics of batch norm and box regression move."""
    trainer = trainer_of(stage2(lvis_folder, trained_weights(lvis_folder), loss="SOFTMAX"))
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    moved = changed(before, trainer.model)
    for part in ("running_mean", "bbox_pred.weight", "rpn_head.conv.weight", "mask_head", "cls_score.weight"):
        assert any(part in name for name in moved), part


def test_frozen_layers_stay_in_evaluation_mode(lvis_folder):
    cfg = stage2(lvis_folder, trained_weights(lvis_folder), "Mask-R-CNN-FPN", "EQL_V2", *protocol_of("classifier"))
    model = trainer_of(cfg).model
    for mode in (model, model.roi_heads, model.backbone, *model.backbone.modules()):
        mode.train()
    assert model.training and model.roi_heads.training and model.proposal_generator.training
    layers = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert layers and not any(layer.training for layer in layers)
    assert model.roi_heads.box_predictor.cls_score.training
    assert model.roi_heads.box_predictor.classifier_loss.training
    assert not model.eval().training


def test_dropout_is_off(lvis_folder, monkeypatch):
    build_model = Trainer.__mro__[1].build_model.__func__

    def with_dropout(cls, cfg):
        model = build_model(cls, cfg)
        model.roi_heads.box_head.add_module("dropout", nn.Dropout(0.5))
        return model

    monkeypatch.setattr(Trainer.__mro__[1], "build_model", classmethod(with_dropout))
    outputs = {}
    for trainable in ("all", "classifier"):
        model = Trainer.build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX", *protocol_of(trainable)))
        features = torch.rand(2, 16, 7, 7)
        outputs[trainable] = [model.train().roi_heads.box_head(features) for _ in range(2)]
    assert torch.equal(*outputs["classifier"])
    assert not torch.equal(*outputs["all"])


@pytest.mark.parametrize("trainable", TRAINED)
def test_the_optimizer_has_the_trained_parameters_alone(lvis_folder, trainable):
    weights = trained_weights(lvis_folder)
    trainer = trainer_of(stage2(lvis_folder, weights, "Mask-R-CNN-FPN", "SOFTMAX", *protocol_of(trainable)))
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    optimized = [names[id(p)] for group in trainer.optimizer.param_groups for p in group["params"]]
    assert optimized and all(re.search(TRAINED[trainable], name) for name in optimized)


def test_keep_loads_the_classifier(lvis_folder):
    weights = trained_weights(lvis_folder)
    saved = torch.load(weights)["model"]
    cfg = stage2(lvis_folder, weights, "Mask-R-CNN-FPN", "ACSL", "MODEL.LONG_TAIL.TRAINABLE", "classifier")
    layer = trainer_of(cfg).model.roi_heads.box_predictor.cls_score
    assert torch.equal(layer.weight, saved["roi_heads.box_predictor.cls_score.weight"])
    assert torch.equal(layer.bias, saved["roi_heads.box_predictor.cls_score.bias"])


@pytest.mark.parametrize("architecture", ["Mask-R-CNN-FPN", "Cascade-Mask-R-CNN-FPN"])
def test_reset_starts_anew(lvis_folder, architecture):
    """Classifier and state of the loss are new although those in the weights fit; all else is loaded."""
    stage1 = trained_weights(lvis_folder, architecture, "EQL_V2")
    saved = torch.load(stage1)["model"]
    cfg = stage2(lvis_folder, stage1, architecture, "EQL_V2", *protocol_of("classifier"))
    model = trainer_of(cfg).model
    for name, value in model.state_dict().items():
        if ".cls_score." not in name and ".classifier_loss." not in name:
            assert torch.equal(value, saved[name]), name
    for name, predictor in classifier_layers(model):
        assert torch.equal(predictor.cls_score.bias, predictor.classifier_loss.initial_bias())
        assert not torch.equal(predictor.cls_score.weight, saved[f"{name}.cls_score.weight"])
        assert 0.005 < predictor.cls_score.weight.std() < 0.02
        state = predictor.classifier_loss.state_dict()
        assert any(saved[f"{name}.classifier_loss.{key}"].abs().sum() > 0 for key in state)
        assert all(value.abs().sum() == 0 for key, value in state.items())


def test_a_resumed_second_stage_has_its_own_classifier(lvis_folder):
    opts = protocol_of("classifier")
    cfg = stage2(lvis_folder, trained_weights(lvis_folder), "Mask-R-CNN-FPN", "EQL_V2", *opts, "SOLVER.MAX_ITER", 2)
    first = trainer_of(cfg)
    first.train()
    cfg.SOLVER.MAX_ITER = 4
    second = trainer_of(cfg, resume=True)
    assert second.start_iter == 2
    assert not changed(first.model.state_dict(), second.model)
    assert first.model.roi_heads.box_predictor.cls_score.weight.std() > 0
    before = copy.deepcopy(second.model.state_dict())
    second.train()
    assert "roi_heads.box_predictor.cls_score.weight" in changed(before, second.model)


def error_of_start(cfg):
    with pytest.raises(InputError) as caught:
        trainer_of(cfg)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("trainable", ["all", "classifier"])
def test_keep_needs_a_classifier_that_fits(lvis_folder, trainable):
    weights = trained_weights(lvis_folder)
    cfg = stage2(lvis_folder, weights, "Mask-R-CNN-FPN", "EQL", "MODEL.LONG_TAIL.TRAINABLE", trainable)
    message = error_of_start(cfg)
    assert "cls_score.weight is [6, 32] in MODEL.WEIGHTS" in message and "and [5, 32] in the model" in message
    assert "LOSS EQL" in message and "INIT_CLASSIFIER reset" in message


def test_frozen_parts_must_be_in_the_weights(lvis_folder):
    content = torch.load(trained_weights(lvis_folder))
    content["model"] = {k: v for k, v in content["model"].items() if not k.startswith("roi_heads.box_head.fc2")}
    path = lvis_folder / "part.pth"
    torch.save(content, path)
    message = error_of_start(stage2(lvis_folder, path, "Mask-R-CNN-FPN", "EQL_V2", *protocol_of("classifier")))
    assert "part.pth has no roi_heads.box_head.fc2" in message
    content["model"] = {k: v for k, v in content["model"].items() if k.startswith("backbone")}
    torch.save(content, path)
    trainer_of(stage2(lvis_folder, path, "Mask-R-CNN-FPN", "EQL_V2"))  # fine where all is trained


@pytest.mark.parametrize("trainable", TRAINED)
def test_keep_needs_a_classifier_in_the_weights(lvis_folder, trainable):
    content = torch.load(trained_weights(lvis_folder))
    content["model"] = {k: v for k, v in content["model"].items() if ".cls_score." not in k}
    path = lvis_folder / "headless.pth"
    torch.save(content, path)
    cfg = stage2(lvis_folder, path, "Mask-R-CNN-FPN", "SOFTMAX", "MODEL.LONG_TAIL.TRAINABLE", trainable)
    assert "has no roi_heads.box_predictor.cls_score.weight" in error_of_start(cfg)


@pytest.mark.parametrize(
    "opts, words",
    [
        (["TRAINABLE", "head"], ["TRAINABLE is 'head'", "'all', 'box_head', 'predictors', 'classifier', 'scale'"]),
        (["INIT_CLASSIFIER", "new"], ["INIT_CLASSIFIER is 'new'", "'keep', 'reset', 'match'"]),
        (["TRAINABLE", "scale", "INIT_CLASSIFIER", "reset"], ["'scale'", "must then be 'keep'"]),
        (["TRAINABLE", "classifier"], ["'classifier'", "MODEL.WEIGHTS is empty", "eql-d2 train-two-stage"]),
        (["TAU_NORM.TAU", 1.5], ["TAU_NORM.TAU is 1.5", "between 0 and 1"]),
    ],
)
def test_bad_values(lvis_folder, opts, words):
    opts = [f"MODEL.LONG_TAIL.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    message = error_of_start(stage2(lvis_folder, "", "Mask-R-CNN-FPN", "SOFTMAX", *opts))
    assert all(word in message for word in words), message


def test_only_heads_of_this_package(lvis_folder):
    cfg = stage2(lvis_folder, "", "Mask-R-CNN-FPN", "SOFTMAX", "MODEL.LONG_TAIL.TRAINABLE", "classifier")
    cfg.merge_from_list(["MODEL.META_ARCHITECTURE", "GeneralizedRCNN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"])
    with pytest.raises(InputError, match=r"MODEL\.ROI_HEADS\.NAME"):
        Trainer.build_model(cfg)


@pytest.mark.parametrize("scales_bias", [False, True])
def test_scale_of_lws(lvis_folder, scales_bias):
    """The factors start at 1, multiply the weights, with SCALE_BIAS the bias too, are saved, and become part of a
    classifier without factors."""
    weights = trained_weights(lvis_folder)
    opts = [*protocol_of("scale"), "MODEL.LONG_TAIL.LWS.SCALE_BIAS", scales_bias]
    cfg = stage2(lvis_folder, weights, "Mask-R-CNN-FPN", "SOFTMAX", *opts)
    trainer = trainer_of(cfg)
    predictor = trainer.model.roi_heads.box_predictor
    assert predictor.cls_scale.shape == (6,) and (predictor.cls_scale == 1).all()
    trainer.train()
    assert (predictor.cls_scale != 1).all()
    features = torch.rand(3, 32)
    logits, _ = predictor(features)
    weight, bias, scale = predictor.cls_score.weight, predictor.cls_score.bias, predictor.cls_scale
    expected = scale * (features @ weight.T) + (scale * bias if scales_bias else bias)
    torch.testing.assert_close(logits, expected)
    assert bias.abs().min() > 0

    plain = Trainer.build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX"))
    final = f"{cfg.OUTPUT_DIR}/model_final.pth"
    LongTailCheckpointer(plain, require_all=True).load(final)
    assert plain.roi_heads.box_predictor.cls_scale is None
    torch.testing.assert_close(plain.roi_heads.box_predictor(features)[0], logits)
    scaled = Trainer.build_model(cfg)
    LongTailCheckpointer(scaled, require_all=True).load(final)
    assert torch.equal(scaled.roi_heads.box_predictor.cls_scale, predictor.cls_scale)

    cfg.MODEL.LONG_TAIL.LWS.SCALE_BIAS = not scales_bias
    with pytest.raises(InputError, match=f"learnt with MODEL.LONG_TAIL.LWS.SCALE_BIAS {scales_bias}; set it so"):
        LongTailCheckpointer(Trainer.build_model(cfg)).load(final)


def test_old_checkpoints_of_lws_scaled_the_bias(lvis_folder):
    cfg = stage2(lvis_folder, "", "Mask-R-CNN-FPN", "SOFTMAX", *protocol_of("scale"))
    cfg.MODEL.LONG_TAIL.LWS.SCALE_BIAS = True
    model = Trainer.build_model(cfg)
    predictor = model.roi_heads.box_predictor
    nn.init.normal_(predictor.cls_scale)
    nn.init.normal_(predictor.cls_score.bias)
    state = {name: value for name, value in model.state_dict().items() if not name.endswith("cls_scale_of_bias")}
    path = lvis_folder / "old.pth"
    torch.save({"model": state}, path)
    features = torch.rand(3, 32)
    for trainable in ("scale", "all"):
        cfg.MODEL.LONG_TAIL.TRAINABLE = trainable
        again = Trainer.build_model(cfg)
        LongTailCheckpointer(again, require_all=True).load(str(path))
        torch.testing.assert_close(again.roi_heads.box_predictor(features)[0], predictor(features)[0])
    cfg.MODEL.LONG_TAIL.LWS.SCALE_BIAS, cfg.MODEL.LONG_TAIL.TRAINABLE = False, "scale"
    with pytest.raises(InputError, match="SCALE_BIAS True; set it so"):
        LongTailCheckpointer(Trainer.build_model(cfg)).load(str(path))


def test_evaluation_of_a_stage(lvis_folder):
    """--eval-only takes the classifier of the weights, whatever INIT_CLASSIFIER says."""
    weights = trained_weights(lvis_folder, loss="EQL_V2")
    cfg = stage2(lvis_folder, weights, "Mask-R-CNN-FPN", "EQL_V2", *protocol_of("classifier"))
    path = lvis_folder / "config.yaml"
    path.write_text(cfg.dump())
    args = argument_parser().parse_args(["--config-file", str(path), "--eval-only"])
    seen = []
    test = Trainer.test
    try:
        Trainer.test = classmethod(lambda cls, cfg, model: seen.append(model) or {})
        run(setup_run(args), args)
    finally:
        Trainer.test = test
    saved = torch.load(weights)["model"]["roi_heads.box_predictor.cls_score.weight"]
    assert torch.equal(seen[0].roi_heads.box_predictor.cls_score.weight, saved)
