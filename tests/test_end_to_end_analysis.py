"""Training with the hook on two processes, then tools/analyze.py, as a user runs them."""

import csv
import json

import pytest
import torch

from eql_d2.analysis import ANALYSES
from tests.test_end_to_end import datasets, tool, train  # noqa: F401  (datasets is a fixture)

pytestmark = pytest.mark.end_to_end

#: Tables that each analysis writes first.
TABLES = {name: f"{name.replace('-', '_')}.csv" for name in ANALYSES}


@pytest.fixture(scope="module")
def runs(datasets, tmp_path_factory):  # noqa: F811
    """Six iterations of EQL on one process and of EQL v2 on two, both with the hook."""
    folder = tmp_path_factory.mktemp("runs")
    period = ["MODEL.LONG_TAIL.ANALYSIS.PERIOD", 1]
    train(datasets, folder / "eql", *period)
    arguments = ["--num-gpus", 2, "--dist-url", "auto", *period]
    train(datasets, folder / "eql_v2", *arguments, config="mini/eql_v2.yaml")
    return folder


def table(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_two_processes_sum_up_what_the_loss_does(runs):
    """EQL v2 sums its gradients over ranks; the hook's table is the same, and its sums are in the checkpoint."""
    checkpoint = torch.load(runs / "eql_v2" / "model_final.pth", weights_only=True)
    state = checkpoint["model"]
    positive, negative = (state[f"roi_heads.box_predictor.classifier_loss.{kind}_grad"] for kind in ("pos", "neg"))
    assert checkpoint["trainer"]["hooks"]["GradientHook"]["stage0"]["num_regions"] > 0
    rows = table(runs / "eql_v2" / "training_gradients.csv")
    assert len(rows) == 12
    for row in rows:
        label = int(row["label"])
        assert float(row["positive_gradient"]) == pytest.approx(float(positive[label]), rel=1e-4)
        assert float(row["negative_gradient"]) == pytest.approx(float(negative[label]), rel=1e-4)


def test_all_analyses_of_two_runs(runs, datasets, tmp_path):  # noqa: F811
    command = ["tools/analyze.py", runs / "eql", runs / "eql_v2", "--names", "EQL", "EQL v2"]
    printed = tool(datasets, *command, "--output", tmp_path, "--max-images", 12)
    for name, title in ANALYSES.items():
        rows = table(tmp_path / TABLES[name])
        assert rows and f"{title}: {tmp_path / TABLES[name]}" in printed
        if name not in ("weight-functions", "tail-ratio"):
            assert {row["run"] for row in rows} == {"EQL", "EQL v2"}
        stem = tmp_path / TABLES[name]
        assert stem.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert stem.with_suffix(".svg").stat().st_size > 1000
    assert not list(tmp_path.glob("*.tmp*"))
    # Sorted by training images; both runs with what training logged.
    counts = json.loads((runs / "eql" / "category_frequency.json").read_text())["image_count"]
    rows = table(tmp_path / "gradient_ratio.csv")
    assert [int(row["train_images"]) for row in rows[:12]] == sorted(counts, reverse=True)
    assert all(row["logged_ratio"] != "" for row in rows[:3])
    assert {row["loss_ratio"] == "" for row in rows if row["run"] == "EQL v2"} == {False}
    ap = [
        float(row["segm_AP"])
        for row in table(tmp_path / "ap_groups.csv")
        if (row["run"], row["group"]) == ("EQL", "all")
    ]
    assert ap == [pytest.approx(json.loads((runs / "eql" / "results.json").read_text())["results"]["segm"]["AP"])]


def test_an_error_in_one_line(runs, datasets, tmp_path):  # noqa: F811
    command = ["tools/analyze.py", runs / "eql", "--output", tmp_path]
    printed = tool(datasets, *command, "--weights", "model_9.pth", status=2)
    assert "model_9.pth: there is no such file; there are model_0000002.pth, " in printed
    assert "Traceback" not in printed and len(printed.strip().splitlines()) == 1
