"""Open Images' hierarchy of labels: which classes stand above and below a class."""

from typing import Any, Dict, FrozenSet, List, Mapping, Set, Tuple

from eql_d2.errors import InputError


class LabelHierarchy:
    """Classes and what stands above and below each, from the nested json that Open Images publishes.

    The root (Entity) is no class. A class may stand below several parents, and in several places of the file.
    ``Part`` entries (a wheel is part of a car) are no hierarchy and are ignored, as the official tool ignores them.

    Args:
        tree: ``{"LabelName": ..., "Subcategory": [...]}``, the root.

    Attributes:
        labels: every class once, in the order of the file.

    Raises:
        InputError: if a node has no ``LabelName``, there is no class, or a class stands below itself.
    """

    def __init__(self, tree: Mapping[str, Any]):
        ancestors: Dict[str, Set[str]] = {}
        stack: List[Tuple[Mapping[str, Any], Tuple[str, ...]]] = [(node, ()) for node in _children(tree)[::-1]]
        while stack:
            node, above = stack.pop()
            label = _label(node)
            if label in above:
                raise InputError(f"The hierarchy has {label!r} below itself: {' > '.join([*above, label])}.")
            ancestors.setdefault(label, set()).update(above)
            stack += [(child, (*above, label)) for child in _children(node)[::-1]]
        if not ancestors:
            raise InputError("The hierarchy has no class; its root holds them in the list 'Subcategory'.")
        # A class that stands in several places may have its parents' other places named in one of them only.
        changed = True
        while changed:
            changed = False
            for above_label in ancestors.values():
                before = len(above_label)
                for parent in tuple(above_label):
                    above_label |= ancestors[parent]
                changed |= len(above_label) > before
        for label, above_label in ancestors.items():
            if label in above_label:
                raise InputError(f"The hierarchy has {label!r} below itself, through {', '.join(sorted(above_label))}.")
        self.labels: Tuple[str, ...] = tuple(ancestors)
        self._ancestors = {label: frozenset(above_label) for label, above_label in ancestors.items()}
        self._descendants = {
            label: frozenset(other for other, above_label in self._ancestors.items() if label in above_label)
            for label in self.labels
        }

    def ancestors(self, label: str) -> FrozenSet[str]:
        """Return all classes above ``label``, without the root; empty for a label that is no class."""
        return self._ancestors.get(label, frozenset())

    def descendants(self, label: str) -> FrozenSet[str]:
        """Return all classes below ``label``; empty for a label that is no class."""
        return self._descendants.get(label, frozenset())


def _label(node: Any) -> str:
    if not isinstance(node, Mapping) or not isinstance(node.get("LabelName"), str):
        raise InputError(f"The hierarchy has a node without a 'LabelName': {str(node)[:80]}.")
    return node["LabelName"]


def _children(node: Any) -> List[Any]:
    _label(node)
    children = node.get("Subcategory", [])
    if not isinstance(children, list):
        raise InputError(f"The hierarchy's node {node['LabelName']!r} has a 'Subcategory' that is no list.")
    return children
