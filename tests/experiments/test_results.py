"""The pages in docs/results are what the report prints of the recorded runs."""

import pytest

from eql_d2.experiments.comparison import collect_lines
from eql_d2.experiments.execution import read_records
from eql_d2.experiments.spec import load_specification
from eql_d2.experiments.table_report import to_markdown
from tests.conftest import ROOT

RESULTS = ROOT / "docs" / "results"


@pytest.mark.parametrize("page", sorted(RESULTS.glob("*.md")), ids=lambda path: path.stem)
def test_page_is_what_the_report_prints(page, monkeypatch, tmp_path):
    # Without the data: another version of NumPy may have drawn it differently on this machine.
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    name, _, baseline = page.stem.partition("_against_")
    table = load_specification(name).against(baseline) if baseline else load_specification(name)
    records = RESULTS / f"{name.split('_')[0]}.jsonl"  # the generated set's, or that of photographs
    printed = to_markdown(table, collect_lines(table, records))
    numbers = [line for line in printed.splitlines() if line.startswith("|")]
    assert numbers == [line for line in page.read_text().splitlines() if line.startswith("|")]


def test_records_say_what_makes_them_again():
    records = read_records(RESULTS / "mini.jsonl")
    assert len(records) > 20
    for record in records:
        assert (ROOT / record["config"]).is_file() or record["name"] == "pretrain"
        assert record["seconds"] > 0 and record["peak_memory_mib"] > 0 and record["commit"]
        assert record["experiment"]["versions"]["torch"] and record["machine"]["cores"]
        metrics = record["metrics"]
        assert metrics["bbox"]["AP"] > 1 if "bbox" in metrics else metrics["sem_seg"]["mIoU"] > 1
