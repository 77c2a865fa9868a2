"""Run model-written Python beside tokens, keys and notebooks, safely and fast.

The trainer executes a fork server (never forks: it has threads): a fresh interpreter with an empty environment, warm
with numpy and sympy. Each snippet, or each rollout's session, gets a child of it in a cage. Code and output travel
over pipes that only trainer and child hold; what the trainer believes is what it measures itself.

    client.py  Sandbox, Session, run_code           server.py   the fork server
    link.py    the trainer's way to the server      warm.py     what it imports and uses ahead
    child.py   one child: a turn and its limits     confine.py  the cage, layer by layer (landlock.py, seccomp.py)
    canary.py  measures what is refused             harness.py  inside the child: run a turn, tell the error

Covered, each with tests (``tests/sandbox``):

- time: CPU seconds of all threads are limited, not counting the wait for a core; so is elapsed time; a snippet
  cannot outlive its turn, and between turns it is stopped
- memory of a child (address space), its output, threads, open files; no core dumps
- processes: no fork, no program, no signal to, tracing of or memory access to any other process
- files: nothing can be written anywhere; nothing read but the interpreter's own folders and shared libraries
- network: no sockets but a stream pair within the snippet (asyncio needs one); no local sockets either
- secrets: no environment, descriptors, memory or arguments of the trainer; expected answers never enter a child
- the rest of the kernel: an allow-list of about 90 system calls, everything else does not exist
- state: nothing that one session does is seen by another, or by the next trainer
- ends: when the trainer dies, by SIGKILL too, nothing is left; an interrupt leaves a usable sandbox
- sameness: same output each time (hash seed, ``random``, numpy, sympy, time zone), except for what really differs:
  clocks, process ids, addresses of objects, ``secrets`` and ``os.urandom``

At start, canaries in a real child attempt what must be refused, each against a victim on which it would succeed;
``Sandbox.protection`` says what was measured, and a canary that gets through raises ``SandboxUnavailable``.

Not covered, so do not count on it:

- ``stat()`` tells a snippet that a path exists (not where there is neither Landlock nor an ordinary user: there the
  child sits in an empty root folder)
- a snippet can forge its own ``ok``: it shares a process with the code that reports it. Output, wait status and
  resource use are facts; grade answers, never ``ok`` alone
- n children may use n times the memory limit, and as many cores
- a snippet can read every package that is installed beside numpy or beside a package that ``preload`` names (so name
  none that lies in a folder with secrets), and learn the machine's name, core count and clock
- bugs of the kernel, and side channels through caches and timing
- without Landlock a snippet can import only what was imported ahead: the standard library, numpy, sympy (less
  ``sympy.physics`` and code printers), and what ``Sandbox(preload=...)`` names
- macOS and Windows: nothing to confine with, so ``Sandbox`` refuses. ``confinement="unconfined"`` (not on Windows)
  limits time and output and protects from nothing

>>> with Sandbox(Limits(cpu_seconds=1), workers=1) as sandbox, sandbox.session() as session:
...     [session.run(code).stdout for code in ("x = 6", "print(x * 7)")]
['', '42\\n']
"""

from gtpo_mini.sandbox.canary import Protection
from gtpo_mini.sandbox.client import Sandbox, Session, run_code
from gtpo_mini.sandbox.limits import Limits, SandboxUnavailable

__all__ = ["Limits", "Protection", "Sandbox", "SandboxUnavailable", "Session", "run_code"]
