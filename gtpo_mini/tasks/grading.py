"""Is an answer right? Numbers are compared here; what must be read as mathematics goes to a process of its own.

A short answer can keep an algebra system busy for hours (``9^{9^{9}}``), and only a process can be stopped for sure.
Some of reasoning-gym's graders hand the answer to ``eval``: it is refused before if it could call anything.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from functools import cache
from pathlib import Path
from typing import Any

_LONGEST_EXPRESSION = 200  # characters; a longer answer is wrong without being parsed
_LONGEST_ANSWER = 20_000  # characters of an answer to a puzzle: a board, a list of moves
_CPU_SECONDS = 2.0  # for one answer
_MEMORY = 4 * 2**30  # bytes of address space

# Graders of reasoning-gym 0.1.25 that evaluate the answer as Python, and what may be evaluated. Without a bracket
# nothing can be called; in an expression only these functions can.
_WITHOUT_CALLS = re.compile(r"[^(]*")
_WORD = r"(?:[A-Za-z]\d?|sin|cos|tan|exp|log|ln|sqrt|asin|acos|atan|sinh|cosh|tanh|pi)"
_EXPRESSION = re.compile(rf"(?:\d+\.?\d*(?![\w.])|{_WORD}(?![\w.])|[-+*/() \n]){{0,{_LONGEST_EXPRESSION}}}")
_ARITHMETIC = re.compile(rf"(?!.*\*\*)[-+*/() \d.]{{0,{_LONGEST_EXPRESSION}}}")
_EVALUATED = {
    **dict.fromkeys(("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"), _WITHOUT_CALLS),
    **dict.fromkeys(("intermediate_integration", "polynomial_multiplication", "simple_integration"), _EXPRESSION),
    **dict.fromkeys(("countdown", "puzzle24"), _ARITHMETIC),
}


def same_answer(gold: str, answer: str) -> bool:
    """True if both are the same number or expression; a strange answer, or one of over 200 characters, is wrong.

    >>> same_answer("1430", "1,430.0"), same_answer("3/4", "0.75"), same_answer("42", "43")
    (True, True, False)
    """
    gold, answer = gold.strip(), answer.strip()
    if gold == answer or not answer or len(answer) > _LONGEST_EXPRESSION:
        return bool(answer) and gold == answer
    left, right = as_number(gold), as_number(answer)
    if left is not None and right is not None:
        return left == right
    return _JUDGE.ask(("expressions", gold, answer))


def generator_accepts(generator: str, entry: Mapping[str, Any], answer: str) -> bool:
    """True if a reasoning-gym generator's own grader gives the answer to its row full marks, or it is the same number.

    A number that is more than 1 % off is wrong whatever the grader says, as are more than 20,000 characters.
    """
    answer, gold = answer.strip(), entry["answer"]
    if not answer or len(answer) > _LONGEST_ANSWER:
        return False
    if gold in ("True", "False"):  # one grader takes any text for False
        return answer.casefold() == gold.casefold()
    if gold is not None and (right := as_number(gold)) is not None:
        if same_answer(gold, answer):
            return True
        # Graders round; but two of them take some numbers that are far off.
        if (given := as_number(answer)) is not None and abs(given - right) > abs(right) / 100:
            return False
    if generator in _EVALUATED and not _EVALUATED[generator].fullmatch(answer):
        return answer == gold
    return _JUDGE.ask(("generator", generator, dict(entry), answer))


def as_number(text: str) -> Decimal | None:
    """The number that a text is, thousands separators, a dollar or a percent sign aside; else None."""
    text = text.replace(",", "").replace("$", "").strip().rstrip("%").rstrip(".")
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


class _Judge:
    """The process that reads answers as mathematics: started when first needed, started again when one killed it."""

    def __init__(self) -> None:
        self.lock, self.process, self.owner = threading.Lock(), None, 0

    def ask(self, question: tuple) -> bool:
        """The verdict; False if the process ran out of time or memory over it, or raised."""
        with self.lock:
            if self.process is None or self.owner != os.getpid():  # a fork must not share its parent's pipes
                self._start()
            try:
                pickle.dump(question, self.process.stdin)
                self.process.stdin.flush()
                verdict = self.process.stdout.readline()
            except (OSError, pickle.PicklingError):
                verdict = b""
            if not verdict:
                self.process.kill()
                self.process.communicate()
                self.process = None
            return verdict == b"right\n"

    def _start(self) -> None:
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        command = [sys.executable, "-c", "from gtpo_mini.tasks.grading import _serve; _serve()"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        # A session of its own: Ctrl-C is for the trainer, and this process ends when its input does.
        self.process = subprocess.Popen(command, **pipes, start_new_session=True, env=environment)
        self.owner = os.getpid()
        if self.process.stdout.readline() != b"ready\n":
            self.process = None
            raise RuntimeError(f"the grading process did not start: {' '.join(command)}; is math-verify installed?")


_JUDGE = _Judge()


def _serve() -> None:
    """The other side of `_Judge`: reads questions, writes right or wrong, dies when an answer costs too much."""
    import resource
    import signal

    import math_verify  # noqa: F401  (before the clock runs)

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    verdicts, questions = os.fdopen(os.dup(1), "wb", buffering=0), sys.stdin.buffer
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # graders print
    verdicts.write(b"ready\n")
    while True:
        try:
            kind, *parts = pickle.load(questions)
        except EOFError:
            return
        if kind == "generator":
            _generator(parts[0])  # its import is not the answer's fault
        signal.setitimer(signal.ITIMER_PROF, _CPU_SECONDS)  # nobody handles this signal, so it ends the process
        try:
            right = _equal(*parts) if kind == "expressions" else _accepted(*parts)
        except Exception:
            right = False
        signal.setitimer(signal.ITIMER_PROF, 0)
        verdicts.write(b"right\n" if right else b"wrong\n")


def _equal(gold: str, answer: str) -> bool:
    from math_verify import parse, verify

    # Their time limits are off: they work in a main thread only, and not inside one long computation.
    left, right = (parse(f"${text}$", parsing_timeout=None) for text in (gold, answer))
    return bool(verify(left, right, timeout_seconds=None))


def _accepted(generator: str, entry: dict[str, Any], answer: str) -> bool:
    return _generator(generator).score_answer(answer, entry) == 1.0


@cache
def _generator(name: str) -> Any:
    import reasoning_gym

    return reasoning_gym.create_dataset(name, size=1, seed=0)
