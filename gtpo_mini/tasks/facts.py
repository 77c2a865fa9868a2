"""Questions of two to four hops over a world of facts that only a look-up function in the session can tell.

"Who is the guard of the home of the friend of Bokari?": the key of each look-up is the value of the one before, so the
calls cannot be written ahead. Every problem has a world of its own, so no weights can hold it; and the facts lie
encrypted in the session, so that printing its variables tells none.
"""

from __future__ import annotations

import ast
import hashlib
import random
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from ..types import Problem, Turn
from .habits import Habits, Solver, Texts

#: Property -> what a solver with a wrong idea of it asks for: a key that nothing has, or silently another property.
PROPERTIES = {"friend": "mate", "home": "house", "pet": "animal", "boss": "owner", "owner": "guard", "guard": "boss"}
#: Kinds of step of which an idea can be wrong: the properties, and places on the way.
KINDS = (
    *PROPERTIES,
    "skip",  # a property of the question is left out: the second, of two or one the first
    "stale",  # the second look-up asks the first one's entity again
    "order",  # the question's properties are followed from left to right
    "copy",  # the last property is asked of a mis-copied name, which nobody has
    "last",  # the last hop is left out; asked yes or no, "unknown" is taken for no
    "exception",  # asks for an entity's kind at once, although it may be an exception
)
# A world's names share no syllable, and each syllable has one place in a name: a small model has to copy them. At a
# place each has another consonant, so that byte pairs merge into syllables and not across them.
_PLACES = (
    "Ba Ce Di Fo Gu Ha Je Ki Lo Mu Na Pe Qi Ro Su Ta Ve Wi Xo Zu",
    "bi co du fa ge hi jo ku la me yi po qu ra se ti vo wu xa ze",
    "bu ca de fi go hu ja ke li mo yu pa qe ri so tu va we xi zo",
)
_ANIMALS = "bear cat crow dog duck frog goat hen mole otter seal wolf"
_ABILITIES = "climb dig fly hunt jump swim"
_ASKS = ("entity", "yes_no")
_OTHERS = 5  # entities beside those of the chain
_EACH = 4  # properties of an entity; the first one has all
_OPPOSITE = {"yes": "no", "no": "yes"}
SALT = secrets.token_hex(8)  #: of this process: what lies in a session says nothing of the problem that it is of
_SETUP = '''\
def look_up(name, what, _salt={salt!r}, _table={table!r}):
    """The value of a fact, e.g. look_up("Bokari", "friend"), or "unknown"."""
    import random
    draw = random.Random(f"{{_salt}}|{{name}}|{{what}}")
    value = _table.get(draw.getrandbits(64))
    return "unknown" if value is None else (value ^ draw.getrandbits(128)).to_bytes(16, "big").strip(b"\\0").decode()
'''


def draw_names(rng: random.Random, count: int) -> list[str]:
    """At most 20 names that share no syllable."""
    drawn = zip(*(rng.sample(place.split(), count) for place in _PLACES), strict=True)
    return ["".join(syllables) for syllables in drawn]


def draw_problem(rng: random.Random, hops: int = 3, ask: str = "entity") -> Problem:
    """One problem; ``metadata`` holds the world: ``facts`` and, of them, the ``chain``, each (name, what, value)."""
    count = hops if ask == "entity" else hops - 1
    names = draw_names(rng, 1 + count + _OTHERS)
    others, path = names[count + 1 :], rng.sample(sorted(PROPERTIES), count)
    facts = {}
    for name in names:
        for what in PROPERTIES if name == names[0] else rng.sample(sorted(PROPERTIES), _EACH):
            # Never a value of the chain: those are the value of one fact only, so no other way leads there.
            facts[name, what] = rng.choice([other for other in others if other != name])
    chain = list(zip(names, path, names[1 : count + 1], strict=False))
    facts |= {(name, what): value for name, what, value in chain}
    way, ability, last = f"the {' of the '.join(reversed(path))} of {names[0]}", "", names[count]
    question = f"{'What' if path[-1] == 'home' else 'Who'} is {way}?"
    if ask == "yes_no":
        ability = rng.choice(_ABILITIES.split())
        for name, kind in zip(names, rng.sample(_ANIMALS.split(), len(names)), strict=True):
            facts[name, "kind"], facts[kind, ability] = kind, rng.choice(("yes", "no"))
            if rng.random() < (0.5 if name == last else 0.3):
                facts[name, ability] = _OPPOSITE[facts[kind, ability]]
        kind, question = facts[last, "kind"], f"Can {way} {ability}?"
        needed = [(last, ability)] if (last, ability) in facts else [(last, "kind"), (kind, ability)]
        chain += [(*key, facts[key]) for key in needed]
    metadata = {"start": names[0], "path": tuple(path), "ability": ability, "chain": tuple(chain)}
    metadata["facts"] = tuple((*key, value) for key, value in facts.items())
    return Problem(hashlib.sha256(question.encode()).hexdigest()[:16], question, chain[-1][2], metadata)


