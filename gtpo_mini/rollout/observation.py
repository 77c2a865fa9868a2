"""What goes back to the policy of a long tool output: its beginning and end, or what its question asks for.

Selection takes an output as a tree of lines, by their indentation: folders, files and definitions, or a heading and
what belongs to it. Which lines are shown under a budget of characters is a knapsack in which no line comes without
those above it (after the sigma-Reveal of arXiv 2605.08013, whose scores are not public: these are ours). What is left
out stands there by the numbers of its lines, and `unfold(first, last)` in the session prints them. The numbers run
through all long outputs of a rollout, so that none of these calls goes stale.
"""

from __future__ import annotations

import functools
import math
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..sandbox.client import Session
from ..types import ExecutionResult
from .settings import SamplingSettings

_MOST = 1000  # lines among which is chosen; of more, those that are worth the most a character come into question
_GRAIN = 4000  # steps of a budget; a larger one is counted in coarser steps
_INHERITED = 0.5  # what a line is worth for a match of the one above it
_GAP = 38  # characters that the name of a gap rarely exceeds
_FILL = 1e-3  # what a character is worth that matches nothing: room that is left is filled
_UNFOLD = re.compile(r"unfold\((\d+), ?\d+\)")
_AS_IT_IS = {"expand_tabs": False, "replace_whitespace": False, "drop_whitespace": False, "break_on_hyphens": False}
# Bytes, because code of a session is also searched for modules, and quoted in tracebacks.
# Kept where the policy's own names do not reach.
_KEEP = """\
def unfold(first, last):
    import builtins, sys
    builtins.print("\\n".join(sys.kept_lines[builtins.max(1, first) - 1:builtins.max(0, last)]))
__import__("sys").__dict__.setdefault("kept_lines", []).extend(
    __import__("builtins").bytes.fromhex("{lines}").decode("utf-8", "surrogatepass").split("\\n"))
"""


def result_text(result: ExecutionResult) -> str:
    """Printed output, then the error if there was one."""
    text = result.stdout.rstrip("\n")
    return text if result.ok else f"{text}\n{result.error}".strip("\n")


def run_call(
    session: Session, code: str, question: str, turn: str, settings: SamplingSettings
) -> tuple[ExecutionResult, ExecutionResult]:
    """Run a turn's code: what came back, and what the policy gets of it, which is the same where it is short enough.

    ``question`` and ``turn`` are the texts for which lines are selected; the session keeps what is left out.
    """
    result = session.run(code)
    text, budget = result_text(result), settings.max_output
    if len(text) <= budget:
        return result, result
    if not settings.select_output:
        return result, _told(result, cut(text, budget))
    again = _UNFOLD.fullmatch(code.strip()) if result.ok else None
    before = max(1, int(again[1])) - 1 if again else session.kept_lines
    new = before == session.kept_lines
    if new:
        lines, _ = _folded(text, budget, not result.ok)
        kept = "\n".join(lines).encode("utf-8", "surrogatepass").hex()
        if not session.prepare(_KEEP.format(lines=kept)).ok:  # the session can keep nothing
            return result, _told(result, cut(text, budget))
        session.kept_lines += len(lines)
    shown = select_lines(text, question, turn, budget, before, not result.ok, folded=not new)
    return result, _told(result, shown)


def _told(result: ExecutionResult, text: str) -> ExecutionResult:
    output, _, error = (text, "", "") if result.ok else text.rpartition("\n")
    return replace(result, stdout=output, error=error)


def cut(text: str, budget: int) -> str:
    """Half a ``budget`` of characters from a text's beginning, as many from its end; a line between says how many not.

    >>> cut("123456789" * 9, 6)
    '123\\n... (75 characters left out)\\n789'
    """
    half = budget // 2
    left = f"{text[:half]}\n... ({len(text) - 2 * half} characters left out)\n{text[len(text) - half :]}"
    return left if len(text) > max(budget, len(left)) else text


