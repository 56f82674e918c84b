"""The package as a whole: what imports without Detectron2, what importing it leaves alone, its commands."""

import ast
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import eql_d2
from eql_d2 import cli, compat
from eql_d2.errors import InputError

WITHOUT_DETECTRON2 = textwrap.dedent(
    """
    import sys
    sys.modules["detectron2"] = None  # any import of it raises ImportError
    import torch
    from eql_d2.data.frequency import CategoryFrequency
    from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY, EqualizationLoss
    frequency = CategoryFrequency.from_counts([5000, 120, 8, 3], num_images=6000)
    loss = EqualizationLoss(frequency, lambda_=1.76e-3)
    logits = torch.randn(16, loss.num_logits, requires_grad=True)
    loss(logits, torch.randint(0, 5, (16,))).backward()
    assert logits.grad.abs().sum() > 0 and loss.scores(logits).shape == (16, 5)
    print(len([name for name, _ in CLASSIFIER_LOSS_REGISTRY]))
    try:
        import eql_d2.config
    except ValueError as error:
        print(error)
    """
)


#: Another program: it has filters and data sets of its own, one under a name of LVIS, and imports every room.
GUEST = textwrap.dedent(
    """
    import warnings
    import torch  # it has filters of its own
    warnings.simplefilter("default")
    warnings.filterwarnings("error", message="mine", category=UserWarning)
    filters = list(warnings.filters)
    import eql_d2
    import eql_d2.losses
    import sys
    assert "detectron2" not in sys.modules
    assert warnings.filters == filters, warnings.filters

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import detectron2.modeling
        from detectron2.data import DatasetCatalog, MetadataCatalog
    filters = list(warnings.filters)
    DatasetCatalog.register("theirs", lambda: [])
    MetadataCatalog.get("theirs").thing_classes = ["a"]
    DatasetCatalog.remove("lvis_v1_val")
    DatasetCatalog.register("lvis_v1_val", lambda: ["their own"])
    loaders = dict(DatasetCatalog.data)
    metadata = {name: MetadataCatalog.get(name).as_dict() for name in DatasetCatalog}
    from eql_d2 import Predictor, analysis, data, engine, evaluation, experiments, modeling, visualization
    import eql_d2.data.build, eql_d2.data.builtin, eql_d2.data.catalog, eql_d2.experiments.reproduce
    added = [str(entry) for entry in warnings.filters if entry not in filters]  # other libraries add some too
    assert not any("jit.script" in entry or "meshgrid" in entry for entry in added), added
    assert DatasetCatalog.data == loaders
    assert {name: MetadataCatalog.get(name).as_dict() for name in DatasetCatalog} == metadata

    # Only what a config names is registered, and not where somebody else has done so.
    cfg = eql_d2.config.get_cfg()
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("lvis_v1_train",), ("lvis_v1_val",)
    eql_d2.data.builtin.register_from_config(cfg)
    assert {name for name in loaders if DatasetCatalog[name] is not loaders[name]} == {"lvis_v1_train"}
    assert DatasetCatalog.get("lvis_v1_val") == ["their own"]
    assert MetadataCatalog.get("lvis_v1_train").frequency_groups.count("r") == 337
    assert MetadataCatalog.get("lvis_v1_train").class_image_count == metadata["lvis_v1_train"]["class_image_count"]
    """
)


def test_a_program_that_imports_the_package_is_left_alone():
    done = subprocess.run([sys.executable, "-c", GUEST], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_losses_need_no_detectron2_and_the_rest_says_that_it_does():
    done = subprocess.run([sys.executable, "-c", WITHOUT_DETECTRON2], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    count, message = done.stdout.strip().splitlines()
    assert int(count) >= 17
    assert message.startswith("Detectron2 cannot be imported") and "make setup" in message


def test_this_detectron2_is_named():
    assert compat.check_detectron2().startswith("Detectron2 ")


@pytest.mark.parametrize(
    "code, complaint",
    [("class FastRCNNOutputLayers: pass\n", "is too old"), ("from PIL.Image import LINEAR_\n", "does not work here")],
)
def test_an_old_detectron2_is_refused(code, complaint, tmp_path, monkeypatch):
    """The release 0.6 of 2021 carries the version string of today's main branch, but not its code."""
    heads = tmp_path / "detectron2" / "modeling" / "roi_heads"
    heads.mkdir(parents=True)
    (tmp_path / "detectron2" / "__init__.py").write_text('__version__ = "0.6"\n')
    (heads / "fast_rcnn.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=rf"Detectron2 0.6 .* {complaint}.* Supported: upstream main"):
        compat.check_detectron2()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_and_a_file_of_its_own(command, monkeypatch, capsys):
    module = importlib.import_module(f"eql_d2.commands.{command.replace('-', '_')}")
    monkeypatch.setattr(sys, "argv", [f"eql-d2 {command}"])
    with pytest.raises(SystemExit) as exit_:
        module.main(["--help"])
    assert exit_.value.code == 0 and f"usage: eql-d2 {command}" in capsys.readouterr().out


def test_every_file_of_the_commands_is_one():
    files = {path.stem for path in Path(eql_d2.__file__).with_name("commands").glob("*.py")} - {"__init__"}
    assert files == {command.replace("-", "_") for command in cli.COMMANDS}


def run_cli(*arguments):
    command = [sys.executable, "-X", "importtime", "-m", "eql_d2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_help_is_there_at_once():
    done = run_cli()
    assert done.returncode == 0 and all(f"  {command} " in done.stdout for command in cli.COMMANDS)
    assert "torch" not in done.stderr and "numpy" not in done.stderr
    assert run_cli("--version").stdout.strip() == f"eql-d2 {eql_d2.__version__}"


def test_a_misspelt_command_is_answered():
    done = run_cli("trian")
    assert done.returncode == 2 and "has no command 'trian'; did you mean train?" in done.stderr


#: One function of two evaluators, and the entry points of the commands.
SHARED_NAMES = {"coco_curves", "lvis_curves", "add_arguments", "main", "parse_arguments", "run"}


def test_no_two_public_functions_or_classes_share_a_name():
    found = {}
    for path in Path(eql_d2.__file__).parent.rglob("*.py"):
        if path.parent.name == "commands":
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(str(path))
    assert not {name: paths for name, paths in found.items() if len(paths) > 1 and name not in SHARED_NAMES}


def test_a_reader_that_has_seen_enough_is_no_error_with_a_stack():
    command = f"{sys.executable} -m eql_d2 configs | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("\n") == 1 and "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr
