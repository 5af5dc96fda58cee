"""The level of what an embedded supervisor logs is the notice's own, whatever its words are."""

import logging

import pytest

from supervisor.config.resolve import make_settings
from supervisor.embed.runtime import EngineThread
from supervisor.notice import Level
from tests.protocol.notices import NOTICES

LEVELS = {Level.INFO: logging.INFO, Level.WARNING: logging.WARNING, Level.ERROR: logging.ERROR}


@pytest.mark.parametrize(("notice", "level", "line"), [(notice, level, line) for notice, _, level, line, _ in NOTICES])
def test_a_notice_is_logged_at_its_level(caplog, notice, level, line):
    house = EngineThread(make_settings("test:handler"), temporary=True)
    with caplog.at_level(logging.DEBUG, "supervisor"):
        house._handle(notice)
    assert caplog.record_tuples == [("supervisor", LEVELS[level], line)]
