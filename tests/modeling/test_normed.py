"""Normed classifier and mask predictor: mmdetection's numbers, and what they can be combined with."""

import copy

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from eql_d2.modeling.classifier_layer import classifier_layers
from eql_d2.modeling.mask_head import LongTailMaskHead
from eql_d2.modeling.normed import NormedConv2d, NormedLinear
from tests.conftest import ARCHITECTURES, NUM_CLASSES, tiny_config
from tests.engine.test_protocol import changed, protocol_of, stage2, trainer_of
from tests.losses.helpers import golden
from tests.modeling.test_heads import example
from tests.modeling.test_mask_head import CHANNELS, make_regions, training_step

NORMED = ["MODEL.LONG_TAIL.CLASSIFIER", "normed", "MODEL.LONG_TAIL.MASK_PREDICTOR", "normed"]


def assert_rows(actual, expected):
    """Equal to 1e-5 of the largest value of each row: one row is a thousand times smaller than the others."""
    expected = torch.from_numpy(np.asarray(expected)).flatten(1)
    actual = actual.detach().flatten(1)
    assert ((actual - expected).abs() <= 1e-5 * expected.abs().amax(1, keepdim=True)).all()


@pytest.mark.parametrize("prefix, settings", [("", {}), ("half_", {"temperature": 8.0, "power": 0.5, "eps": 1e-3})])
def test_linear_equals_mmdetection(prefix, settings):
    arrays = golden("normed")
    layer = NormedLinear(48, 81, **settings)
    for name in ("temperature", "power", "eps"):
        assert getattr(layer, name) == pytest.approx(float(arrays[prefix + name]))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(arrays["weight"]))
        layer.bias.copy_(torch.from_numpy(arrays["bias"]))
    x = torch.from_numpy(arrays["x"]).requires_grad_()
    output = layer(x)
    output.backward(torch.from_numpy(arrays["upstream_grad"]))
    assert_rows(output, arrays[f"{prefix}output"])
    assert_rows(x.grad, arrays[f"{prefix}grad_x"])
    assert_rows(layer.weight.grad, arrays[f"{prefix}grad_weight"])
    assert_rows(layer.bias.grad[None], arrays[f"{prefix}grad_bias"][None])


def test_convolution_equals_mmdetection():
    arrays = golden("normed")
    layer = NormedConv2d(12, 80)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(arrays["conv_weight"]))
        layer.bias.copy_(torch.from_numpy(arrays["conv_bias"]))
    x = torch.from_numpy(arrays["conv_x"]).requires_grad_()
    output = layer(x)
    output.backward(torch.from_numpy(arrays["conv_upstream_grad"]))
    assert_rows(output, arrays["conv_output"])
    assert_rows(x.grad, arrays["conv_grad_x"])
    assert_rows(layer.weight.grad, arrays["conv_grad_weight"])


