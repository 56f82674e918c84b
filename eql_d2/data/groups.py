"""LVIS's frequency groups, rare, common and frequent: their letters, names, bounds and colours."""

from typing import Iterable, List, Optional

#: LVIS's bounds: a class in at most 10 training images is rare, in at most 100 common, in more frequent.
RARE_MAX_IMAGES = 10
COMMON_MAX_IMAGES = 100
GROUPS = ("r", "c", "f")
GROUP_NAMES = {"r": "rare", "c": "common", "f": "frequent"}
# Told apart by people who do not see red and green (Okabe and Ito).
GROUP_COLORS = {"r": "#D55E00", "c": "#E69F00", "f": "#0072B2"}


def frequency_group(
    image_count: float, common_max_images: int = COMMON_MAX_IMAGES, rare_max_images: int = RARE_MAX_IMAGES
) -> str:
    """Return LVIS's letter for a class in ``image_count`` training images: r (1-10), c (11-100) or f (more).

    A small data set may have other upper bounds.
    """
    if image_count <= rare_max_images:
        return "r"
    return "c" if image_count <= common_max_images else "f"


def given_groups(letters: Iterable[Optional[str]]) -> Optional[List[str]]:
    """Return the letters that a data set gives its classes; ``None`` unless each class has one of r, c and f."""
    letters = list(letters)
    given = [letter for letter in letters if letter is not None and letter in GROUPS]
    return given if len(given) == len(letters) else None
