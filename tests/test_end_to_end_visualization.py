"""The visualisation tools as a user runs them, on a small run and a copy of it with another setting."""

import shutil

import pytest

from tests.test_end_to_end import datasets, tool, train  # noqa: F401  (datasets is a fixture)
from tests.visualization.helpers import Outline, browse

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def runs(datasets, tmp_path_factory):  # noqa: F811
    """The output folder of six iterations of EQL, and a copy whose config says that its classifier is normalised."""
    folder = tmp_path_factory.mktemp("runs")
    train(datasets, folder / "eql")
    shutil.copytree(folder / "eql", folder / "tau")
    config = folder / "tau/config.yaml"
    config.write_text(config.read_text().replace("TAU: 0.0", "TAU: 0.9"))
    return [folder / "eql", folder / "tau"]


def test_the_data_as_annotated_and_as_loaded(datasets, tmp_path):  # noqa: F811
    command = ["tools/visualize_data.py", "--size", 96, "--output"]
    json_file = ["--annotations", datasets / "mini/val.json", "--images", datasets / "mini/val"]
    printed = tool(datasets, *command, tmp_path / "a", *json_file, "--only", "rare", "--per-page", 3)
    assert printed.split() == [str(tmp_path / "a/index.html")]
    text = (tmp_path / "a/index.html").read_text()
    assert Outline(text) and "(rare)" in text and "(frequent)" not in text and "page-2.html" in text
    config = ["--config-file", "configs/mini/eql.yaml", "--source", "dataloader", "--max-images", 5, "--seed", 1]
    tool(datasets, *command, tmp_path / "b", *config, "--opts", "MODEL.ROI_HEADS.NUM_CLASSES", 12)
    assert len(list((tmp_path / "b/pictures").iterdir())) == 5


def test_the_results_of_two_runs(runs, datasets, tmp_path):  # noqa: F811
    arguments = ["--output", tmp_path / "out", "--sort", "difference", "--max-images", 4, "--size", 96]
    tool(datasets, "tools/visualize_results.py", *runs, *arguments)
    seen = browse(tmp_path / "out/index.html", tmp_path)
    assert seen["images"] == 12 and seen["broken"] == 0


def test_the_report_of_two_runs(runs, datasets, tmp_path):  # noqa: F811
    output = tmp_path / "report.html"
    arguments = ["--output", output, "--max-images", 2, "--analysis-images", 2]
    printed = tool(datasets, "tools/report.py", *runs, *arguments)
    assert "warning" not in printed and printed.split()[-1] == str(output)
    text = output.read_text()
    assert Outline(text) and "http" not in text.replace("http-equiv", "")
    seen = browse(output, tmp_path, width=400)
    assert seen["images"] > 12 and seen["broken"] == 0 and seen["overflow"] <= 0 and seen["loaded"] == 0
    for identifier in ("results", "configuration", "training", "classes", "analysis", "images"):
        assert f'<section id="{identifier}"' in seen["dom"]
    assert "TAU_<wbr>NORM.<wbr>TAU" in text
    printed = tool(datasets, "tools/report.py", tmp_path, "--output", output, status=2)
    assert printed.startswith("error: ") and "config.yaml" in printed
