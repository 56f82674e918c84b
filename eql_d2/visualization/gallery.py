"""A folder of pictures with HTML pages, some tens of pictures each, that link to one another."""

from pathlib import Path
from typing import List, Sequence

import numpy as np
from markupsafe import Markup

from eql_d2.errors import InputError
from eql_d2.files import write_whole
from eql_d2.visualization.drawing import encode_jpeg
from eql_d2.visualization.page import render

PICTURES = "pictures"
_INDEX = "index.html"
_MARK = '<meta name="generator" content="eql_d2">'


class Gallery:
    """Takes pictures as they are made, then writes ``index.html``, ``page-2.html``, ...

    Args:
        output_dir: a folder that is empty, absent or holds an earlier gallery, which is replaced.
        title: of every page.
        lead: below the title.
        per_page: pictures on a page.
        class_: of the block that holds the pictures: "gallery" for a grid, "" for one below the other.

    Raises:
        InputError: if the folder holds anything else.
    """

    def __init__(self, output_dir: Path, title: str, lead: str, per_page: int = 40, class_: str = "gallery"):
        if per_page < 1:
            raise InputError(f"--per-page {per_page}: a page shows at least 1 picture.")
        self.output_dir = Path(output_dir)
        self.title = title
        self.lead = lead
        self.per_page = per_page
        self.class_ = class_
        self._scenes: List[Markup] = []
        self._clear()

    def _clear(self) -> None:
        """Delete an earlier gallery, and nothing else."""
        index = self.output_dir / _INDEX
        if self.output_dir.exists():
            if not self.output_dir.is_dir():
                raise InputError(f"--output {self.output_dir} is a file; name a folder.")
            is_gallery = index.is_file() and _MARK in index.read_text(errors="replace")
            # Pictures without pages: an earlier call was interrupted.
            if not is_gallery and {path.name for path in self.output_dir.iterdir()} - {PICTURES}:
                raise InputError(f"--output {self.output_dir} is no gallery and is not empty; name a new folder.")
        for path in (*self.output_dir.glob("page-*.html"), *self.output_dir.glob(f"{PICTURES}/*.jpg")):
            path.unlink()
        index.unlink(missing_ok=True)

    def place(self, name: str, picture: np.ndarray) -> str:
        """Write a picture (uint8 BGR) and return its address, relative to the pages."""
        relative = f"{PICTURES}/{name}.jpg"
        write_whole(self.output_dir / relative, encode_jpeg(picture))
        return relative

    def add(self, scene: Markup) -> None:
        """Append a part of a page."""
        self._scenes.append(scene)

    def __len__(self) -> int:
        return len(self._scenes)

    def write(self) -> Path:
        """Write the pages, the first one last, and return its path."""
        pages = [self._scenes[i : i + self.per_page] for i in range(0, len(self._scenes), self.per_page)] or [[]]
        for number in reversed(range(len(pages))):
            write_whole(self.output_dir / page_name(number), self._page(number, pages))
        return self.output_dir / _INDEX

    def _page(self, number: int, pages: Sequence[Sequence[Markup]]) -> str:
        first = number * self.per_page
        shown = f"{len(self)} image{'s' * (len(self) != 1)}"
        if len(pages) > 1:
            last = first + len(pages[number])
            shown = f"Images {first + 1} to {last} of {len(self)}, page {number + 1} of {len(pages)}"
        near = {0, len(pages) - 1, *range(max(0, number - 3), min(len(pages), number + 4))}
        return render(
            "gallery",
            title=self.title,
            lead=self.lead,
            shown=shown,
            scenes=pages[number],
            number=number,
            names=[page_name(i) for i in range(len(pages))],
            near=sorted(near),
            **{"class": self.class_},
        )


def page_name(number: int) -> str:
    """Return the file name of a page, counted from 0."""
    return _INDEX if number == 0 else f"page-{number + 1}.html"