@functools.lru_cache(1024)  # the rollouts of a group look at the same things
def select_lines(
    text: str, question: str, turn: str, budget: int, before: int = 0, failed: bool = False, folded: bool = False
) -> str:
    r"""The lines that say most about a question and a turn, in at most ``budget`` characters; gaps name what they hide.

    Args:
        question, turn: whose words count; the turn's count three times.
        budget: at least 100, or a gap may not fit.
        before: lines that the session kept before these; numbers go on from there.
        failed: the last line is an error's message, of which half a budget is shown (less of a small one).
        folded: it was printed by ``unfold``, and its lines stay as they are.

    The best choice among `select`'s, every gap at the price of the longest one; of more than 1,000 lines, of the 1,000
    that are worth most a character; in steps of more than one character where the budget is over 4,000.

    >>> tree = "\n".join(["a/", " a.py", "  def f", "  def g", "  def k", "b/", " b.py", "  def rate", "  def h"])
    >>> select_lines(tree, "What is the rate of b?", "", 56).splitlines()
    ['a/', '... 4 lines: unfold(2, 5)', 'b/', ' b.py', '  def rate', '  def h']
    """
    lines, message = (text.split("\n"), 0) if folded else _folded(text, budget, failed)
    parents = parents_of(lines)
    values = _values(lines, parents, question, turn)
    if failed:
        parents[message:] = [-1] * (len(lines) - message)  # it stands alone, whatever its indentation
        values[message] += sum(values)
    numbers, above = _shortlist(parents, values, lines)
    most, unit = before + len(lines), -(-budget // _GRAIN)
    gap = len(f"... {len(lines)} lines: unfold({most}, {most})") + 1
    costs = [budget + 2 if i is None else len(lines[i]) + 1 for i in numbers]
    worth = [0.0 if i is None else values[i] for i in numbers]
    chosen = select([-(-cost // unit) for cost in costs], worth, above, (budget + 1) // unit, -(-gap // unit))
    parts, after = [], 0
    for i in [*(numbers[n] for n in chosen), len(lines)]:
        if i > after:
            parts.append(f"... {i - after} lines: unfold({before + after + 1}, {before + i})")
        parts += lines[i : i + 1]
        after = i + 1
    return "\n".join(parts)


def _folded(text: str, budget: int, failed: bool) -> tuple[list[str], int]:
    """The lines of a text, none longer than a fourth of the budget: the rest goes on in lines below it.

    An error's message, the last line, begins with as much as can always be shown; with the number of that line.
    """
    lines, width, (*whole, last) = [], max(20, budget // 4), text.split("\n")
    for line in whole if failed else (*whole, last):
        indent = " " * min(len(line) - len(line.lstrip()) + 1, width // 2)
        lines += textwrap.wrap(line, width, subsequent_indent=indent, **_AS_IT_IS) or [line]
    if not failed:
        return lines, len(lines) - 1
    room = budget // 2
    if len(last) > room:
        room = min(room, budget - 2 * _GAP)
    rest = textwrap.wrap(last[room:], width, initial_indent=" ", subsequent_indent=" ", **_AS_IT_IS)
    return [*lines, last[:room], *rest], len(lines)


def select(
    costs: Sequence[int], values: Sequence[float], parents: Sequence[int], budget: int, gap: int = 0
) -> list[int]:
    """Nodes of a tree, worth most together, that cost at most ``budget``, none of them without its parent; exact.

    Args:
        costs: of N nodes in preorder (a node, then all that is below it), whole numbers from 0 up.
        values: finite numbers from 0 up.
        parents: each a smaller number than its node; -1: a root.
        gap: what each run of nodes costs that is left out between others, or before or behind them.

    Returns:
        Their numbers, ascending; where gaps alone cost more than the budget, none. Takes time and memory in proportion
        to N times ``budget``.

    >>> select([2, 3, 3, 2], [0, 5, 1, 4], [-1, 0, 0, -1], 5)
    [0, 1]
    >>> select([2, 3, 3, 2], [0, 5, 1, 4], [-1, 0, 0, -1], 7)
    [0, 1, 3]
    """
    count, room = len(costs), max(0, budget) + 1
    end = _ends(parents)
    # best[i, open, c]: of the nodes from i on, with c to spend; open: the one before is left out, its gap paid.
    best = np.zeros((count + 1, 2, room))
    take = np.zeros((count, 2, room), dtype=bool)
    for i in reversed(range(count)):
        with_it = np.full(room, -np.inf)
        if costs[i] < room:
            with_it[costs[i] :] = values[i] + best[i + 1, 0, : room - costs[i]]
        skip = best[end[i], 1]
        opening = np.full(room, -np.inf)
        opening[gap:] = skip[: max(0, room - gap)] if gap < room else []
        for is_open, without in ((0, opening), (1, skip)):
            take[i, is_open] = with_it >= without
            best[i, is_open] = np.maximum(with_it, without)
    found: list[int] = []
    i, is_open, left = 0, 0, room - 1
    if not count or not np.isfinite(best[0, 0, left]):
        return found
    while i < count:
        if take[i, is_open, left]:
            found.append(i)
            i, is_open, left = i + 1, 0, left - costs[i]
        else:
            i, is_open, left = end[i], 1, left - (0 if is_open else gap)
    return found


def _ends(parents: Sequence[int]) -> list[int]:
    """Of each node the number after all that is below it."""
    end = list(range(1, len(parents) + 1))
    for i in reversed(range(len(parents))):
        if parents[i] >= 0:
            end[parents[i]] = max(end[parents[i]], end[i])
    return end


def parents_of(lines: Sequence[str]) -> list[int]:
    """The line above each that is indented less, -1 where there is none; an empty line belongs to the one before it.

    >>> parents_of(["a", "  b", "", "  c", "d"])
    [-1, 0, 1, 0, -1]
    """
    parents: list[int] = []
    open_lines: list[tuple[int, int]] = []  # (indentation, number), each deeper than the one before
    for i, line in enumerate(lines):
        depth = len(line) - len(line.lstrip()) if line.strip() else math.inf
        while open_lines and open_lines[-1][0] >= depth:
            open_lines.pop()
        parents.append(open_lines[-1][1] if open_lines else -1)
        if line.strip():
            open_lines.append((int(depth), i))
    return parents


def _values(lines: Sequence[str], parents: Sequence[int], question: str, turn: str) -> list[float]:
    """What each line is worth: words of question and turn, the rarer the more, also in lines above; then what it fills.

    What the turn says is asked now, and counts three times. A match above counts the less, the more of the output
    stands below it. By kind and depth: what fills counts twice in a line that has others below it, and less with every
    line above it; the last line, which may say how it ended, counts 1.
    """
    now, words = _words(turn), [_words(line) for line in lines]
    asked = _words(question) | now
    counts = Counter(word for found in words for word in found & asked)
    rare = {word: math.log((1 + len(lines)) / n) * (3 if word in now else 1) for word, n in counts.items()}
    matches, depths, values = [], [], []
    heads, end = set(parents), _ends(parents)
    for i, (line, parent) in enumerate(zip(lines, parents, strict=True)):
        share = 1 - (end[parent] - parent) / len(lines)
        above = _INHERITED * share * matches[parent] if parent >= 0 else 0.0
        matches.append(sum(rare[word] for word in words[i] & asked) + above)
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
        fill = _FILL * (len(line) + 1) * (2 if i in heads else 1) / (1 + depths[i])
        values.append(matches[i] + fill)
    values[-1] += 1.0
    return values


def _words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.casefold()))


def _shortlist(
    parents: Sequence[int], values: Sequence[float], lines: Sequence[str]
) -> tuple[list[int | None], list[int]]:
    """The ``_MOST`` lines worth most a character, with those above them, and their parents; None: others, left out."""
    kept: set[int] = set()
    for i in sorted(range(len(values)), key=lambda i: -values[i] / (len(lines[i]) + 1)):
        way = []
        while i >= 0 and i not in kept:
            way.append(i)
            i = parents[i]
        if len(kept) + len(way) > _MOST:
            break
        kept.update(way)
    numbers: list[int | None] = []
    above: list[int] = []
    place = {-1: -1}
    for i, parent in enumerate(parents):
        if i in kept:
            place[i] = len(numbers)
        elif numbers and numbers[-1] is None:
            continue
        while parent not in place:
            parent = parents[parent]
        numbers.append(i if i in kept else None)
        above.append(place[parent])
    return numbers, above
