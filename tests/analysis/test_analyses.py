"""Tables of AP, weights, weight functions, tail ratios and confusion; what goes wrong is said in one line."""

import csv
from pathlib import Path

import pytest
import torch

from eql_d2.analysis import ANALYSES, Produced, analyze
from eql_d2.analysis import ap as ap_module
from eql_d2.analysis.confusion import PREDICTIONS, group_confusion, prediction_rows
from eql_d2.analysis.figures import smoothed, window
from eql_d2.analysis.trained_model import TrainedModel, open_models
from eql_d2.analysis.weighting import tail_ratio_steps, weight_values
from eql_d2.config import get_cfg
from eql_d2.data.categories import CategoryTable
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.plotting import HATCHES, STYLES
from tests.analysis.helpers import make_run
from tests.conftest import ROOT, tiny_config


def rows_of(path: Path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def frequency_of(image_count, groups=None):
    return CategoryFrequency.from_counts(image_count, num_images=1000, groups=groups)


FIVE = CategoryTable([f"class_{i}" for i in range(5)], frequency_of([5, 150, 1, 120, 50], "rfrfc"))


def test_categories_are_sorted_by_training_images():
    assert FIVE.order().tolist() == [1, 3, 4, 0, 2]
    tied = CategoryFrequency.from_counts([2, 2, 2], [3, 9, 3], num_images=9)
    assert CategoryTable("abc", tied).order().tolist() == [1, 0, 2]  # by instances, then by label


def test_ap_tables(lvis_folder):
    first = make_run(lvis_folder, "first", lvis_folder, "SIGMOID", [40.0, 20.0, None, 0.0, 10.0])
    second = make_run(lvis_folder, "second", lvis_folder, "EQL", [35.0, 22.0, None, 12.0, 10.0])
    (produced,) = analyze([first, second], lvis_folder / "out", only=["ap"], names=["sigmoid", "EQL"])
    assert [path.name for path in produced.csvs] == ["ap.csv", "ap_groups.csv", "ap_changes.csv"]
    assert produced.csv == produced.csvs[0] and "some_val" in produced.caption
    rows = {(row["run"], int(row["label"])): row for row in rows_of(produced.csv)}
    assert len(rows) == 10 and rows["EQL", 3]["segm_AP"] == "12.0" and rows["EQL", 3]["segm_AP_change"] == "12.0"
    assert rows["sigmoid", 2]["segm_AP"] == "" and rows["sigmoid", 0]["train_images"] == "150"
    groups = {(row["run"], row["group"]): row for row in rows_of(produced.csvs[1])}
    assert float(groups["EQL", "r"]["segm_AP"]) == 11.0 and float(groups["sigmoid", "f"]["segm_AP"]) == 30.0
    assert float(groups["sigmoid", "all"]["segm_AP"]) == 17.5 and groups["EQL", "all"]["segm_AP_categories"] == "4"
    assert groups["EQL", "c"]["segm_AP"] == "" and groups["EQL", "c"]["segm_AP_categories"] == "0"
    changes = [(row["name"], float(row["change"])) for row in rows_of(produced.csvs[2])]
    assert changes == [("class_3", 12.0), ("class_1", 2.0), ("class_0", -5.0)]
    assert produced.png.is_file() and produced.svg.read_text().startswith("<?xml")


def test_at_most_ten_gains_and_losses():
    rows = [{"run": run, "name": str(i), "AP_change": 0.0} for run in "a" for i in range(50)]
    rows += [{"run": "b", "name": str(i), "AP_change": float(i - 25)} for i in range(50)]
    found = [row["change"] for row in ap_module.change_rows(rows, "AP")]
    assert found == [*range(24, 14, -1), *range(-16, -26, -1)]


def test_weight_norms_of_each_stage_with_factors(lvis_folder):
    run = make_run(lvis_folder, "run", lvis_folder)
    weight = torch.tensor([[3.0, 4.0], [0.0, 2.0], [1.0, 0.0], [0.0, 0.0], [6.0, 8.0], [9.0, 9.0]])
    state = {
        "roi_heads.box_predictor.1.cls_score.weight": weight,
        "roi_heads.box_predictor.0.cls_score.weight": weight,
        "roi_heads.box_predictor.0.cls_scale": torch.tensor([2.0, 1, 1, 1, -0.5, 1]),
        "roi_heads.box_predictor.0.bbox_pred.weight": torch.ones(4, 2),
    }
    torch.save({"model": state}, run / "model_final.pth")
    (produced,) = analyze([run], lvis_folder / "out", only=["weights"])
    norms = {(int(row["stage"]), int(row["label"])): float(row["weight_norm"]) for row in rows_of(produced.csv)}
    assert [norms[0, j] for j in range(5)] == [10, 2, 1, 0, 5]
    assert [norms[1, j] for j in range(5)] == [5, 2, 1, 0, 10] and len(norms) == 10


def test_weight_functions_have_the_paper_s_values():
    """Section 4.4 with its constants: 1 - (400 f)^2, and 1 - exp(-80 exp(-3000 f))."""
    f = torch.tensor([1.76e-4, 1.76e-3, 3.5e-3], dtype=torch.float64)
    values = weight_values(f, get_cfg().MODEL.LONG_TAIL.EQL)
    assert values["threshold"].tolist() == [1, 0, 0]  # strict: 1.76e-3 is not below itself
    assert values["exponential"].tolist() == pytest.approx([0.995, 0.504, 0], abs=1e-3)
    assert values["gompertz"].tolist() == pytest.approx([1.0, 0.335, 0.0022], abs=1e-3)


def test_tail_ratio_steps_are_those_of_the_counts():
    frequency = frequency_of([5, 150, 1, 120, 50])
    rows = tail_ratio_steps(frequency)
    assert [row["num_tail_classes"] for row in rows] == [0, 1, 2, 3, 4, 5]
    assert [row["images"] for row in rows] == [0, 2, 6, 51, 121, 151]
    for row in rows:
        assert row["tail_ratio"] == frequency.tail_ratio(row["lambda"])
        assert row["num_tail_classes"] == frequency.num_tail_classes(row["lambda"])


def test_tail_ratio_and_weight_functions_of_runs(lvis_folder):
    runs = [make_run(lvis_folder, loss, lvis_folder, loss) for loss in ("SIGMOID", "EQL")]
    functions, ratios = analyze(runs, lvis_folder / "out", only=["tail-ratio", "weight-functions"])
    assert [functions.name, ratios.name] == ["weight-functions", "tail-ratio"]
    # Only EQL has a threshold, 0.3 of 200 images: classes in fewer than 60.
    (row,) = rows_of(ratios.csvs[1])
    assert row["run"] == "EQL" and row["num_tail_classes"] == "3"
    assert float(row["tail_ratio"]) == pytest.approx((50 + 5 + 1) / (150 + 120 + 50 + 5 + 1))
    of_categories = {row["name"]: row for row in rows_of(functions.csvs[1])}
    assert [of_categories[f"class_{j}"]["threshold"] for j in range(5)] == ["0.0", "0.0", "1.0", "1.0", "1.0"]


def test_confusion_by_group():
    confusion = torch.zeros(6, 6, dtype=torch.int64)
    confusion[0, 0], confusion[0, 2], confusion[0, 1], confusion[2, 5] = 7, 2, 3, 4  # 0 and 2 are rare, 1 frequent
    confusion[4, 3], confusion[5, 5], confusion[5, 4] = 6, 90, 1
    matrix = group_confusion(confusion, "rfrfc")
    assert PREDICTIONS == ("right", "other rare", "other common", "other frequent", "background")
    assert matrix.tolist() == [[7, 2, 0, 3, 4], [0, 0, 0, 6, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 90]]
    assert matrix.sum() == confusion.sum()
    assert group_confusion(confusion[:5, :5], "rfrfc").tolist()[0] == [7, 2, 0, 3, 0]


def test_most_frequent_predictions():
    confusion = torch.zeros(6, 6, dtype=torch.int64)
    confusion[2, 5], confusion[2, 1], confusion[2, 2] = 5, 3, 2
    rows = prediction_rows("run", confusion, FIVE, "with background")
    assert [(row["label"], row["rank"], row["prediction"], row["predicted"], row["share"]) for row in rows] == [
        (2, 1, "background", 5, 0.5),
        (2, 2, "class_1", 3, 0.3),
        (2, 3, "class_2", 2, 0.2),
    ]
    assert [row["is_right"] for row in rows] == [False, False, True] and rows[1]["prediction_group"] == "f"


def test_running_mean():
    values = torch.arange(200, dtype=torch.float64).numpy()
    values[50] = float("nan")
    assert window(200) == 5 and window(100) == 1
    drawn = smoothed(values)
    assert drawn[0] == 1.0 and drawn[100] == 100.0 and drawn[50] == 50.0 and drawn[51] == pytest.approx(51.25)
    few = torch.tensor([1.0, float("nan")]).numpy()
    assert smoothed(few)[0] == 1.0 and smoothed(few)[1] != smoothed(few)[1]


def test_runs_differ_in_more_than_colour():
    assert len({style["marker"] for style in STYLES}) == len({str(style["linestyle"]) for style in STYLES}) == 7
    assert len(set(HATCHES)) == 7


def test_names_of_runs(lvis_folder):
    (lvis_folder / "a").mkdir()
    (lvis_folder / "b").mkdir()
    runs = [make_run(lvis_folder / parent, "run", lvis_folder) for parent in ("a", "b")]
    assert [run.name for run in open_models(runs)] == ["a/run", "b/run"]
    assert [run.name for run in open_models(runs, ["x", "y"])] == ["x", "y"]


def test_contract():
    assert next(iter(ANALYSES)) == "gradients" and len(ANALYSES) == 9
    produced = Produced("ap", "title", "caption", Path("a.csv"), None, None)
    assert produced.csvs == []


def test_what_the_user_can_mend(lvis_folder):
    run = make_run(lvis_folder, "run", lvis_folder)
    other = make_run(lvis_folder, "other", lvis_folder)
    text = tiny_config(lvis_folder, "Mask-R-CNN-FPN", "EQL", "MODEL.ROI_HEADS.NUM_CLASSES", 7).dump()
    (other / "config.yaml").write_text(text)
    evaluated = make_run(lvis_folder, "evaluated", lvis_folder, "EQL", [1.0, 2.0, 3.0, 4.0])
    broken = make_run(lvis_folder, "broken", lvis_folder)
    (broken / "model_final.pth").write_bytes(b"no checkpoint")
    (broken / "training_gradients.csv").write_text("stage,label\n0,0\n")
    out = lvis_folder / "out"
    for runs, arguments, words in (
        ([], {}, "no run"),
        ([lvis_folder / "nowhere"], {}, "nowhere: there is no such folder"),
        ([lvis_folder / "images"], {}, r"config.yaml: there is no such file; a run is an output folder"),
        ([run], {"only": ["gradient"]}, "--only gradient: there is no such analysis; there are gradients, prob"),
        ([run], {"names": ["a", "b"]}, "--names has 2 names for 1 runs"),
        ([run, other], {}, r"NUM_CLASSES is 5 in .*run/config.yaml and 7 in .*other/config.yaml"),
        ([run], {"only": ["weights"]}, r"model_final.pth: there is no such file; has the training ended\?"),
        (
            [broken],
            {"only": ["weights"], "weights": "model_1.pth"},
            r"there are model_final.pth: name one by --weights",
        ),
        ([broken], {"only": ["weights"]}, "model_final.pth is no file of tensors"),
        ([run], {"only": ["ap"]}, "has no per_category_ap.json of a data set; evaluate the run: eql-d2 train"),
        ([evaluated], {"only": ["ap"]}, "AP of 4 categories, but the model has 5"),
        ([run], {"dataset": "lvis_v9_val", "only": ["gradients"]}, "No data set is registered as 'lvis_v9_val'"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            analyze(runs, out, **arguments)
        assert "\n" not in str(caught.value)


def test_runs_evaluated_on_other_sets(lvis_folder):
    first = make_run(lvis_folder, "first", lvis_folder, "EQL", [1.0] * 5)
    second = make_run(lvis_folder, "second", lvis_folder, "EQL", [1.0] * 5)
    (second / "inference" / "some_val").rename(second / "inference" / "another_val")
    with pytest.raises(InputError, match=r"second was evaluated on another_val"):
        analyze([first, second], lvis_folder / "out", only=["ap"])


def test_state_of_an_open_run(lvis_folder):
    run = TrainedModel(make_run(lvis_folder, "run", lvis_folder), "name", device="cpu")
    assert run.frequency.image_count.tolist() == [150, 120, 50, 5, 1] and run.evaluations() == []
    assert run.cfg.MODEL.DEVICE == "cpu" and Path(run.cfg.MODEL.WEIGHTS).name == "model_final.pth"


def test_the_page_names_every_analysis_and_file():
    text = (ROOT / "docs" / "analysis.md").read_text()
    assert all(f"`{name}`" in text for name in ANALYSES)
    assert "`MODEL.LONG_TAIL.ANALYSIS.PERIOD`" in text and "`training_gradients.csv`" in text
