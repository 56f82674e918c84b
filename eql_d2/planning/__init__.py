"""A data set of one's own: what it is like, what to train on it and why, and the config that does."""

from eql_d2.planning.plan import plan

__all__ = ["plan"]
