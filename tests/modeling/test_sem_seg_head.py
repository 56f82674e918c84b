"""Semantic segmentation: which losses serve pixels, and that a loss image by image is that of all pixels together."""

import copy

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import SemanticSegmentor, build_model
from detectron2.modeling.meta_arch.semantic_seg import SemSegFPNHead
from detectron2.solver import build_optimizer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from eql_d2.engine.protocol import freeze
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from eql_d2.losses import default_settings
from eql_d2.modeling import sem_seg_head
from eql_d2.modeling.sem_seg_head import PixelClassifier
from eql_d2.modeling.statistics import STATISTICS_PERIOD
from tests.conftest import NUM_CLASSES, tiny_config
from tests.engine.ranks import run_ranks
from tests.losses.helpers import make_loss
from tests.losses.slow import SLOW_LOSSES

SERVING = ["BALANCED_SOFTMAX", "CLASS_BALANCED", "EQL", "IIF", "INVERSE_FREQUENCY", "SEESAW", "SEQL", "SIGMOID",
           "SOFTMAX", "SOFTMAX_EQL"]  # fmt: skip
REFUSED = ["ACSL", "BAGS", "DROPLOSS", "ECM", "EFL", "EQFL", "EQL_V2", "FEDERATED", "FOCAL", "GOL", "LDAM", "LOCE"]
IGNORED = 255
#: Of losses by hand. SEQL's draws differ from call to call: with gamma 1 all of them come out the same.
SETTINGS = {"background": False, "category_agnostic": False, "gamma": 1.0}
WITHOUT_EXTRA_COLUMN = ["MODEL.LONG_TAIL.EQL_V2.CATEGORY_AGNOSTIC", False]


def config(folder, loss="SOFTMAX", *opts):
    """A segmentation network of few channels for 64-pixel images."""
    cfg = tiny_config(folder, "SemSeg-FPN", loss, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 8, "MODEL.SEM_SEG_HEAD.NORM", "")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = NUM_CLASSES
    cfg.merge_from_list([*(WITHOUT_EXTRA_COLUMN if loss == "EQL_V2" else []), *opts])
    return cfg


