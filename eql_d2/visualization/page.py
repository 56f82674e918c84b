"""HTML pages that need no network and no script. Every text is escaped unless it is :class:`Html` already."""

import base64
import html
import re
from typing import Iterable, Sequence, Union

from eql_d2.data.groups import GROUP_COLORS, GROUP_NAMES
from eql_d2.visualization.style import STYLE

_VOID = {"img", "meta", "line"}


class Html(str):
    """Markup that goes into a page as it is."""

    __slots__ = ()


Content = Union[str, int, float]


def join(parts: Iterable[Content], separator: Content = "") -> Html:
    """Return the parts one behind the other, each escaped unless it is :class:`Html`."""
    return Html(_markup(separator).join(map(_markup, parts)))


def tag(name: str, /, *children: Content, **attributes: Union[Content, bool]) -> Html:
    """Return an element. ``class_`` and ``for_`` lose their underscore, other underscores become hyphens.

    Args:
        name: of the element.
        children: what is in it; escaped unless :class:`Html`.
        attributes: escaped; ``True`` gives an attribute without a value, ``False`` none at all.
    """
    written = ""
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            written += f" {key}"
        elif value is not False:
            written += f' {key}="{html.escape(str(value), quote=True)}"'
    return Html(f"<{name}{written}>" + ("" if name in _VOID else f"{join(children)}</{name}>"))


def _markup(content: Content) -> str:
    return content if isinstance(content, Html) else html.escape(str(content), quote=False)


def document(title: str, body: Content, class_: str = "") -> str:
    """Return a whole page in English with the project's style inlined."""
    head = join(
        [
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", name="generator", content="eql_d2"),
            tag("title", title),
            Html(f"<style>\n{STYLE}</style>"),
        ],
        Html("\n"),
    )
    page = tag("html", Html("\n"), tag("head", head), Html("\n"), tag("body", body, class_=class_), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def table(caption: Content, header: Sequence[Content], rows: Iterable[Sequence[Content]], class_: str = "") -> Html:
    """Return a table whose first column names the rows; it scrolls by itself where it is wider than the page."""
    head = tag("tr", *(tag("th", cell, scope="col") for cell in header))
    body = [tag("tr", tag("th", first, scope="row"), *(tag("td", cell) for cell in others)) for first, *others in rows]
    whole = tag("table", tag("caption", tag("span", caption)), tag("thead", head), tag("tbody", *body), class_=class_)
    # Focusable, so that it can be scrolled by keyboard.
    return tag("div", whole, class_="scroll", role="region", tabindex=0, aria_label=_plain(caption))


def _plain(content: Content) -> str:
    """Return the text of what may be markup without its tags."""
    if not isinstance(content, Html):
        return str(content)
    return html.unescape("".join(part.rpartition(">")[2] for part in content.split("<")))


def details(summary: Content, *children: Content) -> Html:
    """Return a part that is folded until it is clicked."""
    return tag("details", tag("summary", summary), *children)


def section(identifier: str, heading: str, *children: Content) -> Html:
    """Return a section with an anchor and a heading of the second level."""
    heading_id = f"{identifier}-heading"
    return tag("section", tag("h2", heading, id=heading_id), *children, id=identifier, aria_labelledby=heading_id)


def code(words: str) -> Html:
    """Return a name in code's type that may be broken behind a dot, a slash or an underscore."""
    return tag("code", Html(re.sub(r"([._/])", r"\1<wbr>", html.escape(words))))


def data_uri(content: bytes, mime: str) -> str:
    """Return bytes as an address that holds them."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def group_badge(name: str, group: str) -> Html:
    """Return the name of a class with the letter of its group."""
    letter = tag("abbr", group, class_=f"group {group}", title=GROUP_NAMES[group])
    return tag("span", name, Html("&nbsp;"), letter, class_="class-name")


def legend() -> Html:
    """Return what the line styles of the pictures mean."""
    styles = {"r": "", "c": "10 6", "f": "0.1 6"}
    entries = []
    for group, dashes in styles.items():
        stroke = {"stroke_dasharray": dashes, "stroke_linecap": "round" if group == "f" else "butt"}
        line = tag("line", x1=2, y1=8, x2=58, y2=8, stroke=GROUP_COLORS[group], stroke_width=4, **stroke)
        drawing = tag("svg", line, width=60, height=16, viewBox="0 0 60 16", aria_hidden="true")
        words = {"r": "solid and tinted", "c": "dashed", "f": "dotted"}[group]
        entries.append(tag("li", drawing, f" {GROUP_NAMES[group]} ({group}): {words}"))
    return tag("ul", *entries, class_="legend", aria_label="Line styles of the frequency groups")
