"""Numbers of a table: published cells, means over seeds, supported differences; and how they are printed."""

import csv
import html.parser
import io
import json
import re

import numpy as np
import pytest

from eql_d2.errors import InputError
from eql_d2.experiments.comparison import best_record, collect_lines, differs, published_value
from eql_d2.experiments.plan import bare_source, code_digest, runs_of
from eql_d2.experiments.references import read_tables
from eql_d2.experiments.table_report import FORMATS, format_report

ROWS = [
    {"name": "base", "config": "tiny", "label": "Base & <co>"},
    {"name": "better", "config": "tiny", "label": "Better", "opts": ["SOLVER.BASE_LR", 0.1], "values": {"λ": 1}},
    {"name": "absent", "config": "tiny", "label": "Absent", "opts": ["SOLVER.BASE_LR", 0.2]},
]
KEYS = {"seeds": [0, 1, 2], "baseline": "base", "columns": ["λ"], "caveats": ["Mind the | gap."]}
AP = {"base": [10.0, 10.2, 10.4], "better": [12.0, 12.2, 12.4]}
APR = {"base": [1.0, 5.0, 9.0], "better": [2.0, 6.0, 10.0]}


def write_records(place, table, **changes):
    """Write a results file in which ``absent`` was not run."""
    path = place / "results.jsonl"
    lines = []
    for (name, seed), run in runs_of(table, place).items():
        if name in AP:
            metrics = {"segm": {"AP": AP[name][seed], "APr": APR[name][seed]}, "bbox": {"AP": None}}
            record = {
                "key": run.key, "name": name, "seed": seed, "config_digest": run.config_digest,
                "data_digest": run.data_digest(), "code_digest": "code", "commit": "1234567890-dirty",
                "metrics": metrics,
                "seconds": 60.0 * (seed + 1), "peak_memory_mib": 900.0, **changes,
            }  # fmt: skip
            lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def measured(place, write_table):
    table = write_table(ROWS, **KEYS)
    return table, collect_lines(table, write_records(place, table))


def test_means_spreads_and_differences(measured):
    base, better, absent = measured[1]
    cell = better.cells["segm/AP"]
    assert cell.mean == pytest.approx(12.2) and cell.spread == pytest.approx(0.2)
    assert cell.difference == pytest.approx(2.0) and cell.supported
    # The same lead in numbers that scatter more than it: not supported.
    cell = better.cells["segm/APr"]
    assert cell.difference == pytest.approx(1.0) and not cell.supported
    assert base.cells["segm/AP"].difference is None
    assert absent.cells["segm/AP"].mean is None and absent.seeds == ()
    assert better.cells["bbox/AP"].mean is None  # no ground truth, no number
    assert (better.seconds, better.peak_memory_mib) == (120.0, 900.0)
    assert better.provenance == ("commit 1234567-dirty, code code",) * 3


def test_welch_on_known_samples():
    # t = 2 / sqrt(0.04/3 + 0.04/3) = 12.2 with 4 degrees of freedom; the quantile is 2.776.
    assert differs([10.0, 10.2, 10.4], [12.0, 12.2, 12.4])
    # t = 2.45 with 4 degrees of freedom: too little.
    assert not differs([9.8, 10.0, 10.2], [10.2, 10.4, 10.6])
    assert not differs([1.0], [9.0, 9.1])
    assert differs([1.0, 1.0], [2.0, 2.0]) and not differs([1.0, 1.0], [1.0, 1.0])


def test_false_alarms_are_as_rare_as_promised():
    rng = np.random.default_rng(1)
    alarms = [differs(*rng.normal(0, 1, (2, 3)).tolist()) for _ in range(4000)]
    assert 0.005 < np.mean(alarms) < 0.06


def test_the_report_says_which_code_measured_and_numbers_of_other_data_are_left_out(place, write_table):
    table = write_table(ROWS, **KEYS)
    lines = collect_lines(table, write_records(place, table, code_digest="0123456789", commit=None))
    assert "Measured with commit unknown, code 01234567: 6 runs." in format_report(table, lines, "markdown")
    assert collect_lines(table, write_records(place, table, data_digest="other"))[1].seeds == ()
    # Where the data is not at hand, what is recorded is still printed.
    path = write_records(place, table)
    (place / "data" / "val.json").unlink()
    assert collect_lines(table, path)[1].seeds == (0, 1, 2)


def test_of_several_records_the_newest_counts_whatever_its_code(place, write_table):
    table = write_table(ROWS[:1], seeds=[0])
    run = runs_of(table, place)["base", 0]
    common = {"config_digest": run.config_digest, "data_digest": run.data_digest()}
    records = [{**common, "code_digest": code, "n": i} for i, code in enumerate(["old", code_digest(), "older"])]
    assert best_record(run, records)["n"] == 2
    assert best_record(runs_of(table, place, code_digest())["base", 0], records)["n"] == 1  # as --rerun asks
    assert best_record(run, []) is None


