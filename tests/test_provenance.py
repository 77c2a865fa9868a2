"""Provenance: what each value of a rollout rests on, by hand, by running the cited calls again, and for any text."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_credit import rollout

from gtpo_mini import ExecutionResult, Problem, Turn, load_policy, load_profile, load_task, sample
from gtpo_mini.credit.provenance import PROMPT, Origin, answer_claims, as_value, is_supported, provenance, verified
from gtpo_mini.experiments.evaluate import describe_support
from gtpo_mini.rollout.observation import run_call
from gtpo_mini.rollout.settings import SamplingSettings


def told(question: str, *calls: tuple[str, str], answer: str | None):
    """A rollout of (code, what it printed) and an answer."""
    turns = [Turn("t", code=code, result=ExecutionResult(ok=True, stdout=out)) for code, out in calls]
    return replace(
        rollout("p", *(code for code, _ in calls), answer=answer),
        problem=Problem("p", question, ""),
        turns=(*turns, Turn("end")),
    )


def origins(found, in_answer=True):
    return [(claim.text, str(claim.origin), claim.sources) for claim in found if claim.in_answer == in_answer]


def test_every_value_of_a_known_rollout():
    shop = told(
        "A shop sells 12 boxes of 1,430 pens; Anna takes half.",
        ("boxes = 12\nprint(boxes * 1430)", "17160.0"),
        ("print(17160 / 2, 'Anna')", "8580.0 Anna"),
        ("print(17)", "17"),
        answer="Anna takes 8,580 of 17160; 8,568 are left of each 12, and 17 of 99",
    )
    assert origins(provenance(shop)) == [
        ("8,580", "copied", (1,)),
        ("17160", "copied", (0,)),
        ("8,568", "computed", (PROMPT, 1)),  # 8580 - 12
        ("12", "restated", (PROMPT,)),
        ("17", "unsupported", ()),  # the call printed what it had written itself
        ("99", "unsupported", ()),
    ]
    assert origins(provenance(shop), in_answer=False) == [
        ("12", "restated", (PROMPT,)),
        ("1430", "restated", (PROMPT,)),
        ("17160", "copied", (0,)),
        ("2", "unsupported", ()),
        ("Anna", "restated", (PROMPT,)),
        ("17", "unsupported", ()),
    ]
    assert answer_claims(shop) == [claim for claim in provenance(shop) if claim.in_answer]


@pytest.mark.parametrize(
    "answer, origin",
    [("ANNA  Berg", "copied"), ("anna", "copied"), ("Ann", "unsupported"), ("Bob", "restated"), ("-7", "copied")],
)
def test_words_are_compared_whole_and_without_case(answer, origin):
    found = told("Who is the boss of Bob?", ("look_up('Bob')", "Anna Berg, -7"), answer=answer)
    assert [claim[1] for claim in origins(provenance(found))] == [origin]


def test_a_minus_belongs_to_a_number_and_not_to_a_difference():
    found = told("What is 10-3?", ("print(3 - 7)", "-4"), answer="-4 or 10-3 or 4")
    assert origins(provenance(found)) == [
        ("-4", "copied", (0,)),
        ("10", "restated", (PROMPT,)),
        ("3", "restated", (PROMPT,)),
        ("4", "unsupported", ()),
    ]


def test_an_echo_has_the_origin_of_what_it_echoes():
    first, second = ("print(42)\nprint(6)", "42\n6"), ("print(6 * 7)", "42")
    echoed = told("6 and 7", first, answer="42, 6")
    assert origins(provenance(echoed)) == [("42", "computed", (PROMPT,)), ("6", "restated", (PROMPT,))]
    made = told("6 and 7", first, second, answer="42, 6")
    assert origins(provenance(made)) == [("42", "copied", (1,)), ("6", "restated", (PROMPT,))]


@pytest.mark.parametrize(
    "code",
    [
        "print('The answer is 42')",
        "print(f'42')",
        "print([42])",
        "print(str(42))",
        "x = 42\nprint(x)",
        "print(42 + 0)",
        "print(True, 42)",
        "x = 42\nprint(f'{x}', [x])",
    ],
)
def test_a_call_is_no_source_of_what_it_holds_itself(code):
    (claim,) = answer_claims(told("?", (code, "42"), answer="42"))
    assert claim.origin is Origin.UNSUPPORTED


@pytest.mark.parametrize(
    ("code", "printed", "supported"),
    [
        ("print(True)", "True", False),
        ("ok = None\nprint(ok)", "None", False),
        ("print(12)", "12", False),
        ("x = 12\nprint(x)", "12", False),  # what stands in the question is no finding where it is only passed on
        ("n = 0\nfor row in rows:\n    n += 'Anna' in row\nprint(n)", "0", True),
        ("print(sum(1 for row in rows if row))", "1", True),
        ("n = 1\nprint(n)", "1", False),
        ("n = 12\nn = f(n)\nprint(n)", "12", True),
        (f"print({'9' * 75})", "9" * 75, False),
        ("print(91 % 7 == 0)", "True", True),
    ],
)
def test_what_is_computed_counts_and_what_is_only_passed_on_does_not(code, printed, supported):
    found = answer_claims(told("12 apples of Anna and 30 of Bob?", (code, printed), answer=printed))
    assert is_supported(found) is supported


def test_without_a_tool_nothing_rests_on_it():
    claims = answer_claims(told("6 rows of 7", answer="42"))
    assert [claim.origin for claim in claims] == [Origin.COMPUTED] and not is_supported(claims)
    assert origins(answer_claims(told("?", ("print(3 * 7)", "21"), answer="42"))) == [("42", "unsupported", ())]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("3.5kg, 1,430kg", [3.5, 1430]),
        ("2024,100", [2024, 100]),
        ("\u22123", [-3]),
        ("1.2.3", [1.2]),
        ("x2", []),
        (".5 -.75 6.", [0.5, -0.75, 6]),
    ],
)
def test_numbers_are_read_whole(text, numbers):
    found = told("?", ("f()", text), answer=" ".join(str(number) for number in numbers) or "none")
    assert [float(as_value(claim.text)) for claim in answer_claims(found) if claim.sources] == numbers


def test_an_answer_is_supported_by_the_tool_or_not():
    call = ("print(6 * 7)", "42")
    answers = {"42": True, "43": False, "42 of 43": False, "6": False, None: False}
    for answer, supported in answers.items():
        assert is_supported(answer_claims(told("6 * 7 apples", call, answer=answer))) is supported, answer


def test_a_claim_is_verified_by_running_the_cited_calls_again(sandbox):
    true = told("What is 6 * 7?", ("x = 6 * 7", ""), ("print(x)", "42"), answer="42")
    forged = told("What is 6 * 7?", ("x = 6 * 8", ""), ("print(x)", "42"), answer="42")
    for found, holds in ((true, True), (forged, False)):
        (claim,) = answer_claims(found)
        with sandbox.session() as session:
            assert (claim.origin, claim.sources) == (Origin.COPIED, (1,))
            assert verified(claim, found, session.run) is holds
    (planted,) = answer_claims(told("?", ("print(1)", "1"), answer="2"))
    assert not verified(planted, true, lambda code: ExecutionResult(ok=True, stdout="2"))


def shortened(sandbox, settings, *codes, answer):
    with sandbox.session() as session:
        both = [run_call(session, code, "", "", settings) for code in codes]
    turns = [
        Turn("t", code=code, result=result, told=None if seen is result else seen)
        for code, (result, seen) in zip(codes, both, strict=True)
    ]
    return replace(told("?", answer=answer), turns=(*turns, Turn("end")))


ROWS = "for i in range(60): print('row', 7 * i)"


@pytest.mark.parametrize(
    ("select", "codes", "answer", "supported"),
    [
        (False, [ROWS], "7", True),
        (False, [ROWS], "210", False),  # in the part that was cut out
        (True, [ROWS], "210", False),
        (True, [ROWS, "unfold(30, 33)"], "210", True),
        # The gap's "53 lines".
        (True, ["for i in range(60): print('row', 26 + 27 if i == 30 else 7919 * i)"], "53", False),
        (False, ["print('1234567' * 40)"], "1234567" * 7 + "1", False),  # the half of a number that is shown
        (False, ["print('row')\n\n\n\n\n\n\n1 / 0"], "8", False),  # the line of the error
        (False, ["print('row', 2 + 3)\n" + "\n" * 300 + "raise ValueError('x' * 200)"], "5", True),
    ],
)
def test_of_a_shortened_output_what_was_seen_counts(sandbox, select, codes, answer, supported):
    settings = SamplingSettings(max_output=100, select_output=select)
    found = shortened(sandbox, settings, *codes, answer=answer)
    assert is_supported(answer_claims(found)) is supported
    for claim in answer_claims(found):
        with sandbox.session() as session:
            assert verified(claim, found, lambda code: run_call(session, code, "", "", settings)[0]) is supported


def test_many_numbers_are_read_in_time():
    """A list of 16,000 thousands separators took 8 seconds, and three outputs of 13,000 numbers more than a minute."""
    outputs = [("f()", "111," * 16_000), *(("f()", " ".join(map(str, range(i, 13_000 + i)))) for i in range(3))]
    begun = time.process_time()
    answer_claims(told("?", *outputs, ("\n".join(f"x = {n}.5" for n in range(300)), ""), answer="13002 0.25"))
    assert time.process_time() - begun < 20


def test_real_rollouts_are_supported_and_verified(sandbox):
    settings = load_profile("cpu").train.sampling()
    task = load_task("branching")
    groups = sample(load_policy("tiny"), task, 4, 8, settings=settings, sandbox=sandbox)
    both = [(r, right) for group in groups for r, right in zip(group.rollouts, group.correct, strict=True)]
    claims = [(r, claim) for r, _ in both for claim in provenance(r) if claim.origin is not Origin.UNSUPPORTED]
    assert all(is_supported(answer_claims(r)) for r, right in both if right)
    for found, claim in claims[::7]:
        with sandbox.session() as session:
            assert verified(claim, found, session.run)


@given(st.lists(st.tuples(st.text(), st.text()), max_size=3), st.text(), st.text() | st.none())
def test_any_text_is_data(calls, question, answer):
    found = provenance(told(question, *calls, answer=answer))
    for claim in found:
        assert (claim.origin is Origin.UNSUPPORTED) == (claim.sources == ())
        assert all(PROMPT <= source <= claim.turn for source in claim.sources)


@pytest.mark.parametrize("text", ["9" * 5000, "0x" + "f" * 5000, "1e999", "--1", "1.2.3", "nan", "٣٤", "1,2,3"])
def test_odd_numbers_are_values_too(text):
    as_value(text)
    provenance(told(text, (f"print({text})", text), answer=text))


def test_an_evaluation_tells_supported_answers_from_others():
    call = ("print(6 * 7)", "42")
    rollouts = [told("6 * 7?", call, answer=answer) for answer in ("42", "42", "43", "6", None)]
    assert describe_support(rollouts, [1, 0, 1, 0, 0]) == {
        "answer/supported": 0.5,
        "answer/right_if_supported": 0.5,
        "answer/right_if_not": 0.5,
    }
    assert set(describe_support([rollouts[-1]], [0]).values()) == {0.0}


def test_of_two_outputs_the_last_is_named():
    found = told("?", ("f()", "5 Anna"), ("g()", "5 Anna"), answer="5")
    assert origins(answer_claims(found)) == [("5", "copied", (1,))]
    assert origins(answer_claims(replace(found, answer="Anna"))) == [("Anna", "copied", (1,))]