def deeplab_config(folder, head, loss="SOFTMAX"):
    """The same on a ResNet, by one of the DeepLab heads."""
    features = ["res2", "res5"] if "Plus" in head else ["res5"]
    opts = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", features]
    opts += ["MODEL.SEM_SEG_HEAD.NAME", head, "MODEL.SEM_SEG_HEAD.IN_FEATURES", features]
    opts += ["MODEL.SEM_SEG_HEAD.ASPP_CHANNELS", 8, "MODEL.SEM_SEG_HEAD.ASPP_DROPOUT", 0.0]
    opts += ["MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 4 if len(features) == 2 else 32]
    return config(folder, loss, *opts)


def example(seed=0, size=64, ignored=0.3, labels=None):
    """What the mapper gives for one image, with classes of unlike sizes and pixels without a label."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 255, (3, size, size), generator=generator, dtype=torch.uint8)
    chance = torch.rand(size, size, generator=generator)
    sem_seg = (chance[:, :, None] > torch.tensor([0.5, 0.8, 0.9, 0.97])).sum(2)
    sem_seg[torch.rand(size, size, generator=generator) < ignored] = IGNORED
    found = {"image": image, "sem_seg": sem_seg, "height": size, "width": size}
    if labels is not None:
        found["image_labels"] = {key: torch.tensor(value, dtype=torch.int64) for key, value in labels.items()}
    return found


def train_step(model, batch):
    """The loss of one step after its backward."""
    model.zero_grad()
    with EventStorage():
        losses = model.train()(batch)
    sum(losses.values()).backward()
    return {name: float(value.detach()) for name, value in losses.items()}


@pytest.mark.parametrize("loss", [*SERVING, "EQL_V2"])
def test_every_serving_loss_trains_and_segments(lvis_folder, loss):
    model = build_model(config(lvis_folder, loss))
    assert isinstance(model, SemanticSegmentor)
    losses = train_step(model, [example(0), example(1)])
    assert set(losses) == {"loss_sem_seg"} and 0 < losses["loss_sem_seg"] < 20
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        (output,) = model.eval()([{**example(), "height": 96, "width": 128}])
    assert output["sem_seg"].shape == (NUM_CLASSES, 96, 128)
    assert output["sem_seg"].min() >= 0 and output["sem_seg"].max() <= 1


@pytest.mark.parametrize("loss", REFUSED)
def test_a_loss_that_cannot_serve_is_refused_by_name(lvis_folder, loss):
    with pytest.raises(InputError, match=loss) as caught:
        build_model(config(lvis_folder, loss, "MODEL.LONG_TAIL.EQL_V2.CATEGORY_AGNOSTIC", True))
    assert "never background" in str(caught.value) or f"trained with {', '.join(SERVING)}." in str(caught.value)


def test_a_regulariser_is_refused(lvis_folder):
    with pytest.raises(InputError, match=r"REGULARIZER.NAME is 'ROG'"):
        build_model(config(lvis_folder, "SIGMOID", "MODEL.LONG_TAIL.REGULARIZER.NAME", "ROG"))


class _Head(PixelClassifier, torch.nn.Module):
    """The classifier alone, on features that are given."""

    common_stride, ignore_value, loss_weight = 4, IGNORED, 2.0

    def __init__(self, loss):
        super().__init__()
        self.predictor = torch.nn.Conv2d(7, 1, 1)
        self.add_pixel_classifier(loss)

    def layers(self, features):
        return features


def head_of(name):
    """The classifier with a loss of long-tailed counts, and weights that differ from class to class, in float64."""
    settings = {key: value for key, value in SETTINGS.items() if key in default_settings(name)}
    torch.manual_seed(0)
    head = _Head(make_loss(name, NUM_CLASSES, **settings))
    torch.nn.init.normal_(head.cls_score.weight)
    torch.nn.init.normal_(head.cls_score.bias)
    return head.double()


#: One image of many labelled pixels, one of few, one of none.
BATCH = torch.stack([example(i, 16, ignored=share)["sem_seg"] for i, share in enumerate((0.3, 0.95, 1.0))])


@pytest.mark.parametrize("verified", [False, True])
@pytest.mark.parametrize("name", [*SERVING, "EQL_V2"])
def test_loss_gradient_and_state_equal_a_slow_loop_over_pixels(name, verified):
    """Upsampled in one piece, labelled pixels gathered one by one, all of them in one step; three steps."""
    head, state = head_of(name), {}
    generator = torch.Generator().manual_seed(3)
    rows = torch.rand(3, NUM_CLASSES, generator=generator) > 0.5
    image, row, column = (BATCH != IGNORED).nonzero().unbind(1)
    labels = BATCH[image, row, column].tolist()
    for _ in range(3):
        features = torch.randn(3, 7, 4, 4, generator=generator, dtype=torch.float64, requires_grad=True)
        before = copy.deepcopy(head.classifier_loss)
        head.verified = rows if verified else None
        with EventStorage():
            _, losses = head(features, BATCH)
        (found,) = torch.autograd.grad(losses["loss_sem_seg"], features)

        logits = F.conv2d(features, head.cls_score.weight[:, :, None, None], head.cls_score.bias)
        logits = F.interpolate(logits, scale_factor=4, mode="bilinear", align_corners=False)
        pixels = torch.stack([logits[place] for place in zip(image, [slice(None)] * len(image), row, column)])
        expected = SLOW_LOSSES[name](before, state, pixels, labels, rows[image] if verified else None)
        gradient, at_pixels = torch.autograd.grad(expected, [features, pixels])
        torch.testing.assert_close(losses["loss_sem_seg"] / head.loss_weight, expected, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(found / head.loss_weight, gradient, rtol=1e-6, atol=1e-9)
        assert found[0].any() and found[1].any() and not found[2].any()
        if "update" in state:
            state["update"](at_pixels.tolist(), labels)
            for key in ("pos_grad", "neg_grad"):
                expected_sum = torch.tensor(state[key], dtype=torch.float64)
                torch.testing.assert_close(getattr(head.classifier_loss, key), expected_sum, rtol=1e-9, atol=1e-12)
    assert len(head.classifier_loss._gt_classes) == len(labels)  # the statistics are of all parts


@pytest.mark.parametrize("name", REFUSED)
def test_other_losses_do_not_take_a_step_in_parts(name):
    loss = make_loss(name, NUM_CLASSES)
    if name in ("ECM", "EQL_V2"):  # refused for their columns alone
        assert loss.regions_are_independent and loss.has_background_logits
    else:
        with pytest.raises(ValueError, match="in one call"), loss.in_parts(torch.zeros(1, dtype=torch.int64)):
            pass


@pytest.mark.parametrize("name", ["SOFTMAX", "SOFTMAX_EQL"])
def test_a_batch_without_labels(name):
    head = head_of(name)
    features = torch.randn(1, 7, 4, 4, dtype=torch.float64, requires_grad=True)
    with EventStorage():
        loss = head(features, BATCH[2:])[1]["loss_sem_seg"]
    assert loss == 0 and not torch.autograd.grad(loss, features)[0].any()


STATEFUL = ("SOFTMAX_EQL", "EQL_V2", "SEESAW")


def train_on(images, steps=3):
    """Return the loss of the last of some steps on some images of the batch, and the state of the loss, by its name."""
    generator = torch.Generator().manual_seed(5)
    found = {}
    for name in STATEFUL:
        head = head_of(name)
        for _ in range(steps):
            features = torch.randn(3, 7, 4, 4, generator=generator, dtype=torch.float64)
            with EventStorage():
                loss = head(features[images], BATCH[images])[1]["loss_sem_seg"]
        found[name] = {"loss": loss.detach(), **head.classifier_loss.state_dict()}
    return found


def train_as_rank(folder, images):
    """Train on a rank's own images and keep what came out."""
    rank = comm.get_rank()
    torch.save(train_on(images[rank]), f"{folder}/{rank}.pth")


def test_two_processes_keep_the_state_of_one(tmp_path):
    """Each on images of its own, one of them without a labelled pixel at all."""
    run_ranks(train_as_rank, 2, tmp_path / "meeting", str(tmp_path), [[0, 1], [2]])
    expected = train_on([0, 1, 2])
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pth")
        for name in STATEFUL:
            loss = found[name].pop("loss")
            assert (loss == 0) == (rank == 1)
            assert found[name].keys() == expected[name].keys() - {"loss"} and found[name]
            for key, value in found[name].items():
                torch.testing.assert_close(value, expected[name][key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("label", [NUM_CLASSES, -1])
def test_a_label_that_is_no_class(label):
    targets = BATCH[:1].clone()
    targets[0, 3, 5] = label
    with EventStorage(), pytest.raises(InputError, match=rf"label {label}; there are 0 to 4 .* and 255"):
        head_of("SOFTMAX")(torch.randn(1, 7, 4, 4).double(), targets)


def test_softmax_equals_detectron2_s_head(lvis_folder):
    """Loss, gradients and scores of the same weights, the classifier's as a 1 x 1 convolution."""
    model = build_model(config(lvis_folder))
    torch.nn.init.normal_(model.sem_seg_head.cls_score.weight)  # so that logits differ
    batch = [example(0), example(1)]
    found = train_step(model, batch)["loss_sem_seg"]
    cfg = config(lvis_folder, "SOFTMAX", "MODEL.META_ARCHITECTURE", "SemanticSegmentor")
    cfg.MODEL.SEM_SEG_HEAD.NAME = "SemSegFPNHead"
    theirs = build_model(cfg)
    assert type(theirs.sem_seg_head) is SemSegFPNHead
    state = dict(model.state_dict())
    state["sem_seg_head.predictor.weight"] = state.pop("sem_seg_head.cls_score.weight")[:, :, None, None]
    state["sem_seg_head.predictor.bias"] = state.pop("sem_seg_head.cls_score.bias")
    theirs.load_state_dict(state)
    assert found == pytest.approx(train_step(theirs, batch)["loss_sem_seg"], rel=1e-6)
    gradients = {name: p.grad.flatten() for name, p in model.named_parameters()}
    for name, parameter in theirs.named_parameters():
        expected = parameter.grad.flatten()
        assert (gradients[name.replace("predictor", "cls_score")] - expected).norm() <= 1e-4 * expected.norm(), name
    theirs.load_state_dict(state)  # batch norm has seen another batch
    with torch.no_grad():
        (scores,), (logits,) = ([x["sem_seg"] for x in m.eval()(batch[:1])] for m in (model, theirs))
    torch.testing.assert_close(scores, logits.softmax(0), rtol=1e-5, atol=1e-6)


def test_scores_do_not_depend_on_how_many_are_computed_at_once(lvis_folder, monkeypatch):
    model = build_model(config(lvis_folder, "SIGMOID")).eval()
    with torch.no_grad():
        whole = model([example()])[0]["sem_seg"]
        monkeypatch.setattr(sem_seg_head, "SCORES_AT_ONCE", 100)
        torch.testing.assert_close(model([example()])[0]["sem_seg"], whole, rtol=1e-6, atol=1e-6)


def test_image_level_labels_exempt_the_classes_of_their_image(lvis_folder):
    """EQL spares tail classes but where an image verifies them: with all verified it is the sigmoid loss."""
    model = build_model(config(lvis_folder, "EQL"))
    everything = {"positive": [0, 1, 2], "negative": [3, 4]}
    spared = train_step(model, [example(0), example(1)])["loss_sem_seg"]
    one = train_step(model, [example(0, labels=everything), example(1)])["loss_sem_seg"]
    both = train_step(model, [example(0, labels=everything), example(1, labels=everything)])["loss_sem_seg"]
    assert spared < one < both
    plain = build_model(config(lvis_folder, "SIGMOID"))
    plain.load_state_dict(model.state_dict())
    assert both == pytest.approx(train_step(plain, [example(0), example(1)])["loss_sem_seg"], rel=1e-6)


@pytest.mark.parametrize("head", ["LongTailDeepLabV3Head", "LongTailDeepLabV3PlusHead"])
@pytest.mark.parametrize("loss", ["SOFTMAX", "SEESAW", "EQL"])
def test_deeplab_heads(lvis_folder, head, loss):
    model = build_model(deeplab_config(lvis_folder, head, loss))
    assert type(model.sem_seg_head).__name__ == head
    assert train_step(model, [example(0), example(1)])["loss_sem_seg"] > 0
    with torch.no_grad():
        assert model.eval()([example()])[0]["sem_seg"].shape == (NUM_CLASSES, 64, 64)


@pytest.mark.parametrize("head", ["DeepLabV3Head", "DeepLabV3PlusHead"])
def test_softmax_equals_detectron2_s_deeplab_heads(lvis_folder, head):
    model = build_model(deeplab_config(lvis_folder, f"LongTail{head}"))
    cfg = deeplab_config(lvis_folder, head)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.LOSS_TYPE = "SemanticSegmentor", "cross_entropy"
    theirs = build_model(cfg)
    state = dict(model.state_dict())
    state["sem_seg_head.predictor.weight"] = state.pop("sem_seg_head.cls_score.weight")[:, :, None, None]
    state["sem_seg_head.predictor.bias"] = state.pop("sem_seg_head.cls_score.bias")
    theirs.load_state_dict(state)
    batch = [example(0), example(1)]
    assert train_step(model, batch)["loss_sem_seg"] == pytest.approx(
        train_step(theirs, batch)["loss_sem_seg"], rel=1e-6
    )


@pytest.mark.parametrize(
    "name, trained",
    [("classifier", {"weight", "bias"}), ("scale", {"cls_scale"})],
)
def test_the_classifier_alone_can_be_trained(lvis_folder, name, trained):
    model = build_model(config(lvis_folder, "SOFTMAX", "MODEL.LONG_TAIL.TRAINABLE", name))
    freeze(model, name)
    found = {key.rsplit(".", 1)[1] for key, p in model.named_parameters() if p.requires_grad}
    assert found == trained
    train_step(model, [example()])


def test_there_is_no_box_head_to_train(lvis_folder):
    with pytest.raises(InputError, match="box_head"):
        freeze(build_model(config(lvis_folder)), "box_head")


def test_calibration_and_tau_normalisation_change_the_scores(lvis_folder):
    plain = build_model(config(lvis_folder)).eval()
    torch.nn.init.normal_(plain.sem_seg_head.cls_score.weight)
    torch.nn.init.normal_(plain.sem_seg_head.cls_score.bias)
    with torch.no_grad():
        scores = plain([example()])[0]["sem_seg"]
        for opts in (["CALIBRATION.NAME", "NORCAL"], ["TAU_NORM.TAU", 1.0]):
            other = build_model(config(lvis_folder, "SOFTMAX", f"MODEL.LONG_TAIL.{opts[0]}", opts[1])).eval()
            other.load_state_dict(plain.state_dict(), strict=False)
            assert not torch.allclose(other([example()])[0]["sem_seg"], scores, atol=1e-3)


def test_the_statistics_of_a_step_are_logged(lvis_folder):
    model = build_model(config(lvis_folder, "EQL")).train()
    batch = [example(0), example(1)]
    with EventStorage(STATISTICS_PERIOD - 1) as storage:
        model(batch)
        logged = {name: value for name, (value, _) in storage.latest().items()}
    labelled = sum(int((x["sem_seg"] != IGNORED).sum()) for x in batch)
    counted = sum(value for name, value in logged.items() if name.startswith("long_tail/num_regions/"))
    assert counted == labelled and "long_tail/negative_weight/rare" in logged


def test_the_poly_schedule(lvis_folder):
    """``(1 - t / T)^0.9`` after the warm-up, by Detectron2's DeepLab project."""
    cfg = config(lvis_folder, "SOFTMAX", "SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.WARMUP_ITERS", 0)
    optimizer = build_optimizer(cfg, torch.nn.Linear(1, 1))
    schedule = Trainer.build_lr_scheduler(cfg, optimizer)
    for iteration in range(4):
        expected = cfg.SOLVER.BASE_LR * (1 - iteration / 4) ** 0.9
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)
        optimizer.step()
        schedule.step()
