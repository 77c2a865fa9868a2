"""``Sandbox``, its sessions, and ``run_code``: what the rest of the package uses."""

from __future__ import annotations

import atexit
import os
import platform
import sys
import threading
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from gtpo_mini.sandbox.canary import ACTS, Protection, judge, victims
from gtpo_mini.sandbox.child import Child
from gtpo_mini.sandbox.limits import REMEDY, Limits, SandboxUnavailable
from gtpo_mini.sandbox.link import Link
from gtpo_mini.sandbox.seccomp import AUDIT_ARCH
from gtpo_mini.sandbox.sums import Names, evaluate
from gtpo_mini.types import ExecutionResult

UNCONFINED = (
    "WARNING: gtpo_mini sandbox is UNCONFINED, as you asked. Model-written code can read and delete your files, "
    "use your network and your tokens. Only time, output and memory are limited."
)


class Session:
    """The turns of one rollout in one child: variables live from turn to turn, unseen by other sessions.

    As long as the turns are sums there is no child: `evaluate` computes them. A turn that is killed loses only itself:
    before the next one, the earlier turns run again in a fresh child. So it is too where a turn asks for more than
    there is yet. Made by :meth:`Sandbox.session`.
    """

    def __init__(self, links: list[Link], limits: Limits) -> None:
        self._link, *self._heavier = links
        self._limits = limits
        self._child: Child | None = None  # until a turn needs one, and once the session is closed
        self._names: Names | None = {}  # of the sums so far; None: a child has them
        self._turns: list[tuple[int, str]] = []  # those that ended by themselves
        self.kept_lines = 0  #: of long outputs, which code of `prepare` put into the session
        self._number, self._lock, self._closing = 0, threading.Lock(), False

    def run(self, code: str) -> ExecutionResult:
        """Run one turn of Python source; the result holds nothing of earlier turns.

        Raises:
            ValueError: the session is closed.
            SandboxUnavailable: the sandbox itself is broken.
        """
        return self._guarded(code, 1)

    def prepare(self, code: str) -> ExecutionResult:
        """Run code that counts as no turn, and is none in tracebacks; else as `run`."""
        return self._guarded(code, 0)

    def _guarded(self, code: str, turns: int) -> ExecutionResult:
        with self._lock:
            if self._closing:
                raise ValueError("this session is closed")
            if os.getpid() != self._link.owner:
                raise SandboxUnavailable("this process was forked from the session's owner: make a Sandbox of its own")
            self._number += turns
            return self._run(code, self._number if turns else 0)

    def _run(self, code: str, number: int) -> ExecutionResult:
        names, self._names = self._names, None  # interrupted from here on, the next turn is a child's
        if names is not None and self._link.alive and (found := evaluate(code, number, names)) is not None:
            self._turns.append((number, code))
            result, self._names = found
            return result
        if self._heavier and any(name in code for name in self._heavier[0].preload):
            self._move()
        elif self._child is None or not self._child.usable:
            self._replay()
        result = self._child.turn(code, number, self._limits, may_move=bool(self._heavier))
        if result is None:
            self._move()
            result = self._child.turn(code, number, self._limits)
        if self._child.usable:
            self._turns.append((number, code))
        return result

    def _move(self) -> None:
        """Go on in a child of the server that has more."""
        self._link, *self._heavier = self._heavier
        self._replay()

    def _replay(self) -> None:
        try:
            self._begin_anew()
            for number, code in self._turns:
                self._child.turn(code, number, self._limits)
                if not self._child.usable:  # it does not end as it did before: start empty rather than half
                    self._turns.clear()
                    return self._begin_anew()
        except BaseException:  # interrupted with half of the turns: the next one begins anew
            if self._child is not None:
                self._child.usable = False
            raise

    def _begin_anew(self) -> None:
        if self._child is not None:
            self._child.close()
        self._child = self._link.spawn()
        if self._closing:
            self._child.end()

    def close(self) -> None:
        """Kill the child, also under a turn that runs in another thread. May be called again."""
        self._closing, child = True, self._child
        if child is not None:
            child.end()
        with self._lock:  # that turn has come back: its descriptors may go now
            child, self._child = self._child, None
            if child is not None:
                child.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Sandbox:
    """Runs model-written Python in confined children of a warm fork server.

    Args:
        limits: what each snippet or turn may use.
        workers: snippets that :meth:`map` runs at a time, and children kept ready; at least 1.
        confinement: ``"full"``, or ``"unconfined"`` for no protection at all, with a warning.
        preload: modules imported ahead where they are installed.

    Raises:
        SandboxUnavailable: this machine cannot give a protection that is promised.
        ValueError: an argument is out of range.

    >>> with Sandbox(workers=1) as sandbox:
    ...     sandbox.run("print(6 * 7)").stdout
    '42\\n'
    """

    def __init__(
        self,
        limits: Limits = Limits(),
        workers: int = 2,
        confinement: str = "full",
        preload: Iterable[str] = ("numpy", "sympy"),
    ) -> None:
        if not isinstance(workers, int) or workers < 1:
            raise ValueError(f"Sandbox: workers is {workers!r}: give an integer, at least 1")
        if confinement not in ("full", "unconfined"):
            raise ValueError(f'Sandbox: confinement is {confinement!r}: give "full" or "unconfined"')
        _check_platform(confinement)
        self.limits, self.workers = limits, workers
        self._links: list[Link] = []  # the lightest first
        try:
            self._start(confinement, tuple(preload))
            for link in self._links:
                self.protection = self._measure(confinement, link)
            if confinement == "unconfined":
                print(UNCONFINED, file=sys.stderr)
            for note in self.protection.notes:
                warnings.warn(f"sandbox: {note}", RuntimeWarning, stacklevel=2)
        except BaseException:
            self.close()
            raise

    def _start(self, confinement: str, preload: tuple[str, ...]) -> None:
        """A server with little in it, whose children are cheap, and one with ``preload``, for those that ask for it.

        Where children cannot read a file, and so import nothing, one server that has everything is enough.
        """
        kinds = dict.fromkeys([(), preload])
        with ThreadPoolExecutor(len(kinds)) as pool:
            started = [pool.submit(Link, self.limits, self.workers, confinement, kind) for kind in kinds]
        self._links = [link.result() for link in started if not link.exception()]
        for link in started:
            link.result()
        if len(self._links) > 1 and not self._links[0].hello["reads"]:
            self._links.pop(0).close()

    def _measure(self, confinement: str, link: Link) -> Protection:
        """Let the canaries fly; refuse to go on if one of them got through."""
        hello = link.hello
        with victims(platform.machine()) as (snippet, found), Session([link], self.limits) as session:
            result = session.run(snippet)
        tier = hello["tier"] if confinement == "full" else "unconfined"
        protection = judge(tier, result.stdout, found, tuple(hello["notes"]))
        if confinement == "full" and protection.allowed:
            missing = "; ".join(f"{act} (stopped by {ACTS[act]})" for act in protection.allowed)
            raise SandboxUnavailable(f"snippets could: {missing}. {REMEDY} {result.error}")
        return protection

    def run(self, code: str) -> ExecutionResult:
        """Run one snippet of Python source in a child of its own; never raises for what the snippet is or does.

        Raises:
            SandboxUnavailable: the sandbox itself is broken.
        """
        with self.session() as session:
            return session._run(code, 0)

    def map(self, codes: Iterable[str]) -> list[ExecutionResult]:
        """Run many snippets, ``workers`` at a time; results in the order of ``codes``."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self.run, codes))

    def session(self) -> Session:
        """A child that keeps its variables from turn to turn; use it as a context manager, or close it."""
        return Session(self._links, self.limits)

    def close(self) -> None:
        """End the servers and every child. May be called again."""
        for link in self._links:
            link.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_platform(confinement: str) -> None:
    """Say early, and in words, where the sandbox cannot work."""
    if sys.platform == "win32":
        raise SandboxUnavailable("Windows has nothing to confine model-written code with. Use WSL2 or Docker.")
    known = sys.platform == "linux" and platform.machine() in AUDIT_ARCH and sys.maxsize > 1 << 32
    if not known and confinement == "full":
        raise SandboxUnavailable(f"no confinement is known for {sys.platform} on {platform.machine()}. {REMEDY}")


_shared: dict[Limits, Sandbox] = {}
_shared_lock = threading.Lock()


def run_code(code: str, limits: Limits = Limits()) -> ExecutionResult:
    """Run one snippet in a sandbox that is started at the first call and shared by later ones.

    Args:
        code: Python source; whatever it is or does, what it printed and how it ended come back.
        limits: what it may use.

    Raises:
        SandboxUnavailable: this machine cannot give a protection that is promised.

    >>> run_code("print(sum(range(10)))").stdout
    '45\\n'
    >>> run_code("1 / 0").error.splitlines()[-1]
    'ZeroDivisionError: division by zero'
    """
    with _shared_lock:
        sandbox = _shared.get(limits)
        if sandbox is None or not all(link.alive for link in sandbox._links):
            sandbox = _shared[limits] = Sandbox(limits)
    return sandbox.run(code)


@atexit.register
def _close_shared() -> None:
    for sandbox in _shared.values():
        sandbox.close()
