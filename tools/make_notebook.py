#!/usr/bin/env python3
"""Write docs/own_data.ipynb from docs/own_data.md, or check that it is up to date. Bash blocks become cells to run."""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, Dict

PAGE = Path(__file__).resolve().parent.parent / "docs" / "own_data.md"
NOTEBOOK = PAGE.with_suffix(".ipynb")


def make_notebook(page: str) -> str:
    """Return a page of markdown as a notebook (nbformat 4.5), in which its ``bash`` blocks are cells of code."""
    cells = []
    for place, part in enumerate(re.split(r"^```bash\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)):
        is_code = place % 2 == 1
        text = f"%%bash\n{part.rstrip()}" if is_code else part.strip()
        cell: Dict[str, Any] = {"cell_type": "code" if is_code else "markdown", "id": f"cell-{place}", "metadata": {}}
        if is_code:
            cell.update(execution_count=None, outputs=[])
        cells.append({**cell, "source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is out of date")
    args = parser.parse_args()
    content = make_notebook(PAGE.read_text())
    if not args.check:
        NOTEBOOK.write_text(content)
    elif not NOTEBOOK.is_file() or NOTEBOOK.read_text() != content:
        print(f"{NOTEBOOK.name} is out of date; run: python tools/make_notebook.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
