"""Packaged configs by name: listing them, finding one, and what a wrong name is answered."""

import subprocess
import sys

import pytest

from eql_d2 import model_zoo
from eql_d2.config import load_config
from eql_d2.config_files import configs_root
from eql_d2.errors import InputError
from tests.conftest import CONFIGS

NAME = "LVISv0.5/eql/mask_rcnn_R_50_FPN_paper"


def test_every_config_that_is_no_base_and_no_table_is_listed():
    assert configs_root() == CONFIGS
    names = model_zoo.list_configs()
    files = {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")}
    left_out = files - set(names)
    assert NAME in names and set(names) < files and names == sorted(names)
    assert all(name.startswith("tables/") or name.split("/")[-1].startswith("Base-") for name in left_out)


@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_a_config_is_found_by_its_name(suffix):
    assert model_zoo.get_config_file(NAME + suffix) == str(CONFIGS / f"{NAME}.yaml")
    cfg = model_zoo.get_config(NAME + suffix)
    assert cfg == load_config(str(CONFIGS / f"{NAME}.yaml")) and cfg.MODEL.LONG_TAIL.LOSS == "EQL"


def test_a_base_is_found_too():
    assert model_zoo.get_config_file("mini/Base-mini") == str(CONFIGS / "mini/Base-mini.yaml")


@pytest.mark.parametrize(
    "name, hint",
    [
        ("LVISv0.5/eql/mask_rcnn_R_50_FPN_papr", f"did you mean {NAME}"),
        ("mini/eqll", "did you mean mini/eql"),
        ("norcal", "did you mean mini/norcal"),
        ("../setup", "list_configs"),
        ("", "list_configs"),
        ("zzzzzz", "list_configs"),
    ],
)
def test_a_wrong_name_is_answered_by_the_closest_ones(name, hint):
    with pytest.raises(InputError) as error:
        model_zoo.get_config(name) if name else model_zoo.get_config_file(name)
    assert repr(name) in str(error.value) and hint in str(error.value)


@pytest.mark.parametrize("name", ["mini/eql", "mini/eql.yaml", "configs/mini/eql.yaml"])
def test_a_config_file_may_be_a_name_where_there_is_no_such_file(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config(name) == model_zoo.get_config("mini/eql")
    (tmp_path / "mini").mkdir()
    (tmp_path / "mini/eql.yaml").write_text("SEED: 17\n")
    assert load_config("mini/eql.yaml").SEED == 17
    with pytest.raises(InputError, match=r"--config-file mini/eqll: there is no such file.*did you mean mini/eql"):
        load_config("mini/eqll")


def test_names_need_no_torch():
    code = "import sys; sys.modules['torch'] = sys.modules['detectron2'] = None\n"
    code += "from eql_d2.config_files import get_config_file, list_configs; print(get_config_file(list_configs()[0]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
