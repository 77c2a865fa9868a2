"""Run model-written Python safely and fast."""

from gtpo_mini.sandbox.client import Sandbox, Session, run_code
from gtpo_mini.sandbox.limits import Limits, SandboxUnavailable

__all__ = ["Limits", "Sandbox", "SandboxUnavailable", "Session", "run_code"]
