"""What goes on inside a long-tailed classifier: numbers first (CSV), plots on top (PNG, SVG).

:func:`analyze` looks at finished runs (``eql-d2 analyze`` is its command line), :class:`GradientHook` at a training.
"""

from eql_d2.analysis.analyses import analyze
from eql_d2.analysis.produced import ANALYSES, Produced
from eql_d2.engine.gradient_hook import GradientHook

__all__ = ["ANALYSES", "GradientHook", "Produced", "analyze"]
