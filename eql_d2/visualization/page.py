"""HTML pages that need no network and no script, from the jinja2 templates in ``templates``: every text is escaped."""

import base64
import re

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import eql_d2
from eql_d2.data.groups import GROUP_COLORS, GROUP_NAMES


def render(template: str, **values) -> Markup:
    """Return what a template makes of the values; it may be put into another one as it is.

    Args:
        template: name of a file in ``templates`` without ``.html.j2``.
        values: what it names; escaped, but for :class:`markupsafe.Markup`.
    """
    return Markup(_TEMPLATES.get_template(f"{template}.html.j2").render(values))


def code(words: str) -> Markup:
    """Return a name in code's type that may be broken behind a dot, a slash or an underscore."""
    return Markup("<code>{}</code>").format(Markup(re.sub(r"([._/])", r"\1<wbr>", str(escape(words)))))


def class_badge(name: str, group: str) -> Markup:
    """Return the name of a class with the letter of its group."""
    return Markup(_TEMPLATES.get_template("parts.html.j2").module.badge(name, group))


def data_uri(content: bytes, mime: str) -> str:
    """Return bytes as an address that holds them."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


_TEMPLATES = Environment(
    loader=PackageLoader("eql_d2.visualization"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.globals.update(GROUP_COLORS=GROUP_COLORS, GROUP_NAMES=GROUP_NAMES, version=eql_d2.__version__)
_TEMPLATES.filters["code"] = code