def draw_problems(
    size: int, split: str = "train", seed: int = 0, hops: int = 3, ask: str = "entity"
) -> tuple[Problem, ...]:
    """``size`` different problems of 2 to 4 ``hops``; the hash of its text puts one in eight into the test split.

    ``ask``: "entity", one of thousands of names, or "yes_no", which a guess gets right half the time (half of the
    answers are yes). Yes or no, the last hop asks whether an entity can do something; where it is no exception, so
    that this is unknown, two more look-ups tell: its kind, and the rule of that kind.

    >>> draw_problems(1, seed=3)[0].question
    'Who is the guard of the boss of the friend of Hawuke?'
    >>> [len(draw_problems(1, hops=hops)[0].metadata["chain"]) for hops in (2, 3, 4)]
    [2, 3, 4]
    """
    if split not in ("train", "test"):
        raise ValueError(f"split={split!r}: the task 'facts' has the splits 'train' and 'test'")
    if size < 1 or not 2 <= hops <= 4 or ask not in _ASKS:
        rule = f"size must be at least 1, hops in 2..4 and ask one of {', '.join(_ASKS)}"
        raise ValueError(f"size={size}, hops={hops}, ask={ask!r}: {rule}")
    rng, found = random.Random(f"facts-{split}-{seed}-{hops}-{ask}"), {}
    room = {"yes": size - size // 2, "no": size // 2}
    while len(found) < size:
        problem = draw_problem(rng, hops, ask)
        is_test = int(problem.id, 16) % 8 == 0
        if is_test == (split == "test") and problem.id not in found and room.get(problem.answer, 1):
            found[problem.id] = problem
            if problem.answer in room:
                room[problem.answer] -= 1
    drawn = list(found.values())
    if ask == "yes_no":  # when one answer is full, only the other is drawn
        rng.shuffle(drawn)
    return tuple(drawn)


def setup(problem: Problem) -> str:
    """Code that defines ``look_up(name, what)``: each value lies under a key, and behind a pad, drawn from both words.

    >>> exec(setup(problem := draw_problems(1)[0]))
    >>> name, what, value = problem.metadata["chain"][0]
    >>> look_up(name, what) == value, look_up("Nobody", what)
    (True, 'unknown')
    """
    table = {}
    for name, what, value in problem.metadata["facts"]:
        draw = random.Random(f"{SALT}{problem.id}|{name}|{what}")
        spot = draw.getrandbits(64)
        table[spot] = draw.getrandbits(128) ^ int.from_bytes(value.encode().rjust(16, b"\0"), "big")
    return _SETUP.format(salt=SALT + problem.id, table=dict(sorted(table.items())))


def write_turns(problem: Problem, rng: random.Random, habits: Habits) -> Texts:
    """The turns of a simulated solver, as `make_trace` takes them: one look-up each, then the answer.

    It goes on from what the tool printed, so a wrong value carries on. Where that is "unknown", it reconsiders, and
    goes back to the first call that it would now write otherwise; if there is none, it gives up.
    """
    world, solver = problem.metadata, Solver(habits, rng)
    if world["ability"] and "guess" in habits.mistaken and solver.mistakes("guess"):
        yield f"\\boxed{{{rng.choice(tuple(_OPPOSITE))}}}"
        return
    seen, calls, left = [world["start"]], [], len(world["path"]) + bool(world["ability"]) + 3
    while left and (call := _next_call(world, solver, seen)):
        whole, turn = 'print(look_up("{}", "{}"))'.format(*call), "{}, {}:\n```python\n".format(*call)
        if left > 1 and solver.breaks():
            yield turn + rng.choice((whole[:-1], whole.replace("look_up", "look_pu"))) + "\n```"
            left -= 1
        result = yield turn + whole + "\n```"
        left -= 1
        calls.append(call)
        seen.append(result.stdout.strip() or "unknown")
        if seen[-1] == "unknown" and call[1] != world["ability"]:  # that may be: no exception
            solver.reconsiders()
            again = (i for i, old in enumerate(calls) if _next_call(world, solver, seen[: i + 1]) != old)
            if (back := next(again, None)) is None:
                break
            del calls[back:], seen[back + 1 :]
    answer = "no" if world["ability"] and seen[-1] not in _OPPOSITE else seen[-1]
    yield f"\\boxed{{{answer}}}"


def _next_call(world: Mapping[str, Any], solver: Solver, seen: Sequence[str]) -> tuple[str, str] | None:
    """Name and property that the solver asks for after it has seen these values, the start first; None: no more."""
    path, ability, number = list(world["path"]), world["ability"], len(seen) - 1
    if solver.mistakes("order"):
        path.reverse()
    if solver.mistakes("skip"):
        del path[1 if len(path) > 2 else 0]
    if not ability and solver.mistakes("last"):
        del path[-1:]
    if number < len(path):
        name, what = seen[0 if number == 1 and solver.mistakes("stale") else -1], path[number]
        if number == len(path) - 1 and solver.mistakes("copy"):
            name = name[:4] + name[2:4]
        return name, PROPERTIES[what] if solver.mistakes(what) else what
    if not ability or seen[-1] in _OPPOSITE:
        return None
    if number == len(path):
        return seen[-1], "kind" if solver.mistakes("exception") else ability
    if seen[-1] == "unknown" and number == len(path) + 1:
        return None if solver.mistakes("last") else (seen[-2], "kind")
    return seen[-1], ability


def grade(problem: Problem, answer: str) -> bool:
    """Whether the answer is the name or word, whatever its case.

    >>> grade(Problem("1", "Who?", "Bokari"), " bokari"), grade(Problem("1", "Who?", "Bokari"), "Boka")
    (True, False)
    """
    return answer.strip().casefold() == problem.answer.casefold()


def wrong_answers(problem: Problem) -> list[str]:
    """What a wrong way leads to: the start, each value on the way, another entity; or the opposite of yes and no."""
    facts, chain, start = (problem.metadata[key] for key in ("facts", "chain", "start"))
    passed = [start, *(value for *_, value in chain[:-1])]
    return [*passed, next(name for name, *_ in reversed(facts) if name not in (*passed, problem.answer))] + (
        [_OPPOSITE[problem.answer]] if problem.answer in _OPPOSITE else []
    )


def turn_reward(problem: Problem, turns: Sequence[Turn]) -> float:
    """What the last of the turns surfaced of the chain for the first time, as a share in [0, 1]; see `surfaced`.

    Each fact that cannot be guessed (not yes and no) is worth the same. Once one is known, those before it are no
    longer needed: a jump earns them too, and later they earn nothing. An output that holds anything but values of the
    chain, "unknown", yes and no, lists what may be needed, and earns nothing.
    """
    values = [value for *_, value in problem.metadata["chain"]]
    worth = [value for value in values if value not in _OPPOSITE]
    found = [surfaced(turn, worth, len(values), {*values, "unknown", *_OPPOSITE}) for turn in turns]
    reached = [max((worth.index(value) + 1 for value in shown), default=0) for shown in found]
    return max(0, reached[-1] - max(reached[:-1], default=0)) / len(worth) if turns else 0.0


def surfaced(turn: Turn, needed: Collection[str], most: int, allowed: Collection[str] | None = None) -> list[str]:
    """The needed values that a turn shows to the policy, by a look-up, as whole lines of its output.

    The call ran and calls ``look_up``; it printed at most ``most`` lines, all of them ``allowed`` (None: any). A value
    that stands in the code, whole or in pieces, is only repeated.
    """
    if turn.result is None or not turn.result.ok or not turn.code:
        return []
    try:
        nodes = list(ast.walk(ast.parse(turn.code)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # it ran in another process, with other limits
        return []
    calls = any(isinstance(node, ast.Call) and getattr(node.func, "id", "") == "look_up" for node in nodes)
    lines = turn.result.stdout.strip("\n").split("\n")
    if not calls or len(lines) > most or not {*lines} <= {*(lines if allowed is None else allowed)}:
        return []
    names = ("value", "id", "attr", "name", "arg")  # of constants, variables, attributes, definitions, parameters
    written = "".join(str(getattr(node, name, "")) for node in nodes for name in names).casefold()
    return [line for line in lines if line in needed and line.casefold() not in written]
