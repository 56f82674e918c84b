"""Data: category frequencies, LVIS and COCO registration, mapper, samplers, the generated mini data set.

Nothing is imported here, so that ``eql_d2.data.frequency`` works without Detectron2.
"""
