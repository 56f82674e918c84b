"""What the user can mend gets one sentence that names the file, the field and the value, and exit status 2."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from eql_d2.config import load_config
from eql_d2.engine import argument_parser, launch
from eql_d2.engine import setup as setup_run
from eql_d2.engine.trainer import Trainer, run
from eql_d2.errors import InputError
from tests.conftest import CONFIGS, ROOT, full_disk, tiny_config


def error_of(function, *args) -> str:
    with pytest.raises(InputError) as caught:
        function(*args)
    message = str(caught.value)
    assert "\n" not in message
    return message


def tiny_arguments(folder, *opts, eval_only=False, resume=False):
    """Return the parsed command line of a tiny config."""
    path = folder / "tiny.yaml"
    path.write_text(tiny_config(folder).dump())
    return argument_parser().parse_args(
        ["--config-file", str(path)] + ["--eval-only"] * eval_only + ["--resume"] * resume + [str(opt) for opt in opts]
    )


def run_tiny(folder, *opts, **flags):
    """Set up and run a tiny config as tools/train_net.py does, in this process."""
    args = tiny_arguments(folder, *opts, **flags)
    return run(setup_run(args), args)


@pytest.mark.parametrize(
    "opts, words",
    [
        (["MODEL.LONG_TAIL.LOSS", "EQUL"], ["EQUL", "Did you mean 'EQL'", "SOFTMAX"]),
        (["MODEL.LONG_TAIL.EQL.LAMDA", "0.1"], ["EQL.LAMDA", "Did you mean MODEL.LONG_TAIL.EQL.LAMBDA?"]),
        (["MODEL.LONGTAIL.LOSS", "EQL"], ["MODEL.LONGTAIL"]),
        (["SOLVER.MAX_ITER", "many"], ["many", "SOLVER.MAX_ITER"]),
        (["SOLVER.MAX_ITER"], ["KEY VALUE", "SOLVER.MAX_ITER"]),
    ],
)
def test_config_overrides(opts, words):
    message = error_of(load_config, str(CONFIGS / "mini/eql.yaml"), opts)
    assert all(word in message for word in words), message


def test_config_files(tmp_path):
    assert "absent.yaml" in error_of(load_config, str(tmp_path / "absent.yaml"))
    broken = tmp_path / "broken.yaml"
    broken.write_text("MODEL: {LONG_TAIL: [")
    assert "broken.yaml" in error_of(load_config, str(broken))
    unknown = tmp_path / "unknown.yaml"
    unknown.write_text("MODEL:\n  LONG_TAIL:\n    LOSSES: EQL\n")
    message = error_of(load_config, str(unknown))
    assert "unknown.yaml" in message and "MODEL.LONG_TAIL.LOSSES" in message and "MODEL.LONG_TAIL.LOSS?" in message


def test_missing_annotations(lvis_folder):
    (lvis_folder / "train.json").unlink()
    message = error_of(run_tiny, lvis_folder)
    assert "train.json" in message


def test_truncated_annotations(lvis_folder):
    path = lvis_folder / "train.json"
    path.write_text(path.read_text()[:-100])
    message = error_of(run_tiny, lvis_folder)
    assert "train.json" in message and "json" in message


def test_number_of_classes_of_config_and_data(lvis_folder):
    message = error_of(run_tiny, lvis_folder, "MODEL.ROI_HEADS.NUM_CLASSES", 7)
    assert "NUM_CLASSES is 7" in message and "5" in message


def test_category_id_out_of_range(lvis_folder):
    content = json.loads((lvis_folder / "train.json").read_text())
    content["annotations"][0]["category_id"] = 99
    (lvis_folder / "train.json").write_text(json.dumps(content))
    message = error_of(run_tiny, lvis_folder)
    assert "99" in message and "train.json" in message


def test_image_listed_but_absent(lvis_folder):
    missing = sorted((lvis_folder / "images").iterdir())[1]
    missing.unlink()
    message = error_of(run_tiny, lvis_folder)
    assert missing.name in message


def test_image_unreadable(lvis_folder):
    broken = sorted((lvis_folder / "images").iterdir())[1]
    broken.write_bytes(b"not a picture")
    message = error_of(run_tiny, lvis_folder)
    assert broken.name in message


def test_output_folder_cannot_be_written(lvis_folder):
    (lvis_folder / "file").write_text("")
    message = error_of(run_tiny, lvis_folder, "OUTPUT_DIR", lvis_folder / "file" / "output")
    assert "OUTPUT_DIR" in message and "file/output" in message


def test_output_folder_without_a_name(lvis_folder):
    for name in ("", " "):
        assert "OUTPUT_DIR is empty" in error_of(run_tiny, lvis_folder, "OUTPUT_DIR", name)


def test_output_folder_on_a_full_disk(lvis_folder):
    arguments = tiny_arguments(lvis_folder)
    with full_disk(0):
        message = error_of(setup_run, arguments)
    assert message.startswith("OUTPUT_DIR: ") and "free some space" in message
    assert list((lvis_folder / "output").iterdir()) == []


def test_a_second_run_in_one_output_folder(lvis_folder):
    """Training, evaluating and calibrating begin with setup(), which another process holding the folder refuses."""
    script = "import sys\nfrom eql_d2.files import FolderLock\nFolderLock(sys.argv[1])\nprint(flush=True)\ninput()"
    command = [sys.executable, "-c", script, str(lvis_folder / "output")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        first.stdout.readline()
        for eval_only in (False, True):
            message = error_of(setup_run, tiny_arguments(lvis_folder, eval_only=eval_only))
            assert f"output is in use by process {first.pid} on " in message
        first.stdin.close()
    assert not (lvis_folder / "output" / "config.yaml").exists()
    setup_run(tiny_arguments(lvis_folder))


def test_weights_missing(lvis_folder):
    message = error_of(run_tiny, lvis_folder, "MODEL.WEIGHTS", lvis_folder / "absent.pth")
    assert "absent.pth" in message and "no such file" in message


def test_weights_truncated(lvis_folder):
    path = lvis_folder / "half.pth"
    torch.save({"model": {"weight": torch.zeros(1000)}}, path)
    path.write_bytes(path.read_bytes()[:1500])
    assert "half.pth" in error_of(run_tiny, lvis_folder, "MODEL.WEIGHTS", path)


def test_weights_that_cannot_be_fetched(lvis_folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr("iopath.common.file_io.download", refuse)
    monkeypatch.setattr("iopath.common.file_io.get_cache_dir", lambda *args: str(lvis_folder / "cache"))
    message = error_of(run_tiny, lvis_folder, "MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-50.pkl")
    assert "dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/MSRA/R-50.pkl" in message
    assert "set MODEL.WEIGHTS to its path" in message


def test_weights_of_another_number_of_classes(lvis_folder):
    """An error where the classifier matters, a start from the other parameters where it is to be learnt anew."""
    cfg = tiny_config(lvis_folder)
    state = {"roi_heads.box_predictor.cls_score.weight": torch.zeros(9, cfg.MODEL.ROI_BOX_HEAD.FC_DIM)}
    path = lvis_folder / "other.pth"
    torch.save({"model": state}, path)
    message = error_of(lambda: run_tiny(lvis_folder, "MODEL.WEIGHTS", path, eval_only=True))
    assert "cls_score.weight is [9, 32] in MODEL.WEIGHTS and [5, 32]" in message and "NUM_CLASSES" in message


def test_eval_only_without_weights(lvis_folder):
    message = error_of(lambda: run_tiny(lvis_folder, eval_only=True))
    assert "MODEL.WEIGHTS" in message


def test_loss_that_is_not_finite(lvis_folder, monkeypatch):
    build_model = Trainer.build_model.__func__

    def poisoned(cls, cfg):
        model = build_model(cls, cfg)
        model.roi_heads.box_predictor.cls_score.bias.data.fill_(np.nan)
        return model

    monkeypatch.setattr(Trainer, "build_model", classmethod(poisoned))
    with pytest.raises(FloatingPointError, match=r"cls_score.bias holds NaN or infinity: the training has diverged"):
        run_tiny(lvis_folder)


@pytest.mark.parametrize("processes", [1, 2])
def test_exit_status_and_one_line(processes):
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", "absent.yaml"]
    done = subprocess.run([*command, "--num-gpus", str(processes)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.count("error: --config-file absent.yaml: there is no such file.") == 1
    assert "Traceback" not in done.stderr


def fail_on_rank_one(args):
    """A main function of which only rank 1 meets bad input, while the others wait for it."""
    if comm.get_rank() == 1:
        raise InputError("000123.jpg is only in the share of rank 1")
    comm.synchronize()


def test_an_error_of_one_rank_alone_is_said(capfd):
    args = argument_parser().parse_args(["--num-gpus", "2", "--dist-url", "auto"])
    with pytest.raises(SystemExit) as exit_status:
        launch(fail_on_rank_one, args)
    assert exit_status.value.code == 2
    assert capfd.readouterr().err.count("error: 000123.jpg is only in the share of rank 1") == 1
