"""The report of a run and of a comparison, from output folders without a training."""

import sys
from types import SimpleNamespace

import pytest

from eql_d2.analysis import Produced
from eql_d2.errors import InputError
from eql_d2.visualization import write_report
from tests.visualization.helpers import SCRIPT, Outline, browse, make_run, rename_class
from tests.visualization.test_galleries import BAD, GOOD


@pytest.fixture
def runs(lvis_folder):
    rename_class(lvis_folder, 1, SCRIPT)
    return [
        make_run(lvis_folder, "sigmoid", BAD, ap=8.0, loss="SIGMOID"),
        make_run(lvis_folder, "eql", GOOD, ap=10.0, loss="EQL"),
    ]


def report(runs, output, **options):
    return write_report(runs, output, analysis=False, **options).read_text()


def check(text):
    """Check what holds for every report."""
    outline = Outline(text)
    assert SCRIPT not in text and "http://" not in text and "https://" not in text
    assert not outline.attributes("script", "src") and not outline.attributes("link", "href")
    assert all(alt for alt in outline.attributes("img", "alt"))
    assert all(source.startswith("data:") for source in outline.attributes("img", "src"))
    assert all(link.startswith(("#", "data:")) for link in outline.attributes("a", "href"))
    assert all(outline.attributes("th", "scope")) and outline.attributes("html", "lang") == ["en"]
    anchors = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(anchors) == len(set(anchors))
    assert {link[1:] for link in outline.attributes("a", "href") if link.startswith("#")} <= set(anchors)
    headings = [int(name[1]) for name, _ in outline.tags if name in ("h1", "h2", "h3")]
    assert headings[0] == 1 and headings.count(1) == 1 and all(b - a <= 1 for a, b in zip(headings, headings[1:]))
    return outline


def test_one_run(runs, tmp_path):
    text = report(runs[1:], tmp_path / "report.html", max_images=1)
    check(text)
    assert "<h1>Report of eql</h1>" in text and "10.00" in text and "AP-fixed" in text and "n/a" in text
    assert "Whole configuration of eql" in text and "Keys that differ from the defaults" in text
    assert "total_loss. eql: 3 at iteration 0, 2.4 at 6" in text and "segm/AP." in text
    assert "Worst images" in text and "Best images" in text and "differ most" not in text


def test_a_comparison(runs, tmp_path):
    text = report(runs, tmp_path / "report.html", max_images=2)
    check(text)
    assert "Comparison of sigmoid, eql" in text and "+2.00 against sigmoid" in text
    assert "<strong>10.00</strong>" in text and "<strong>8.00</strong>" not in text
    assert "MODEL.<wbr>LONG_<wbr>TAIL.<wbr>LOSS" in text and "BASE_<wbr>LR" not in text
    gained = text.split("Classes that gained most, Mask AP in percent</span></caption>")[1].split("</table>")[0]
    assert "+12.00" in gained and gained.index("class_4") < gained.index("class_0")
    assert "Images on which the runs differ most" in text


def test_in_a_browser(runs, tmp_path):
    output = tmp_path / "report.html"
    report(runs, output)
    for width in (1200, 360):
        seen = browse(output, tmp_path, width)
        assert seen["images"] > 10 and seen["broken"] == 0 and seen["loaded"] == 0
        assert seen["overflow"] <= 0
        for identifier in ("results", "configuration", "training", "classes", "images"):
            assert f'<section id="{identifier}"' in seen["dom"]


def test_what_cannot_be_shown_is_said(runs, tmp_path, capsys):
    """Without images, curves and results there is still a page."""
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    (runs[0] / "metrics.json").unlink()
    (runs[0] / "results.json").unlink()
    text = report(runs[:1], tmp_path / "report.html")
    check(text)
    assert "No run was evaluated yet." in text and "there is no metrics.json" in text
    assert "Left out: " in text and "is not there" in text
    assert "warning: the section 'Images' is left out" in capsys.readouterr().err


def test_what_is_no_run_is_refused(runs, tmp_path):
    with pytest.raises(InputError, match=r"config\.yaml: there is no such file; a run is an output folder"):
        report([tmp_path], tmp_path / "report.html")
    (runs[0] / "results.json").write_text("{")
    with pytest.raises(InputError, match=r"results\.json is not valid json"):
        report(runs, tmp_path / "report.html")
    with pytest.raises(InputError, match="--max-images -1"):
        report(runs, tmp_path / "report.html", max_images=-1)
    assert not (tmp_path / "report.html").exists()


def test_analyses_are_taken_in(runs, tmp_path, monkeypatch):
    def analyze(runs, output_dir, names, max_images, dataset, device):
        table, figure = output_dir / "norms.csv", output_dir / "norms.svg"
        table.write_text(f"class,norm\n{SCRIPT},1.5\n")
        figure.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"></svg>')
        asked.append((names, max_images, device))
        norms = Produced("norms", "Norms", "Of each class.", table, svg=figure)
        return [norms, Produced("bare", "Bare", "None.", table)]

    asked = []
    monkeypatch.setitem(sys.modules, "eql_d2.analysis", SimpleNamespace(analyze=analyze))
    output = write_report(runs, tmp_path / "report.html", max_images=0, analysis_images=7)
    text = output.read_text()
    outline = check(text)
    assert asked == [(["sigmoid", "eql"], 7, None)]
    assert "<h3>Norms</h3>" in text and outline.attributes("a", "download").count("norms.csv") == 2
    assert "Norms. Of each class." in outline.attributes("img", "alt")
    assert 'id="images"' not in text
