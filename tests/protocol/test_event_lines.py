"""Every notice has a line, and the kind, level and fields that readers of the log rely on."""

from __future__ import annotations

import pytest

from supervisor import notice as n
from supervisor.protocol import event_lines
from tests.protocol.notices import NOTICES


@pytest.mark.parametrize(("notice", "kind", "level", "line", "fields"), NOTICES)
def test_a_notice_as_a_line(notice, kind, level, line, fields):
    assert (notice.kind, notice.level) == (kind, level)
    assert event_lines.line(notice) == line
    assert event_lines.fields(notice) == fields


def test_no_notice_is_without_a_line():
    kinds = {kind for kind in vars(n).values() if isinstance(kind, type) and issubclass(kind, n.Notice)}
    assert {type(notice) for notice, *_ in NOTICES} == kinds - {n.Notice, n.SlotNotice}
    assert {notice.task for notice, *_ in NOTICES if isinstance(notice, n.TaskFailed)} == set(n.Task)
