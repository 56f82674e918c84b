"""Names of images that lead out of the image folder are refused, unless the registration allows them."""

import json

import pytest
from detectron2.data import DatasetCatalog

from eql_d2.cli import run as run_command
from eql_d2.config import load_config
from eql_d2.data import cache
from eql_d2.data.builtin import register_from_config
from eql_d2.data.classification import load_image_list, load_inaturalist
from eql_d2.data.coco import load_coco
from eql_d2.data.image_files import leads_out, path_below
from eql_d2.data.lvis import load_lvis
from eql_d2.errors import InputError
from tests.conftest import write_image


@pytest.mark.parametrize(
    "name, expected",
    [
        ("a.jpg", "images/a.jpg"),
        ("train/a.jpg", "images/train/a.jpg"),
        ("train/../val/a.jpg", "images/val/a.jpg"),
        ("a..jpg", "images/a..jpg"),
        ("..a/b.jpg", "images/..a/b.jpg"),
        ("../images/a.jpg", "images/a.jpg"),
        ("../a.jpg", None),
        ("train/../../a.jpg", None),
        ("../images_of_another/a.jpg", None),
        ("/etc/hostname", None),
        ("//etc/hostname", None),
        ("..", None),
        (".", "images/."),
    ],
)
def test_names(name, expected):
    assert path_below("images", name) == expected
    assert expected is not None or leads_out(name)


def test_an_absolute_name_below_the_folder_is_none_that_leads_out(tmp_path):
    assert path_below(str(tmp_path), f"{tmp_path}/a.jpg") == f"{tmp_path}/a.jpg"
    assert path_below("/", "/etc/hostname") == "/etc/hostname"
    assert path_below(str(tmp_path), f"{tmp_path}_of_another/a.jpg") is None


def rename(folder, name, field="file_name", image=2):
    """Give one image of the data set another name, and write the json."""
    content = json.loads((folder / "train.json").read_text())
    content["images"][image][field] = name
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json", folder / "images"


@pytest.mark.parametrize("load", [load_lvis, load_coco])
@pytest.mark.parametrize("name", ["../secret.png", "{folder}/secret.png", "sub/../../secret.png"])
def test_loaders_refuse_before_an_image_is_read(lvis_folder, load, name):
    name = name.format(folder=lvis_folder)
    write_image(lvis_folder / "secret.png")
    files = rename(lvis_folder, name)
    with pytest.raises(InputError, match=r"Image 3 is named '.*secret\.png', which leads out of the image folder"):
        load(*files)
    record = load(*files, images_anywhere=True)[2]
    assert record["file_name"].endswith("secret.png")
    if name.startswith("/"):  # a folder that holds all images
        assert load(files[0], "/")[2]["file_name"] == name


@pytest.mark.parametrize("name", ["http://x/../secret.png", "http://x//secret.png", "http://x/.."])
def test_names_in_a_url(lvis_folder, name):
    for image in range(4):
        files = rename(lvis_folder, name, "coco_url", image)
        (lvis_folder / "train.json").write_text((lvis_folder / "train.json").read_text().replace(".png", ".none"))
    with pytest.raises(InputError, match="leads out of the image folder"):
        load_lvis(*files)


def test_what_a_cached_json_names_is_checked_too(lvis_folder, monkeypatch):
    monkeypatch.setattr(cache, "MIN_CACHED_BYTES", 0)
    files = rename(lvis_folder, "../secret.png")
    for _ in range(2):
        cache._cached_table.cache_clear()
        with pytest.raises(InputError, match="leads out of the image folder"):
            load_lvis(*files)
    assert (lvis_folder / "train.json.eql_d2_cache").is_file()


def test_image_folders_and_files_that_are_links(lvis_folder):
    """The rule is one of names: the user has made the links, or unpacked them."""
    (lvis_folder / "images").rename(lvis_folder / "elsewhere")
    (lvis_folder / "images").symlink_to(lvis_folder / "elsewhere")
    (lvis_folder / "elsewhere" / "sub").mkdir()
    (lvis_folder / "elsewhere" / "000000000003.png").rename(lvis_folder / "third.png")
    (lvis_folder / "elsewhere" / "sub" / "third.png").symlink_to(lvis_folder / "third.png")
    files = rename(lvis_folder, "sub/third.png")
    assert load_lvis(*files)[2]["file_name"] == str(lvis_folder / "images" / "sub" / "third.png")


def test_the_config_may_allow_it(lvis_folder):
    json_file, images = rename(lvis_folder, "../secret.png")
    write_image(lvis_folder / "secret.png")
    for allowed, name in ((False, f"{lvis_folder.name}_strict"), (True, f"{lvis_folder.name}_anywhere")):
        cfg = load_config("", ["MODEL.LONG_TAIL.IMAGES_ANYWHERE", allowed])
        cfg.MODEL.LONG_TAIL.DATASETS = [[name, str(json_file), str(images)]]
        register_from_config(cfg)
        register_from_config(cfg)  # again is no error
        if allowed:
            assert len(DatasetCatalog.get(name)) == 4
        else:
            with pytest.raises(InputError, match=r"set MODEL\.LONG_TAIL\.IMAGES_ANYWHERE True"):
                DatasetCatalog.get(name)
            cfg.MODEL.LONG_TAIL.IMAGES_ANYWHERE = True
            with pytest.raises(InputError, match="already registered"):
                register_from_config(cfg)


def test_the_check_lists_them(lvis_folder, capsys):
    json_file, images = rename(lvis_folder, "../secret.png")
    write_image(lvis_folder / "secret.png")
    with pytest.raises(SystemExit) as ended:
        run_command("check-dataset", ["--json", str(json_file), "--images", str(images)])
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and "image names that lead out of the image folder: 1" in printed
    assert "Image 3 is named '../secret.png'" in printed
    cfg = load_config("", ["MODEL.LONG_TAIL.IMAGES_ANYWHERE", True])
    cfg.MODEL.LONG_TAIL.DATASETS = [[f"{lvis_folder.name}_checked", str(json_file), str(images)]]
    (lvis_folder / "mine.yaml").write_text(cfg.dump())
    with pytest.raises(SystemExit):
        run_command("check-dataset", ["--config-file", str(lvis_folder / "mine.yaml"), f"{lvis_folder.name}_checked"])
    assert "lead out" not in capsys.readouterr().out


def test_classification(tmp_path):
    (tmp_path / "list.txt").write_text("sub/a.jpg 0\n../secret.jpg 1\n")
    content = {
        "images": [{"id": 1, "file_name": "/etc/secret.jpg"}],
        "annotations": [{"image_id": 1, "category_id": 0}],
    }
    (tmp_path / "list.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"list\.txt, line 2: '\.\./secret\.jpg' leads out of the image folder"):
        load_image_list(tmp_path / "list.txt", tmp_path / "images")
    with pytest.raises(InputError, match=r"list\.json: '/etc/secret\.jpg' leads out of the image folder"):
        load_inaturalist(tmp_path / "list.json", tmp_path / "images")
    anywhere = load_image_list(tmp_path / "list.txt", tmp_path / "images", images_anywhere=True)
    assert anywhere.records[1]["file_name"] == f"{tmp_path}/images/../secret.jpg"
    assert load_inaturalist(tmp_path / "list.json", tmp_path, images_anywhere=True).records[0]["file_name"][0] == "/"
