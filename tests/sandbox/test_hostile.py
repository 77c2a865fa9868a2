"""Every hostile case leaves no trace in this machine's tier, and with the layers off many do."""

import pytest
from hostile import HOSTILE, PRELUDE
from outside import LIMITS, violations

from gtpo_mini.sandbox import Sandbox


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: f"{case.group}-{case.name}")
def test_hostile_snippet_leaves_no_trace(case, tight, outside):
    assert violations(tight, outside, case, PRELUDE) == []


def test_the_suite_sees_what_an_unconfined_snippet_does(outside, capsys):
    """The negative control. Time, memory and output are limited without confinement too: those cases are left out."""
    cases = [case for case in HOSTILE if case.group not in ("time", "memory", "output")]
    with Sandbox(LIMITS, confinement="unconfined") as sandbox:
        seen = [case.name for case in cases if violations(sandbox, outside, case, PRELUDE)]
    outside.reset()
    assert "UNCONFINED" in capsys.readouterr().err
    missed = [case.name for case in cases if case.name not in seen]
    print(f"seen without confinement: {len(seen)} of {len(HOSTILE)}; not seen: {missed}")
    assert len(seen) >= len(HOSTILE) / 3, f"{len(seen)} of {len(HOSTILE)}: {seen}"
