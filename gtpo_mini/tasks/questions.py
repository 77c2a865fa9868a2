"""Questions that others wrote: StrategyQA, its facts behind a look-up function in the session, and CommonsenseQA."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ..types import Problem, Turn
from .facts import SALT, surfaced
from .rows import Columns, Source, load_source

_OTHERS = 3  # problems whose facts lie among a problem's own
_MOST = 3  # sentences that a look-up returns
_SETUP = '''\
def look_up(words, _salt={salt!r}, _table={table!r}):
    """The sentences that share most of the words, e.g. look_up("Genghis Khan"), or "unknown"."""
    import random, re
    shared = {{}}
    for word in {{word[:5] for word in re.findall(r"\\w{{4,}}|\\d+", str(words).lower())}}:
        for number in range(99):
            draw = random.Random(f"{{_salt}}|{{word}}|{{number}}")
            hidden = _table.get(draw.getrandbits(64))
            if hidden is None:
                break
            pad = draw.randbytes(len(hidden))
            sentence = bytes(a ^ b for a, b in zip(hidden, pad)).decode()
            shared[sentence] = shared.get(sentence, 0) + 1
    best = [sentence for sentence in shared if shared[sentence] == max(shared.values())]
    return "\\n".join(sorted(best)[:{most}]) or "unknown"
'''


def setup_look_up(problem: Problem) -> str:
    """Code that defines ``look_up(words)`` over the problem's ``facts`` and ``others``, in its metadata.

    Words of four letters and more count, and numbers; five letters decide. A sentence lies under each of its words,
    encrypted with that word, so that printing the session's variables tells none.

    >>> facts = {"facts": ("Caesar had three children.",), "others": ("Whales are mammals.",)}
    >>> exec(setup_look_up(Problem("1", "?", "yes", facts)))
    >>> look_up("children of Caesar"), look_up("Khan")
    ('Caesar had three children.', 'unknown')
    """
    table, used = {}, dict[str, int]()
    for sentence in sorted({*problem.metadata["facts"], *problem.metadata["others"]}):
        for word in sorted(_words(sentence)):
            draw = random.Random(f"{SALT}{problem.id}|{word}|{used.setdefault(word, 0)}")
            used[word] += 1
            spot, text = draw.getrandbits(64), sentence.encode()
            table[spot] = bytes(a ^ b for a, b in zip(text, draw.randbytes(len(text)), strict=True))
    return _SETUP.format(salt=SALT + problem.id, table=dict(sorted(table.items())), most=_MOST)


def _strategy_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of the hub, or an example of BIG-bench: "target_scores", and "target" with the answer before the facts."""
    if "target_scores" in row:
        target, scores = str(row["target"]), row["target_scores"]
        return {"question": row["input"], "answer": max(scores, key=scores.get).lower()} | {
            "facts": _sentences(re.sub(r"^(yes|no)\b\W*", "", target, flags=re.IGNORECASE))
        }
    if not isinstance(row.get("answer"), bool):
        raise ValueError("'answer' is neither true nor false")
    facts = row.get("facts")
    if not isinstance(facts, str | list | tuple):
        raise ValueError("'facts' is neither text nor a list")
    found = _sentences(facts) if isinstance(facts, str) else tuple(" ".join(str(fact).split()) for fact in facts)
    return {**row, "answer": "yes" if row["answer"] else "no", "facts": found}


def _sentences(text: str) -> tuple[str, ...]:
    return tuple(part for part in re.split(r"(?<=[.!?]) (?=[A-Z\d\"'])", " ".join(text.split())) if part)


