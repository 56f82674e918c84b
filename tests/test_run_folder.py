"""The output folder of a training: its names, what is read there and written, when the training has finished."""

import json
import math
import os
from types import SimpleNamespace

import pytest

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.run_folder import RunFolder, find_detections, open_run_folders, unique_names


def with_datasets(folder, *names):
    """Return the folder of a run whose config names these test sets."""
    run = RunFolder(folder)
    run.cfg = SimpleNamespace(DATASETS=SimpleNamespace(TEST=names))
    return run


def test_metrics_of_an_evaluation_in_between_are_no_finished_run(tmp_path):
    run = RunFolder(tmp_path)
    assert not run.has_finished()
    run.write_results({}, {"bbox": {"AP": 3.0}})
    assert not run.has_finished()  # evaluated, but not trained to the end
    run.weights.write_bytes(b"weights")
    os.utime(run.results_file, ns=(0, 0))
    assert not run.has_finished()  # the weights are newer than the metrics
    run.write_results({}, {"bbox": {"AP": 4.0}})
    assert run.has_finished()


def test_results_are_merged_and_hold_no_nan(tmp_path):
    run = with_datasets(tmp_path, "val")
    assert run.read_results() == {} == run.experiment and RunFolder(tmp_path / "absent").read_results() == {}
    run.write_results({"seed": 1}, {"bbox": {"AP": 3.0, "APr": math.nan}})
    run.write_results({"seed": 2}, {"bbox_TTA": {"AP": 4.0}})
    content = {"experiment": {"seed": 2}, "results": {"bbox": {"AP": 3.0, "APr": None}, "bbox_TTA": {"AP": 4.0}}}
    assert run.read_results() == content == json.loads((tmp_path / "results.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert run.results == {"val": content["results"]}
    run.results_file.write_text("{")
    with pytest.raises(InputError, match=r"results\.json is not valid json"):
        RunFolder(tmp_path).read_results()


def test_results_of_several_data_sets_and_augmentations(tmp_path):
    ap = {"AP": 1.0}
    run = with_datasets(tmp_path, "a", "b")
    run.write_results({}, {"a": {"bbox": ap}, "b": {}, "a_TTA": {"bbox": ap}})
    assert run.results == {"a": {"bbox": ap, "bbox_TTA": ap}}
    assert run.inference_folder("a", augmented=True) == tmp_path / "inference_TTA" / "a"


def test_counts_are_read_as_they_were_written(tmp_path):
    run = RunFolder(tmp_path / "new")
    run.write_frequency(CategoryFrequency.from_counts([1, 20], num_images=30))
    read = CategoryFrequency.from_json(run.frequency_file)
    assert read.image_count.tolist() == [1, 20] and read.num_images == 30


def test_a_resumed_history_and_a_line_cut_off(tmp_path):
    run = RunFolder(tmp_path)
    assert run.last_metrics() is None
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 4, "lr": 1}\n{"iteration": 2, "lr": 2}\n{"iteration": 4, "lr": 3}\n{"iterat')
    assert run.series("lr") == [(2, 2), (4, 3)] and run.metric_keys() == ["iteration", "lr"]
    path.write_text('nonsense\n{"iteration": 4}\n')
    with pytest.raises(InputError, match=r"metrics\.json, line 1"):
        _ = RunFolder(tmp_path).history


def test_a_history_with_half_a_line_is_mended_in_place(tmp_path):
    run = RunFolder(tmp_path)
    run.mend_history()
    with run.history_file.open("a") as file:
        file.write('{"iteration": 4, "bbox/AP": 1}\n{"iterat')
        file.flush()
        run.mend_history()
        file.write('{"iteration": 5}\n')
    assert [line["iteration"] for line in run.history] == [4, 5]
    run.write_results({}, {"bbox": {"AP": 1.0}})
    assert run.has_evaluated(4) and not run.has_evaluated(5)
    run.history_file.write_text("half")
    run.mend_history()
    assert run.history_file.read_text() == ""


def test_the_last_metrics_are_those_of_the_last_whole_line(tmp_path):
    run = RunFolder(tmp_path)
    lines = ['{"iteration": 9, "total_loss": 2.0}', '{"iteration": 5, "total_loss": 3.0}', '{"iteration": 5, "AP": 1}']
    run.history_file.write_text("\n".join(lines) + '\n{"iteration": 6, "total_loss"')
    assert run.last_metrics() == {"iteration": 5, "total_loss": 3.0}  # resumed at 5
    run.history_file.write_text('{"iteration": 7, "total_loss": 1.0}\n')
    assert run.last_metrics()["iteration"] == 7


@pytest.mark.parametrize(
    "text, words",
    [
        ("$ a\nerror: first\n$ b\n", "it said nothing"),
        ("$ a\nerror: first\n$ b\nTraceback\nValueError: x\n\n", "ValueError: x"),
        ("error: the data is missing\nsome warning\n", "error: the data is missing"),
    ],
)
def test_last_words(tmp_path, text, words):
    run = RunFolder(tmp_path)
    run.console_file.write_text(text)
    assert run.last_words() == words


def test_ap_of_each_category(tmp_path):
    run = with_datasets(tmp_path, "second", "first")
    assert run.category_ap("first") == [] == run.evaluations()
    with pytest.raises(InputError, match=r"per_category_ap\.json of a data set; evaluate the run"):
        run.evaluated_dataset()
    for name in ("first", "second", "third"):
        run.category_file(name).parent.mkdir(parents=True)
        run.category_file(name).write_text('[{"id": 2}, {"id": 1}]')
    assert [row["id"] for row in run.category_ap("first")] == [1, 2]
    assert run.evaluated_dataset("third") == "third" and run.evaluated_dataset("fourth") == "second"
    run.category_file("first").write_text("[1]")
    with pytest.raises(InputError, match="is no table of evaluation"):
        run.category_ap("first")


def test_detections_of_a_run_folder(tmp_path):
    (tmp_path / "inference/val").mkdir(parents=True)
    path = tmp_path / "inference/val/coco_instances_results.json"
    path.write_text("[]")
    assert find_detections(tmp_path, "val") == find_detections(path, "other") == path
    with pytest.raises(InputError, match=r"no lvis_instances_results\.json in inference/other; it has results on val"):
        find_detections(tmp_path, "other")
    with pytest.raises(InputError, match="no such results file or run folder"):
        find_detections(tmp_path / "absent", "val")


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"absent: there is no such folder; a run is an output folder"):
        open_run_folders([tmp_path / "absent"])
    with pytest.raises(InputError, match=r"config\.yaml: there is no such file; a run is an output folder"):
        open_run_folders([tmp_path])


def test_names_tell_runs_apart(tmp_path):
    paths = [tmp_path / "a/eql", tmp_path / "b/eql"]
    assert unique_names(paths) == ["a/eql", "b/eql"] and unique_names(paths[:1]) == ["eql"]
    assert unique_names(paths, ["one", "two"]) == ["one", "two"]
    for names, message in ((["one"], "1 names for 2 runs"), (["one", "one"], "must differ")):
        with pytest.raises(InputError, match=message):
            unique_names(paths, names)
    with pytest.raises(InputError, match="given twice"):
        unique_names([tmp_path, tmp_path])
