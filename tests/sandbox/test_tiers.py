"""The same suites on poorer machines: as an ordinary user, and without Landlock (`jail.py` makes them)."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TIERS = {
    "user+landlock": ["--user"],
    "root": ["--no-landlock"],
    "user": ["--user", "--no-landlock"],
}


@pytest.mark.parametrize("tier", TIERS)
def test_suites_hold_in_tier(tier):
    if os.getuid() != 0:
        pytest.skip("only root can make the other tiers")
    if "GTPO_JAILED" in os.environ:
        pytest.skip("inside one already")
    jail = [sys.executable, str(HERE / "jail.py"), *TIERS[tier], "--"]
    which = "from gtpo_mini.sandbox import Sandbox; print(Sandbox().protection.tier)"
    environment = {**os.environ, "GTPO_JAILED": "1", "PYTHONPATH": str(HERE.parents[1])}
    options = {"env": environment, "capture_output": True, "text": True, "cwd": HERE.parents[1]}
    probe = subprocess.run([*jail, sys.executable, "-c", which], **options)
    if probe.returncode != 0 and "OSError" in probe.stderr:
        pytest.skip(f"cannot make this tier here: {probe.stderr.splitlines()[-1]}")
    assert probe.stdout.strip() == tier, probe.stderr
    suites = [HERE / f"test_{name}.py" for name in ("hostile", "ordinary")]
    only = ["-k", "not unconfined"]  # without layers, the tiers do not differ
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *only, "--confcutdir", HERE, *suites]
    done = subprocess.run([*jail, *map(str, command)], **options)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert " passed" in done.stdout and " failed" not in done.stdout
