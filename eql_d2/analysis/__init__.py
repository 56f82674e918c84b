"""What goes on inside a long-tailed classifier: numbers first (CSV), plots on top (PNG, SVG).

:func:`analyze` looks at finished runs; ``tools/analyze.py`` is its command line.
"""

from eql_d2.analysis.analyze import ANALYSES, Produced, analyze

__all__ = ["ANALYSES", "Produced", "analyze"]
