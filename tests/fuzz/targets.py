"""Everything that reads annotation files, results files and images, called with one damaged file."""

import contextlib
import io
import traceback
from pathlib import Path
from typing import Callable, List, NamedTuple

from detectron2.data import transforms as T

from eql_d2.data.check import check_dataset
from eql_d2.data.coco import load_coco
from eql_d2.data.lvis import load_lvis
from eql_d2.data.mapper import LongTailDatasetMapper
from eql_d2.errors import InputError
from eql_d2.evaluation.rescore import rescore
from tests.fuzz.mutate import Case, damage_image, make_case, write_sound_images

BACKENDS = ("hotcoco", "lvis")
_LOADERS = {"lvis": load_lvis, "coco": load_coco}
_MAPPERS = {
    mask_format: LongTailDatasetMapper(
        True,
        augmentations=[T.ResizeShortestEdge(48), T.RandomFlip(0.5)],
        image_format="BGR",
        use_instance_mask=True,
        instance_mask_format=mask_format,
    )
    for mask_format in ("polygon", "bitmask")
}


class Outcome(NamedTuple):
    """How many of the programs took the file, how many refused it by an ``InputError``, and what went wrong."""

    accepted: int
    refused: int
    failures: List[str]


class Runner:
    """Runs cases in a folder of its own."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.images = folder / "images"
        self.images.mkdir()
        write_sound_images(self.images)

    def run(self, number: int) -> Outcome:
        """Run one case."""
        case = make_case(self.seed, number)
        annotations, results = self.folder / "annotations.json", self.folder / "results.json"
        for path in (annotations, results):  # some file systems flush a file that is written over
            path.unlink(missing_ok=True)
        annotations.write_bytes(case.annotations)
        results.write_bytes(case.results)
        with self._damaged_image(case, number):
            return self._call_all(case, number, annotations, results)

    @contextlib.contextmanager
    def _damaged_image(self, case: Case, number: int):
        name, _ = case.image
        if not name:
            yield
            return
        path = self.images / name
        sound = path.read_bytes()
        path.write_bytes(damage_image(sound, self.seed, number))
        try:
            yield
        finally:
            path.write_bytes(sound)

    def _call_all(self, case: Case, number: int, annotations: Path, results: Path) -> Outcome:
        loaded: List[object] = []
        sound = [False]

        def load() -> None:
            loaded.extend(_LOADERS[case.format](annotations, self.images))

        def map_all() -> None:
            for record in loaded:
                _MAPPERS["polygon" if number % 2 else "bitmask"](record)

        def check() -> None:
            sound[0] = not check_dataset(annotations, self.images).has_errors

        programs: List[tuple] = [("check", check), ("load", load), ("map", map_all)]
        if case.kind == "results":
            programs = []
        if case.kind != "image":
            programs += [(backend, _rescoring(results, annotations, backend)) for backend in BACKENDS]
        accepted, refused, failures = 0, 0, []
        for name, program in programs:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    program()
                accepted += 1
            except InputError as error:
                refused += 1
                if name in ("load", "map") and sound[0]:
                    failures.append(f"{name}: check-dataset found no error, but: {error}")
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(last.filename).name}:{last.lineno}"
                failures.append(f"{name}: {type(error).__name__} at {place}: {str(error)[:200]}")
            except BaseException as error:  # a panic of a Rust extension
                if type(error).__name__ != "PanicException":
                    raise
                failures.append(f"{name}: PanicException: {str(error)[:200]}")
        return Outcome(accepted, refused, failures)


def _rescoring(results: Path, annotations: Path, backend: str) -> Callable[[], object]:
    return lambda: rescore(results, annotations, backend=backend, fixed=False)
