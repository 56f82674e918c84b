"""Runs of several trainings: what counts as finished."""

import json
import os

from eql_d2.experiments.jobs import Job


def test_metrics_of_an_evaluation_in_between_are_no_finished_run(tmp_path):
    job = Job("eql", tmp_path / "config.yaml", tmp_path)
    assert job.results is None
    (tmp_path / "results.json").write_text(json.dumps({"results": {"bbox": {"AP": 3.0}}}))
    assert job.results is None  # evaluated, but not trained to the end
    (tmp_path / "model_final.pth").write_bytes(b"weights")
    os.utime(tmp_path / "results.json", ns=(0, 0))
    assert job.results is None  # the weights are newer than the metrics
    (tmp_path / "results.json").write_text(json.dumps({"results": {"bbox": {"AP": 4.0}}}))
    assert job.results["results"]["bbox"]["AP"] == 4.0
