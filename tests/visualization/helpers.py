"""A run's output folder without a training, and pages as a browser sees them."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.conftest import make_lvis_json, tiny_config

SCRIPT = "<script>alert('x')</script>"
#: Appended to a copy of a page, to read off what only a browser knows.
_PROBE = """<script>
const images = [...document.images];
images.forEach(image => image.loading = "eager");
const settled = Promise.all(images.map(image => image.complete ? 0 : new Promise(done => {
  image.addEventListener("load", done);
  image.addEventListener("error", done);
})));
addEventListener("load", () => settled.then(() => Object.assign(document.body.dataset, {
  images: images.length,
  broken: images.filter(image => !image.naturalWidth).length,
  overflow: document.documentElement.scrollWidth - window.innerWidth,
  loaded: performance.getEntriesByType("resource").filter(entry => /^https?:/.test(entry.name)).length,
})));
</script>"""


def detection(image_id: int, category_id: int, score: float, box=(10, 12, 30, 30)) -> Dict[str, Any]:
    """Return a detection of the submission format with a polygon for a mask."""
    x, y, w, h = box
    polygon = [x, y, x + w, y, x + w, y + h, x, y + h]
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "bbox": list(box),
        "segmentation": [polygon],
    }


def make_run(lvis_folder: Path, name: str, detections: List[Dict], ap: float = 10.0, loss: str = "EQL") -> Path:
    """Write what a finished training on the data set of ``lvis_folder`` leaves, but for the weights."""
    folder = lvis_folder / name
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", loss, "OUTPUT_DIR", str(folder))
    inference = folder / "inference" / cfg.DATASETS.TEST[0]
    inference.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    lines = [{"iteration": i, "total_loss": 3.0 - i / 10, "loss_cls": 1.0, "lr": 0.01} for i in range(0, 8, 2)]
    lines += [{"iteration": i, "segm/AP": ap * i / 8, "segm/APr": None} for i in (4, 8)]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    metrics = {"AP": ap, "AP50": 2 * ap, "AP75": ap / 2, "APr": None, "APc": ap, "APf": ap, "AP-fixed": ap + 1}
    experiment = {"classifier_losses": [{"loss": loss, "num_classes": 5}], "seed": 1, "versions": {"torch": "2"}}
    results = {"experiment": experiment, "results": {"bbox": metrics, "segm": metrics}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "category_frequency.json").write_text((lvis_folder / "frequency.json").read_text())
    rows = [
        {"id": category["id"], "name": category["name"], "group": category["frequency"], "train_images": 7}
        | {"segm_AP": ap + category["id"] * (1 if loss == "EQL" else -1), "bbox_AP": None}
        for category in json.loads((lvis_folder / "train.json").read_text())["categories"]
    ]
    (inference / "per_category_ap.json").write_text(json.dumps(rows))
    (inference / "lvis_instances_results.json").write_text(json.dumps(detections))
    return folder


def rename_class(lvis_folder: Path, label: int, name: str) -> None:
    """Give a class of the data set another name."""
    content = make_lvis_json()
    content["categories"][label]["name"] = name
    (lvis_folder / "train.json").write_text(json.dumps(content))


def browse(page: Path, tmp_path: Path, width: int = 1200) -> Dict[str, Any]:
    """Open a page in headless Chromium; skip the test where there is none.

    Returns:
        ``dom``, the rendered document; ``images``, ``broken`` (images that could not be shown), ``overflow`` (pixels by
        which the page is wider than the window) and ``loaded`` (addresses fetched over the network).
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium")
    probed = page.with_name(f"probed_{page.name}")
    probed.write_text(page.read_text().replace("</body>", _PROBE + "</body>"))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'browser'}", f"--window-size={width},900", "--virtual-time-budget=5000"]
    command = [browser, *flags, "--dump-dom", probed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    probed.unlink()
    numbers = re.findall(r'data-(broken|images|overflow|loaded)="(-?\d+)"', dom.split("<body", 1)[1].split(">", 1)[0])
    return {"dom": dom, **{key: int(value) for key, value in numbers}}


class Outline(HTMLParser):
    """Tags of a page with their attributes, and a check that every element is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: List[Any] = []
        self._open: List[str] = []
        self.feed(text)
        assert not self._open, self._open

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))
        if name not in ("img", "meta", "line", "wbr"):
            self._open.append(name)

    def handle_endtag(self, name):
        assert self._open.pop() == name

    def attributes(self, name: str, key: str) -> List[str]:
        """Return an attribute of all elements of a name, ``None`` where one lacks it."""
        return [attributes.get(key) for tag, attributes in self.tags if tag == name]
