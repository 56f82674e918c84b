"""Fixtures of the engine's tests."""

import logging

import pytest


@pytest.fixture
def warned(monkeypatch):
    """The warnings of this package. Detectron2 takes its loggers out of pytest's reach once it has set them up."""
    messages = []
    logger = logging.getLogger("detectron2.eql_d2")
    monkeypatch.setattr(logger, "warning", lambda message, *args: messages.append(message % args))
    return messages