@pytest.mark.parametrize(
    "reference, metric, value",
    [
        ({"table": "eql_table5", "row": {"method": "EQL (Ours)"}}, "segm/AP", "22.8"),
        ({"table": "eql_table5", "row": {"method": "EQL (Ours)"}}, "segm/APl", "38.2"),
        ({"table": "eql_table5", "row": {"method": "EQL (Ours)"}}, "bbox/AP", "23.3"),
        ({"table": "eql_table5", "row": {"method": "EQL (Ours)"}}, "bbox/APr", None),
        ({"table": "eql_table5", "row": {"method": "EQL (Ours)"}}, "segm/AP-fixed", None),
        ({"table": "bags_lvis", "row": {"id": 20.0}}, "bbox/AP", "25.76"),
        ({"table": "bags_lvis", "row": {"id": 20.0}}, "segm/AP", "26.25"),
        ({"table": "bags_lvis", "row": {"id": 14.0}}, "segm/AP", None),
        ({"table": "acsl_lvis", "row": {"model": "Cascade R-101 baseline / ACSL"}, "part": 1}, "bbox/AP", "29.71"),
        ({"table": "acsl_lvis", "row": {"model": "R-50-FPN ACSL, ξ = 0.7"}}, "bbox/APr", "18.64"),
        ({"table": "acsl_lvis", "row": {"model": "R-50-FPN ACSL, ξ = 0.7"}}, "segm/AP", None),
        # EQL numbers the groups of Open Images from the most frequent on, EQL v2 and EFL from the rarest on.
        ({"table": "eql_table6", "row": {"method": "EQL (Ours)"}}, "oid/AP-1-rarest", "44.6"),
        ({"table": "eql_table6", "row": {"method": "EQL (Ours)"}}, "oid/AP-5-most-frequent", "64.95"),
        ({"table": "eqlv2_repo_openimages", "row": {"method": "Faster R-50"}}, "oid/AP-1-rarest", "26.3"),
        ({"table": "eqlv2_repo_openimages", "row": {"method": "Faster R-50"}}, "oid/AP", "43.1"),
        ({"table": "efl_openimages", "row": {"backbone": "R-50"}}, "oid/AP", "51.52"),
        ({"table": "efl_openimages", "row": {"backbone": "R-50"}}, "oid/AP-5-most-frequent", "50.95"),
    ],
)
def test_published_cells(reference, metric, value):
    assert published_value(read_tables(), reference, metric) == value


def test_published_row_that_does_not_exist():
    with pytest.raises(InputError, match="0 rows of eql_table5"):
        published_value(read_tables(), {"table": "eql_table5", "row": {"method": "None"}}, "segm/AP")


def test_markdown(measured):
    text = format_report(*measured, "markdown")
    table = next(line for line in text.splitlines() if line.startswith("| Better"))
    assert table == "| Better | 1 | 3 | 12.2 ± 0.2 (+2.0*) | 6.0 ± 4.0 (+1.0) |"
    assert "| Absent |  | 0 | not run | not run |" in text
    assert "| Base & <co> |  | 3 | 10.2 ± 0.2 | 5.0 ± 4.0 |" in text
    assert "- Mind the | gap." in text and "In brackets: difference to Base & <co>." in text
    assert "A run took 2.0 to 2.0 minutes of wall time and at most 900 MiB." in text


def test_rows_with_baselines_of_their_own_name_them(place, write_table):
    rows = [*ROWS[:2], dict(ROWS[2], baseline="better")]
    table = write_table(rows, **KEYS)
    text = format_report(table, collect_lines(table, write_records(place, table)), "markdown")
    assert "| method | λ | baseline | seeds |" in text and "| Absent |  | Better | 0 |" in text
    assert "| Base & <co> |  |  | 3 |" in text and "difference to the row's baseline" in text


def test_csv_has_every_number(measured):
    rows = list(csv.DictReader(io.StringIO(format_report(*measured, "csv"))))
    assert len(rows) == 3 * 3
    row = next(row for row in rows if (row["method"], row["metric"]) == ("Better", "segm/AP"))
    assert float(row["mean"]) == 12.2 and float(row["difference"]) == 2.0 and row["supported"] == "true"
    absent = next(row for row in rows if row["method"] == "Absent")
    assert absent["mean"] == "" and absent["seeds"] == "0"


def test_latex_is_balanced_and_escaped(measured):
    text = format_report(*measured, "latex")
    assert text.count("\\begin{tabular}") == text.count("\\end{tabular}") == 2
    assert "Base \\& <co>" in text and r"12.2 $\pm$ 0.2" in text
    for line in text.splitlines():
        if line.endswith("\\\\"):
            assert len(re.findall(r"(?<!\\)&", line)) in (3, 4)


def test_html_is_escaped_and_well_formed(measured):
    text = format_report(*measured, "html")
    assert "Base &amp; &lt;co&gt;" in text and "<co>" not in text

    class Checker(html.parser.HTMLParser):
        open_tags = []

        def handle_starttag(self, tag, attributes):
            if tag != "meta":
                self.open_tags.append(tag)

        def handle_endtag(self, tag):
            assert self.open_tags.pop() == tag

    checker = Checker()
    checker.feed(text)
    assert not checker.open_tags


@pytest.mark.parametrize("style", FORMATS)
def test_published_numbers_stand_beside_what_was_not_run(style, tmp_path):
    from eql_d2.experiments.spec import load_specification

    table = load_specification("eql_table5")
    text = format_report(table, collect_lines(table, tmp_path / "none.jsonl"), style)
    assert "11.3" in text and "22.8" in text
    if style != "csv":
        assert text.count("not run") == 7 * len(table.metrics)


def test_a_failed_row_shows_its_error(measured, place):
    table = measured[0]
    lines = collect_lines(table, place / "results.jsonl", {"absent": "error: out of luck"})
    assert "Absent failed: error: out of luck" in format_report(table, lines, "markdown")


def test_a_digest_of_code_does_not_see_comments_and_docstrings():
    plain = "def f(x):\n    return x + 1\nclass A:\n    pass\n"
    said = '"""Module."""\n# why\ndef f(x):\n    """Add."""\n    return (x + 1)  # one\n\nclass A:\n    """An A."""\n'
    assert bare_source(plain) == bare_source(said)
    assert bare_source(plain) != bare_source(said.replace("x + 1", "x + 2"))
    assert "not a docstring" in bare_source('x = 1\n"not a docstring"')
