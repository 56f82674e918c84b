"""Loading configs: plain values only, from whatever file, and one sentence for what is no config."""

import os
from pathlib import Path

import detectron2
import pytest
import yaml
from detectron2.config import CfgNode

from eql_d2.config import _is_detectron2_s_own, load_config
from eql_d2.errors import InputError
from tests.conftest import tiny_config

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"


def test_detectron2_s_own_files_compute_their_values(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {ZOO}/COCO-Detection/retinanet_R_50_FPN_1x.yaml\nSEED: 3\n")
    cfg = load_config(str(tmp_path / "mine.yaml"))
    assert cfg.SEED == 3 and cfg.MODEL.ANCHOR_GENERATOR.SIZES[1] == [64, 64 * 2 ** (1 / 3), 64 * 2 ** (2 / 3)]


def test_a_checkout_of_detectron2_links_its_configs_into_the_package(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "detectron2" / "model_zoo").mkdir(parents=True)
    (tmp_path / "detectron2" / "model_zoo" / "configs").symlink_to(tmp_path / "configs")
    monkeypatch.setattr(detectron2, "__file__", str(tmp_path / "detectron2" / "__init__.py"))
    assert _is_detectron2_s_own(f"{tmp_path}/detectron2/model_zoo/configs/Base.yaml")
    assert _is_detectron2_s_own(f"{tmp_path}/configs/Base.yaml")
    assert not _is_detectron2_s_own(f"{tmp_path}/Base.yaml")
    assert not _is_detectron2_s_own(f"{tmp_path}/detectron2_of_a_stranger/Base.yaml")


@pytest.mark.parametrize("path", ["{zoo}/../../../{up}{folder}/hostile.yaml", "{folder}/link/hostile.yaml"])
def test_a_path_through_detectron2_is_not_trusted_for_that(tmp_path, path):
    (tmp_path / "hostile.yaml").write_text(f"SEED: !!python/object/apply:os.system ['touch {tmp_path}/marker']\n")
    (tmp_path / "link").symlink_to(tmp_path)
    path = path.format(zoo=ZOO, up="../" * len(ZOO.parts), folder=tmp_path)
    assert os.path.isfile(path)
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {path}\n")
    with pytest.raises(InputError, match="nothing in a config is executed"):
        load_config(str(tmp_path / "mine.yaml"))
    assert not (tmp_path / "marker").exists()


def test_detectron2_keeps_its_own_reader():
    load_config()
    assert CfgNode.load_yaml_with_base.__func__.__module__ == "fvcore.common.config"


def test_what_a_run_dumps_loads_as_plain_values(tmp_path, lvis_folder):
    cfg = tiny_config(lvis_folder)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    loaded = load_config(str(tmp_path / "config.yaml"))
    assert yaml.safe_load(loaded.dump()) == yaml.safe_load(cfg.dump())
    assert isinstance(loaded.SOLVER.STEPS, tuple)


@pytest.mark.parametrize(
    "text, words",
    [
        (b"SEED: !!python/object/new:os.system ['true']", "object/new:os.system.*nothing in a config is executed"),
        (b"SEED: !!python/name:os.system", "nothing in a config is executed"),
        (b"!!python/object/apply:eval ['1']", "nothing in a config is executed"),
        (b"_BASE_: config.yaml", "leads back to itself"),
        (b"_BASE_: absent.yaml", r"cannot be read .*absent\.yaml"),
        (b"_BASE_: .", "is no file"),
        (b"_BASE_: pipe.yaml", r"pipe\.yaml is no file"),
        (b"_BASE_: 3", "no mapping of config keys"),
        (b"_BASE_: [3]", "no mapping of config keys"),
        (b"- SEED", "no mapping of config keys"),
        (b"3", "no mapping of config keys"),
        (b"", "no mapping of config keys"),
        (b"MODEL: 3", "no mapping of config keys"),
        (b"3: 4", "no mapping of config keys"),
        (b"VERSION: abc", "no mapping of config keys"),
        (b"SEED: " + b"[" * 100_000, "nested too deep"),
        (b"SEED: \xff\xfe\x80", "is no text"),
        (b"SEED: {", "is not valid YAML"),
    ],
)
def test_what_is_no_config(tmp_path, text, words):
    path = tmp_path / "config.yaml"
    path.write_bytes(text)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(InputError, match=words) as caught:
        load_config(str(path))
    assert "config.yaml" in str(caught.value) or "_BASE_" in str(caught.value)
    assert "\n" not in str(caught.value)
