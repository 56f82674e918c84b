"""Pictures of data, detections and runs: drawing, paged galleries, and the report of a run as one HTML page."""

from eql_d2.visualization.data import visualize_data
from eql_d2.visualization.drawing import draw_panel
from eql_d2.visualization.report import write_report
from eql_d2.visualization.results import visualize_results

__all__ = ["draw_panel", "visualize_data", "visualize_results", "write_report"]
