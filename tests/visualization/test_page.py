"""HTML that is well formed, escaped and accessible; pages that link to one another."""

import numpy as np
import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from eql_d2.errors import InputError
from eql_d2.visualization import page
from eql_d2.visualization.gallery import Gallery
from tests.visualization.helpers import SCRIPT, Outline


def test_text_is_escaped_and_markup_is_not():
    assert page.code("a_b<") == "<code>a_<wbr>b&lt;</code>" and SCRIPT not in page.code(SCRIPT)
    badge = page.class_badge(SCRIPT, "r")
    assert SCRIPT not in badge and '<abbr class="group r" title="rare">r</abbr>' in badge
    rows = [[SCRIPT, Markup("<b>3.5</b>")], ["b", page.class_badge("c", "r")]]
    table = {"caption": '"Caption" <', "header": ["", "AP"], "rows": rows, "class": ""}
    text = page.render("tables", tables=[table], folded=[], texts=[("a", SCRIPT)], missing="")
    outline = Outline(text)
    assert SCRIPT not in text and "<b>3.5</b>" in text
    assert outline.attributes("th", "scope") == ["col", "col", "row", "row"]
    assert outline.attributes("div", "aria-label") == ['"Caption" <']


def test_a_value_that_a_template_lacks_is_an_error():
    with pytest.raises(UndefinedError, match="missing"):
        page.render("tables", tables=[], folded=[], texts=[])


def test_a_document_is_well_formed(tmp_path):
    text = Gallery(tmp_path, SCRIPT, SCRIPT).write().read_text()
    outline = Outline(text)
    assert text.startswith("<!DOCTYPE html>") and SCRIPT not in text
    assert outline.attributes("html", "lang") == ["en"] and outline.attributes("script", "src") == []
    assert "font-variant-numeric: tabular-nums; }" in text  # the style is in it, and not escaped: "Segoe UI"
    assert '"Segoe UI"' in text


def fill(folder, count, per_page=2):
    gallery = Gallery(folder, "Title", "lead", per_page)
    for i in range(count):
        address = gallery.place(f"{i}", np.zeros((4, 4, 3), np.uint8))
        gallery.add(Markup('<img src="{}" alt="">').format(address))
    return gallery.write()


def test_pages_link_to_one_another(tmp_path):
    first = fill(tmp_path, 19)
    assert first == tmp_path / "index.html" and len(list(tmp_path.glob("page-*.html"))) == 9
    for number in range(10):
        path = tmp_path / (f"page-{number + 1}.html" if number else "index.html")
        outline = Outline(path.read_text())
        links = set(outline.attributes("a", "href"))
        assert all((tmp_path / link).is_file() for link in links)
        assert ("prev" in outline.attributes("a", "rel")) == (number > 0)
        assert ("next" in outline.attributes("a", "rel")) == (number < 9)
        assert {"index.html", "page-10.html"} <= links
        assert all((tmp_path / source).is_file() for source in outline.attributes("img", "src"))
    assert "Images 19 to 19 of 19, page 10 of 10" in (tmp_path / "page-10.html").read_text()


def test_a_gallery_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path):
    fill(tmp_path, 5)
    fill(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.html", "pictures"]
    assert len(list((tmp_path / "pictures").iterdir())) == 1
    (tmp_path / "index.html").unlink()
    fill(tmp_path, 1)  # an earlier call was interrupted before it wrote a page
    (tmp_path / "index.html").write_text("<html>mine</html>")
    with pytest.raises(InputError, match="is no gallery and is not empty"):
        fill(tmp_path, 1)
    with pytest.raises(InputError, match="is a file"):
        fill(tmp_path / "index.html", 1)
    with pytest.raises(InputError, match="--per-page 0"):
        Gallery(tmp_path / "other", "Title", "", per_page=0)
