"""Run model-written Python beside tokens, keys and notebooks, safely and fast.

The trainer executes fork servers (never forks: it has threads): fresh interpreters with an empty environment. A
session, or single snippet, that holds more than sums gets a child in a cage, first a cheap one with little imported;
what asks for more moves, by replay, to a child of the server that has numpy and sympy ready. Code and output travel
over pipes that only trainer and child hold; what the trainer believes is what it measures itself.

    client.py  Sandbox, Session, run_code           server.py   a fork server
    link.py    the trainer's way to a server        warm.py     what it imports and uses ahead
    child.py   one child: a turn and its limits     confine.py  the cage, layer by layer (landlock.py, seccomp.py)
    canary.py  measures what is refused             harness.py  inside the child: run a turn, tell the error
    sums.py    sums, names and prints of them: read and computed in the trainer, where nothing is executed

Covered, each with tests (``tests/sandbox``):

- CPU seconds of all threads, elapsed time (neither counts the wait for a core), memory, output, threads, open files;
  no snippet outlives its turn, and between turns it is stopped
- no fork, no program, no signal to, tracing of or memory access to another process; no sockets but a stream pair
- nothing is written anywhere; nothing is read but the interpreter's own folders and shared libraries
- no environment, descriptors, memory or arguments of the trainer; expected answers never enter a child
- an allow-list of about 90 system calls: everything else does not exist
- nothing that one session does is seen by another, or by the next trainer; same output each time (hash seed,
  ``random``, numpy, sympy, time zone) but for clocks, process ids, addresses, ``secrets`` and ``os.urandom``
- when the trainer dies, by SIGKILL too, nothing is left; an interrupt leaves a usable sandbox

At start, canaries in a real child of each server attempt what must be refused, each against a victim on which it would
succeed; ``Sandbox.protection`` says what was measured, and one that gets through raises ``SandboxUnavailable``.

Not covered, so do not count on it:

- ``stat()`` tells that a path exists (not as root without Landlock); installed packages, the machine's name and clock
  can be read, and so can all that lies beside a package that ``preload`` names
- a snippet can forge its own ``ok``, and ask for a move: it shares a process with the code that reports them. Output,
  wait status and resource use are facts; grade answers, never ``ok`` alone
- n children may use n times the memory limit, and as many cores; a turn that moves has its CPU limit twice
- bugs of the kernel, and side channels through caches and timing
- without Landlock a snippet can import only what was imported ahead: the standard library, numpy, sympy (less
  ``sympy.physics`` and code printers), and what ``Sandbox(preload=...)`` names
- macOS and Windows: ``Sandbox`` refuses. ``confinement="unconfined"`` (not on Windows) limits time and output and
  protects from nothing

>>> with Sandbox(Limits(cpu_seconds=1), workers=1) as sandbox, sandbox.session() as session:
...     [session.run(code).stdout for code in ("x = 6", "print(x * 7)")]
['', '42\\n']
"""

from gtpo_mini.sandbox.canary import Protection
from gtpo_mini.sandbox.client import Sandbox, Session, run_code
from gtpo_mini.sandbox.limits import Limits, SandboxUnavailable

__all__ = ["Limits", "Protection", "Sandbox", "SandboxUnavailable", "Session", "run_code"]