def _choice_row(row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        choices = dict(zip(row["choices"]["label"], row["choices"]["text"], strict=True))
    except (KeyError, TypeError, ValueError):
        raise ValueError("'choices' has no 'label' and 'text' of one length") from None
    if row.get("answerKey") not in choices:
        raise ValueError("'answerKey' is no label of the choices")
    listed = "\n".join(f"{label}: {text}" for label, text in choices.items())
    return {**row, "question": f"{row['question']}\n{listed}", "choices": choices}


_TWO = {"train": "train", "test": "test"}
_STRATEGY = Source("ChilleD/StrategyQA", None, _TWO, Columns(id="qid", adapt=_strategy_row), "task.json", 0.8)
_SPLITS = {"train": "train", "test": "validation"}  # the hub's own test split has no answers
_COMMONSENSE = Source("tau/commonsense_qa", None, _SPLITS, Columns(answer="answerKey", adapt=_choice_row))


def load_strategyqa(split: str, size: int | None = None) -> tuple[Problem, ...]:
    """The first ``size`` problems; ``metadata`` holds each one's ``facts``, and ``others``: those of the next three."""
    problems = load_source("strategyqa", split, source=_STRATEGY)
    found = []
    for number, problem in enumerate(problems[:size]):
        near = [problems[(number + step) % len(problems)] for step in range(1, _OTHERS + 1)]
        others = tuple(fact for other in near if other is not problem for fact in other.metadata["facts"])
        metadata = {**problem.metadata, "others": others}
        found.append(Problem(problem.id, problem.question, problem.answer, metadata))
    return tuple(found)


def load_commonsense_qa(split: str, size: int | None = None) -> tuple[Problem, ...]:
    """The first ``size`` problems; their choices stand in the question and, by label, in ``metadata``."""
    return load_source("commonsense_qa", split, size, _COMMONSENSE)


def grade_yes_no(problem: Problem, answer: str) -> bool:
    """Whether the answer is the right one of yes and no.

    >>> [grade_yes_no(Problem("1", "Is it?", "yes"), answer) for answer in ("Yes.", "no")]
    [True, False]
    """
    return answer.strip(" \n.").casefold() == problem.answer


def grade_choice(problem: Problem, answer: str) -> bool:
    """Whether the answer is the right label, the right text, or both as the question writes them.

    >>> problem = Problem("1", "Where?", "B", {"choices": {"A": "shop", "B": "bank"}})
    >>> [grade_choice(problem, answer) for answer in ("b", "(B)", "Bank.", "B: bank", "A", "B: shop")]
    [True, True, True, True, False, False]
    """
    text = problem.metadata["choices"][problem.answer]
    right = {written.casefold() for written in (problem.answer, text, f"{problem.answer}: {text}")}
    return answer.strip(" \n().").casefold() in right


def wrong_choices(problem: Problem) -> list[str]:
    """The other labels and texts."""
    choices = problem.metadata["choices"]
    text = choices[problem.answer].casefold()
    return [part for pair in choices.items() if pair[1].casefold() != text for part in pair]


def _asked_for(problem: Problem, code: str) -> set[str]:
    """The sentences that the calls ``look_up("...")`` in a code give."""
    found: set[str] = set()
    for asked in re.findall(r"""look_up\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""", code):
        words, counts = _words("".join(asked)), dict[str, int]()
        for sentence in (*problem.metadata["facts"], *problem.metadata["others"]):
            counts[sentence] = len(words & _words(sentence))
        most = max(counts.values(), default=0)
        found |= set(sorted(sentence for sentence, n in counts.items() if n == most > 0)[:_MOST])
    return found


def _words(text: str) -> set[str]:
    """What decides whether a sentence is found: the first five letters of words of four and more, and numbers."""
    return {word[:5] for word in re.findall(r"\w{4,}|\d+", text.lower())}


def reward_facts(problem: Problem, turns: Sequence[Turn]) -> float:
    """The share, in [0, 1], of the problem's facts that the last of the turns surfaced for the first time.

    As `surfaced` has it, in an output of no more lines than one look-up returns; and a look-up of words that stand in
    the code must give the fact, as is found out here: a list of what the session holds earns nothing.
    """
    facts = {*problem.metadata["facts"]}
    seen = [set(surfaced(turn, facts, _MOST)) & _asked_for(problem, turn.code or "") for turn in turns]
    return len(seen[-1].difference(*seen[:-1])) / len(facts) if seen and facts else 0.0
