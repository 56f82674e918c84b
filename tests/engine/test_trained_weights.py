"""Weights that are not those of the model: an error that lists what is missing, in every tool that runs a model."""

import pytest
import torch
from detectron2.modeling import build_model

from eql_d2.analysis.passes import pass_over
from eql_d2.analysis.trained_model import TrainedModel
from eql_d2.data.builtin import register_from_config
from eql_d2.engine import setup
from eql_d2.engine.calibrate import calibrate, calibrate_parser
from eql_d2.engine.trained_weights import required_names
from eql_d2.errors import InputError
from eql_d2.predictor import Predictor
from tests.conftest import tiny_config
from tests.engine.test_bad_input import run_tiny

PREDICTOR = "roi_heads.box_predictor."


def of_another_model(state):
    return {f"encoder.{name}": value for name, value in state.items()}


def with_nan(state):
    return {**state, PREDICTOR + "bbox_pred.bias": state[PREDICTOR + "bbox_pred.bias"] / 0}


def without(state, *prefixes):
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


#: What is wrong with the weights, and words of the message.
WRONG = {
    "empty": (
        lambda state: {},
        ["lacks {all} of the model's {all} tensors: backbone.", "more parts", "--allow-missing"],
    ),
    "another model's": (of_another_model, ["lacks {all} of", "It has others that the model lacks: encoder.backbone ("]),
    "without predictor": (lambda state: without(state, PREDICTOR), ["lacks 4 of", "roi_heads.box_predictor (4). Name"]),
    "NaN": (with_nan, ["holds NaN or infinity in roi_heads.box_predictor (1); its training has diverged"]),
}


@pytest.fixture
def run_folder(lvis_folder):
    """The output folder of a tiny model that was never trained, with its config and weights."""
    cfg = tiny_config(lvis_folder)
    (lvis_folder / "output").mkdir()
    register_from_config(cfg)
    model = build_model(cfg)
    state = {name: value for name, value in model.state_dict().items() if ".classifier_loss." not in name}
    torch.save({"model": state}, lvis_folder / "output" / "model_final.pth")
    cfg.MODEL.WEIGHTS = str(lvis_folder / "output" / "model_final.pth")
    (lvis_folder / "output" / "config.yaml").write_text(cfg.dump())
    return lvis_folder / "output", cfg, state, len(required_names(model))


@pytest.mark.parametrize("what", WRONG)
def test_each_tool_lists_what_is_missing(run_folder, what):
    folder, cfg, state, number = run_folder
    damage, words = WRONG[what]
    torch.save({"model": damage(state)}, cfg.MODEL.WEIGHTS)
    arguments = calibrate_parser().parse_args(["--config-file", str(folder / "config.yaml")])
    tools = {
        "eql-d2 train --eval-only": lambda: run_tiny(folder.parent, "MODEL.WEIGHTS", cfg.MODEL.WEIGHTS, eval_only=True),
        "eql-d2 predict": lambda: Predictor(cfg),
        "eql-d2 calibrate": lambda: calibrate(setup(arguments), arguments),
        "eql-d2 analyze": lambda: pass_over(TrainedModel(folder)),
    }
    for name, tool in tools.items():
        with pytest.raises(InputError) as info:
            tool()
        assert cfg.MODEL.WEIGHTS in str(info.value) and "\n" not in str(info.value)
        # Calibration and analysis leave the mask head out.
        expected = [word.replace("{all}", str(number)) for word in words if name[7:12] in ("train", "predi")]
        assert all(word in str(info.value) for word in expected), (name, str(info.value))


def test_the_right_weights_and_those_of_who_allows(run_folder, caplog):
    _, cfg, state, _ = run_folder
    Predictor(cfg)  # the sums of losses need not be there
    torch.save({"model": without(state, PREDICTOR)}, cfg.MODEL.WEIGHTS)
    predictor = Predictor(cfg, allow_missing=True)
    assert "roi_heads.box_predictor (4). They stay as they were initialized" in caplog.text
    assert torch.equal(predictor.model.state_dict()["backbone.fpn_output2.bias"], state["backbone.fpn_output2.bias"])
    torch.save({"model": with_nan(state)}, cfg.MODEL.WEIGHTS)
    with pytest.raises(InputError, match="NaN"):
        Predictor(cfg, allow_missing=True)


def test_a_training_may_start_from_a_part(lvis_folder):
    from eql_d2.engine import argument_parser
    from eql_d2.engine.trainer import run

    args = argument_parser().parse_args(["--allow-missing"])
    cfg = tiny_config(lvis_folder)
    register_from_config(cfg)
    with pytest.raises(InputError, match="--allow-missing is for --eval-only"):
        run(cfg, args)


def test_batch_norm_s_statistics_are_required():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    assert required_names(model) == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    assert required_names(model[1]) == {"weight", "bias", "running_mean", "running_var"}