def test_norms_are_not_in_half_precision():
    """Features of norm 1e-4 and eps 1e-6: in bfloat16 their sum is 1 % off."""
    layer = NormedLinear(8, 3)
    x = 1e-4 * torch.nn.functional.normalize(torch.ones(2, 8), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        normed = layer.normalize_input(x)
    assert normed.dtype == torch.float32
    torch.testing.assert_close(normed.norm(dim=1), torch.full((2,), 20 / 1.01))


def make_head(num_classes, conv_dims):
    return LongTailMaskHead(
        ShapeSpec(channels=CHANNELS), num_classes=num_classes, conv_dims=conv_dims, normed={"temperature": 20.0}
    )


@pytest.mark.parametrize("num_classes", [7, 1])
def test_mask_head_computes_the_channel_of_the_class(num_classes):
    """The gathered masks, and every gradient, are those of the whole normed layer."""
    head = make_head(num_classes, [8, 8])
    torch.nn.init.normal_(head.predictor.bias)
    whole = copy.deepcopy(head)

    def class_logits(features, classes):
        return whole.predictor(features)[torch.arange(len(classes)), classes].unsqueeze(1)

    whole.class_logits = class_logits
    features, regions = make_regions((3, 0, 2), num_classes)
    results = [training_step(h, features, regions) for h in (head, whole)]
    for actual, expected in zip(results[0][:2], results[1][:2]):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    for name, expected in results[1][2].items():
        torch.testing.assert_close(results[0][2][name], expected, rtol=1e-5, atol=1e-6)
    assert head.predictor.temperature == 20


def test_initial_values():
    """Kaiming by fan-out, as in mmdetection's mask head: a deviation of sqrt(2 / K)."""
    head = make_head(1000, [8])
    assert head.predictor.weight.detach().std().item() == pytest.approx((2 / 1000) ** 0.5, rel=0.05)
    assert (head.predictor.bias == 0).all()


@pytest.mark.parametrize("loss", ["SOFTMAX", "EQL", "BAGS"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trains_and_infers(lvis_folder, architecture, loss):
    cfg = tiny_config(lvis_folder, architecture, loss, *NORMED, "MODEL.LONG_TAIL.NORMED.TEMPERATURE", 30.0)
    model = build_model(cfg).train()
    for _, predictor in classifier_layers(model):
        assert isinstance(predictor.cls_score, NormedLinear) and predictor.cls_score.temperature == 30
        assert torch.equal(predictor.cls_score.bias, predictor.classifier_loss.initial_bias())
        assert 0.005 < predictor.cls_score.weight.std() < 0.02
    assert isinstance(model.roi_heads.mask_head.predictor, NormedConv2d)
    with EventStorage():
        losses = model([example({"positive": [0], "negative": [3]}), example(classes=())])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if "cls_score" in name or "mask_head.predictor" in name:
            assert parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        instances = model.eval()([example()])[0]["instances"]
    assert torch.isfinite(instances.scores).all() and instances.pred_masks.shape[1:] == (64, 64)


def normed_weights(folder, *opts):
    model = Trainer.build_model(tiny_config(folder, "Mask-R-CNN-FPN", "SOFTMAX", *NORMED, *opts))
    path = folder / "normed.pth"
    torch.save({"model": model.state_dict()}, path)
    return path


@pytest.mark.parametrize("trainable", ["classifier", "scale"])
def test_second_stages(lvis_folder, trainable):
    """The classifier alone, or its scale, is trained from normed weights; the scale is of the cosine alone."""
    weights = normed_weights(lvis_folder)
    opts = [*NORMED, *protocol_of(trainable)]
    trainer = trainer_of(stage2(lvis_folder, weights, "Mask-R-CNN-FPN", "SOFTMAX", *opts))
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    parts = {"classifier": ("cls_score.weight", "cls_score.bias"), "scale": ("cls_scale",)}[trainable]
    assert changed(before, trainer.model) == {f"roi_heads.box_predictor.{part}" for part in parts}
    if trainable == "scale":
        predictor = trainer.model.roi_heads.box_predictor
        torch.nn.init.normal_(predictor.cls_score.bias)
        features, layer = torch.rand(3, 32), predictor.cls_score
        cosine = torch.nn.functional.cosine_similarity(features[:, None], layer.weight[None], dim=2)
        expected = predictor.cls_scale * 20 * cosine + layer.bias
        torch.testing.assert_close(predictor(features)[0], expected, rtol=1e-4, atol=1e-4)
        plain = Trainer.build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX", *NORMED))
        with pytest.raises(InputError, match="cannot become part of a normed classifier"):
            plain.load_state_dict(trainer.model.state_dict())


def test_weights_of_the_other_kind_are_refused(lvis_folder):
    normed = normed_weights(lvis_folder)
    linear = lvis_folder / "linear.pth"
    model = Trainer.build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX"))
    torch.save({"model": model.state_dict()}, linear)
    for weights, opts, words in (
        (normed, [], r"cls_score: the weights are those of a normed layer; set MODEL.LONG_TAIL.CLASSIFIER normed"),
        (normed, NORMED[:2], r"predictor: .* set MODEL.LONG_TAIL.MASK_PREDICTOR normed"),
        (linear, NORMED, r"cls_score.weight: the layer is normed .* those of a linear layer"),
        (normed, [*NORMED, "MODEL.LONG_TAIL.NORMED.TEMPERATURE", 10.0], r"temperature 10, but .* temperature 20"),
        (normed, [*NORMED, "MODEL.LONG_TAIL.NORMED.MASK_TEMPERATURE", 5.0], r"predictor.weight: .* temperature 5"),
    ):
        model = Trainer.build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX", *opts))
        with pytest.raises(InputError, match=words):
            LongTailCheckpointer(model).load(str(weights))
    # A classifier that is trained anew may be of another kind.
    reset = ["MODEL.LONG_TAIL.INIT_CLASSIFIER", "reset", "MODEL.LONG_TAIL.TRAINABLE", "classifier"]
    trainer_of(stage2(lvis_folder, linear, "Mask-R-CNN-FPN", "SOFTMAX", *NORMED[:2], *reset))


@pytest.mark.parametrize(
    "opts, words",
    [
        (["CLASSIFIER", "cosine"], "CLASSIFIER is 'cosine'; there are 'linear', 'normed'"),
        (["MASK_PREDICTOR", "conv"], "MASK_PREDICTOR is 'conv'; there are 'linear', 'normed'"),
        (["CLASSIFIER", "normed", "TAU_NORM.TAU", 0.5], "equally long"),
        (["CLASSIFIER", "normed", "NORMED.TEMPERATURE", 0.0], "temperature of a normed layer is 0"),
        (["MASK_PREDICTOR", "normed", "NORMED.EPS", -1.0], "EPS of a normed layer is -1"),
    ],
)
def test_bad_settings(lvis_folder, opts, words):
    opts = [f"MODEL.LONG_TAIL.{x}" if i % 2 == 0 else x for i, x in enumerate(opts)]
    with pytest.raises(InputError, match=words):
        build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX", *opts))


def test_linear_layers_have_no_temperature(lvis_folder):
    """The parameters of a model without the settings are those that they were."""
    state = build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX")).state_dict()
    assert not any("temperature" in name or "cls_scale" in name for name in state)
    assert state["roi_heads.box_predictor.cls_score.weight"].shape[0] == NUM_CLASSES + 1
