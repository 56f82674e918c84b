#!/usr/bin/env python3
"""Write a page for each module of eql_d2 from its docstrings; a warning of pdoc is an error."""

import argparse
import importlib
import pkgutil
import warnings
from pathlib import Path
from typing import List

import pdoc

import eql_d2


def module_names() -> List[str]:
    """Return the modules that have a page."""
    found = pkgutil.walk_packages(eql_d2.__path__, "eql_d2.")
    return ["eql_d2", *(module.name for module in found if not module.name.endswith("__main__"))]


def show_submodules(name: str) -> None:
    """Import a module, with the names that it imports on first use, and let a package list its modules as well."""
    module = importlib.import_module(name)
    public = list(getattr(module, "__all__", ()))
    for member in public:
        setattr(module, member, getattr(module, member))
    if public and hasattr(module, "__path__"):
        children = [child.name for child in pkgutil.iter_modules(module.__path__)]
        module.__all__ = [*public, *(child for child in children if child not in public)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/api"), help="default: build/api")
    output = parser.parse_args().output
    for name in module_names():
        show_submodules(name)
    pdoc.render.configure(docformat="google", footer_text=f"eql_d2 {eql_d2.__version__}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pdoc.pdoc("eql_d2", output_directory=output)
    # Sphinx's "~" (show the last part of a name alone) means nothing to pdoc, which would print it.
    for page in [*output.rglob("*.html"), output / "search.js"]:
        content = page.read_text(encoding="utf-8").replace("<code>~", "<code>")
        page.write_text(content.replace("~eql_d2.", "eql_d2.") if page.suffix == ".js" else content, encoding="utf-8")
    print(f"{output / 'index.html'}")


if __name__ == "__main__":
    main()
