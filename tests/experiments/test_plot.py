"""The figure of a table, and one row as the baseline of all."""

import pytest

from eql_d2.errors import InputError
from eql_d2.experiments.comparison import collect_lines
from eql_d2.experiments.plot import default_metrics, plot_table, rank_correlation, table_figure
from eql_d2.experiments.spec import load_specification
from tests.experiments.test_comparison import measured, write_records  # noqa: F401  (measured is a fixture)


def test_rows_are_sorted_and_supported_differences_filled(measured):  # noqa: F811
    figure = table_figure(*measured, ["segm/AP", "segm/APr"])
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["Better, λ 1", "Base & <co>"]
    assert [label.get_text() for label in second.get_yticklabels()] == ["", ""]
    better, better_mean, base, base_mean, baseline = first.lines
    assert list(better.get_xdata()) == [12.0, 12.2, 12.4] and list(better.get_ydata()) == [0, 0, 0]
    assert better_mean.get_xdata()[0] == pytest.approx(12.2) and base_mean.get_xdata()[0] == pytest.approx(10.2)
    assert better.get_markerfacecolor() != "none" and base.get_markerfacecolor() == "none"
    assert second.lines[0].get_markerfacecolor() == "none"  # a lead that the seeds do not support
    assert baseline.get_xdata()[0] == pytest.approx(10.2)
    assert first.get_xlabel() == "mask AP" and second.get_xlabel() == "mask APr"


def test_rows_are_sorted_by_another_metric_or_by_each_panel_s_own(measured):  # noqa: F811
    table, (base, better, absent) = measured
    base.cells["segm/APr"].values[:] = [90.0] * 3

    def names(sort):
        panels = table_figure(table, [base, better, absent], ["segm/AP", "segm/APr"], sort).axes
        return [[label.get_text() for label in panel.get_yticklabels()] for panel in panels]

    assert names("segm/APr") == [["Base & <co>", "Better, λ 1"], ["", ""]]
    assert names("each") == [["Better, λ 1", "Base & <co>"], ["Base & <co>", "Better, λ 1"]]
    assert rank_correlation([base, better, absent], ["segm/AP", "segm/APr"]).endswith("the means of 2 rows: -1.00.")
    with pytest.raises(InputError, match="tiny has no metric 'segm/APz'"):
        names("segm/APz")


def test_the_file(measured, tmp_path):  # noqa: F811
    plot_table(*measured, tmp_path / "new" / "tiny.svg", ["segm/AP"])
    assert (tmp_path / "new" / "tiny.svg").read_text().startswith("<?xml")
    plot_table(*measured, tmp_path / "tiny.png", ["segm/AP"])
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.rglob("*.tmp*"))


def test_metrics_that_are_drawn_by_default():
    assert default_metrics(load_specification("mini_methods")) == ["segm/AP", "bbox/AP-fixed"]


def test_what_cannot_be_drawn(measured, tmp_path):  # noqa: F811
    table, lines = measured
    with pytest.raises(InputError, match=r"tiny\.gif must end in \.png, \.svg, \.pdf"):
        plot_table(table, lines, tmp_path / "tiny.gif")
    with pytest.raises(InputError, match="tiny has no metric 'segm/APz'; it has segm/AP, "):
        plot_table(table, lines, tmp_path / "tiny.png", ["segm/APz"])
    with pytest.raises(InputError, match="No row of tiny has segm/AP and bbox/AP measured"):
        plot_table(table, lines, tmp_path / "tiny.png")
    assert not (tmp_path / "tiny.png").exists()


def test_one_baseline_for_all(measured, place):  # noqa: F811
    table = measured[0].against("better")
    base, better, _ = collect_lines(table, write_records(place, table))
    assert base.cells["segm/AP"].difference == pytest.approx(-2.0) and base.cells["segm/AP"].supported
    assert better.cells["segm/AP"].difference is None
    with pytest.raises(InputError, match="--baseline best: tiny has no such row; there are base, better, absent"):
        measured[0].against("best")
