"""What a training on two processes (gloo) does alike on both: where it ends, and with which weights."""

import json

from detectron2.utils import comm

from eql_d2.engine import argument_parser, launch
from eql_d2.engine import setup as setup_run
from eql_d2.engine.trainer import Trainer
from eql_d2.run_folder import RunFolder
from tests.conftest import tiny_config


def train(args):
    """Train with an evaluation after each iteration, whose metric only the main process gets; tell where it ended."""
    values = iter((1, 2, 1, 1, 1))
    Trainer._evaluate = lambda *_: {"segm": {"AP": next(values)}} if comm.is_main_process() else {}
    cfg = setup_run(args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    trainer.train()
    told = comm.gather(
        {"end": trainer.iter, "weights": sum_of(trainer.model), "average": sum_of(trainer.evaluated_model)}
    )
    if comm.is_main_process():
        (RunFolder(cfg.OUTPUT_DIR).folder / "told.json").write_text(json.dumps(told))


def sum_of(model):
    return sum(float(parameter.double().abs().sum()) for parameter in model.parameters())


def test_both_stop_at_the_same_iteration_with_the_same_weights(lvis_folder):
    """Parts of a batch are accumulated without an exchange of gradients, but for the last."""
    opts = ["SOLVER.IMS_PER_BATCH", 4, "MODEL.LONG_TAIL.ACCUMULATE.PARTS", 2, "MODEL.LONG_TAIL.EMA.DECAY", 0.5]
    opts += ["SOLVER.MAX_ITER", 8, "TEST.EVAL_PERIOD", 1, "MODEL.LONG_TAIL.BEST.METRIC", "segm/AP"]
    opts += ["MODEL.LONG_TAIL.BEST.PATIENCE", 2, "SOLVER.REFERENCE_WORLD_SIZE", 0]
    (lvis_folder / "tiny.yaml").write_text(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "EQL_V2", *opts).dump())
    arguments = ["--config-file", str(lvis_folder / "tiny.yaml"), "--num-gpus", "2", "--dist-url", "auto"]
    launch(train, argument_parser().parse_args(arguments))
    output = RunFolder(lvis_folder / "output")
    first, second = json.loads((output.folder / "told.json").read_text())
    assert first == second and first["end"] == 3 and first["weights"] != first["average"]
    assert output.weights.is_file() and json.loads(output.best_file.read_text())["best_iteration"] == 1
