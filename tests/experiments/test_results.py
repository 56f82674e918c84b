"""The pages in docs/results are what the report prints of the recorded runs."""

import pytest

from eql_d2.experiments.comparison import collect_lines
from eql_d2.experiments.execution import read_records
from eql_d2.experiments.spec import load_specification
from eql_d2.experiments.table_report import to_markdown
from tests.conftest import ROOT

RESULTS = ROOT / "docs" / "results"


#: Tables that were measured after softmax detectors of their own, on another machine than the others.
SECOND_STAGES = ("mini_acsl_xi", "mini_bags", "mini_lws")


def records_of_table(name):
    """The records of the generated set's tables, or of the photographs'."""
    return RESULTS / f"{'mini_second_stages' if name in SECOND_STAGES else name.split('_')[0]}.jsonl"


@pytest.mark.parametrize("page", sorted(RESULTS.glob("*.md")), ids=lambda path: path.stem)
def test_page_is_what_the_report_prints(page, monkeypatch, tmp_path):
    # Without the data: another version of NumPy may have drawn it differently on this machine.
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    name, _, baseline = page.stem.partition("_against_")
    table = load_specification(name).against(baseline) if baseline else load_specification(name)
    printed = to_markdown(table, collect_lines(table, records_of_table(name)))
    numbers = [line for line in printed.splitlines() if line.startswith("|")]
    assert numbers == [line for line in page.read_text().splitlines() if line.startswith("|")]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("mini*.jsonl")), ids=lambda path: path.stem)
def test_records_say_what_makes_them_again(path):
    records = read_records(path)
    assert len(records) > 20
    for record in records:
        assert (ROOT / record["config"]).is_file() or record["name"] == "pretrain"
        assert record["seconds"] > 0 and record["peak_memory_mib"] > 0 and record["commit"]
        assert record["experiment"]["versions"]["torch"] and record["machine"]["cores"]
        metrics = record["metrics"]
        assert metrics["bbox"]["AP"] > 1 if "bbox" in metrics else metrics["sem_seg"]["mIoU"] > 1
