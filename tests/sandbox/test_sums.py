"""Sums that no child runs: what they give is what a child gives, and nothing else is taken for a sum."""

import random
import threading

import pytest
from hostile import HOSTILE, PRELUDE

from gtpo_mini.sandbox.sums import evaluate

ATOMS = ["1", "2", "37", "0", "x", "y", "total", "3.5", "0.1", "1e3", ".5", "1" + "0" * 20, "7.", "x1"]
TYPOS = ["", "(", ")", "=", "/", "\n", " ", "+", ".", ",", "print"]


def write(rng: random.Random, depth: int = 0) -> str:
    """An expression that may be a sum, or nearly one."""
    kind = rng.random()
    if depth > 3 or kind < 0.5:
        return rng.choice(ATOMS)
    if kind < 0.6:
        return f"({write(rng, depth + 1)})"
    if kind < 0.68:
        return rng.choice("+-") + write(rng, depth + 1)
    symbol = rng.choice(["+", "-", "*", "*", "/", "//", "%", "**", ","])
    return f"{write(rng, depth + 1)}{rng.choice(['', ' '])}{symbol} {write(rng, depth + 1)}"


def snippet(rng: random.Random) -> str:
    lines = []
    for _ in range(rng.randint(1, 3)):
        name = rng.choice(["x", "y", "total", "x1", "print", "_z"] if rng.random() < 0.1 else ["x", "y", "total"])
        kinds = (f"print({write(rng)})", f"print({write(rng)}, {write(rng)})", f"{name} = {write(rng)}", write(rng))
        lines.append(rng.choice(kinds))
    text = "\n".join(lines)
    if rng.random() < 0.3:
        place = rng.randrange(len(text) + 1)
        text = text[:place] + rng.choice(TYPOS) + text[place + rng.randint(0, 1) :]
    return text


def test_a_session_of_sums_gives_what_a_child_gives(box):
    rng, without, turns = random.Random(0), 0, 0
    for _ in range(80):
        with box.session() as session, box.session() as other:
            other._names = None  # all of it in a child
            assert session.run("x = 5\ny = 2.5\ntotal = x * 3") == other.run("x = 5\ny = 2.5\ntotal = x * 3")
            for _ in range(4):
                code = snippet(rng)
                assert session.run(code) == other.run(code), code
                without, turns = without + (session._child is None), turns + 1
            names = "print([globals().get(name) for name in ('x', 'y', 'total', 'x1', '_z')])"
            assert session.run(names) == other.run(names) and session._child is not None
    assert 0.1 < without / turns < 0.9, "both ways must be tried"


def test_a_sum_that_cannot_be_read_is_told_as_a_child_tells_it(box):
    for code in ("print(5+3", "print(5+/3)", "x = = 2", "  print(1)", "print(1))", "1 = x", "x = 3 4"):
        with box.session() as session, box.session() as other:
            other._names = None
            assert session.run("x = 1") == other.run("x = 1")
            try:
                raise RuntimeError("what the trainer is busy with")
            except RuntimeError:
                found = session.run(code)
            assert found == other.run(code) and session._child is None and not found.ok
            assert "<turn 2>" in found.error and "SyntaxError" in found.error.replace("Indentation", "Syntax")
    assert box.run("print(5+3").error.lstrip().startswith('File "<snippet>"')


@pytest.mark.parametrize(
    "code",
    [
        *("import os", "print(x)", "1 / 0", "print(10 ** 9)", "print = 3", "_ = 3", "print(1, sep=2)", "print(*x)"),
        *("x.real", "x = y = 1", "x += 1", "print(True)", "exit()", "print(print(1))", "x, y = 1, 2", "", "print(1)#"),
        *("1_0", "0x1f", "1or 2", "print(" + "9" * 400 + ")", "1" + "+1" * 300, "é = 1", "print(1e999 * 0 // 1 % 0)"),
        *("x = " + "9" * 200 + "\nprint(x, x, x, x, x, x)", "x = 1" + " " * 500, "x = 1\r\nprint(x)", "x = 1\0"),
        "x = " + "9" * 300 + "\n" + "y = x * x\nz = y * y",
    ],
)  # fmt: skip
def test_all_else_is_a_childs(code):
    names = {"z": 1}
    assert evaluate(code, 1, names) is None and names == {"z": 1}


def test_sums_keep_off_ast(monkeypatch):
    """Its parser counts its depth for all threads together: one thread's parse made another's raise (Python 3.11)."""
    monkeypatch.setattr("ast.parse", lambda *_, **__: pytest.fail("parsed in a tool's thread"))
    assert evaluate("print((1 + 2) * 3)", 1, {})[0].stdout == "9\n"
    assert "SyntaxError" in evaluate("print((1 + 2) * 3", 1, {})[0].error


def test_no_hostile_snippet_is_a_sum():
    assert [case.name for case in HOSTILE if evaluate(PRELUDE + case.code, 0, {}) is not None] == []
    taken = [case.name for case in HOSTILE if (found := evaluate(case.code, 0, {})) is not None and found[0].ok]
    assert taken == []


def test_long_chains_and_deep_stacks_end_in_a_number_or_a_child(box):
    nests = ["print(" + "(" * depth + "1" + ")" * depth + ")" for depth in (50, 90, 199, 200, 240)]
    for code in ("print(" + "-" * 480 + "1)", "print(" + "1+" * 240 + "1)", *nests):
        with box.session() as session, box.session() as other:
            other._names = None
            assert session.run(code) == other.run(code) and session.run("print(2)").stdout == "2\n"

    def deep(n):
        return deep(n - 1) if n else box.run("print(" + "1+" * 240 + "1)").stdout

    assert deep(700) == "241\n"


def test_what_warns_as_it_is_compiled_is_compiled_by_a_child(box, recwarn):
    for code in (
        "True(1)\nbreak",
        "None (1)\nreturn",
        "1.or 2\nbreak",
        "print(1.in 2",
        "print(1.or 2)",
        "x = 5.if 1 else 2",
    ):
        with box.session() as session, box.session() as other:
            other._names = None
            assert session.run(code) == other.run(code), code
    assert not [one for one in recwarn if issubclass(one.category, SyntaxWarning)]


def test_an_error_quotes_no_file_of_the_trainer(box, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("<turn 1>", "<snippet>"):
        (tmp_path / name).write_text("a_secret\n")
    for found in (box.run("return 1"), box.session().run("return 1")):
        assert "'return' outside function" in found.error and "a_secret" not in found.error


def test_an_interrupt_among_sums_leaves_the_rest_to_a_child(box, monkeypatch):
    from gtpo_mini.sandbox import client

    with box.session() as session:
        assert session.run("x = 6").ok
        with monkeypatch.context() as patched:
            patched.setattr(client, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                session.run("x = 7")
        assert session.run("print(x)").stdout == "6\n" and session._child is not None


def test_an_interrupt_among_the_turns_that_run_again_loses_none(box, monkeypatch):
    from gtpo_mini.sandbox.child import Child

    with box.session() as session:
        assert session.run("x = 1").ok and session.run("y = 2").ok
        with monkeypatch.context() as patched:
            patched.setattr(Child, "turn", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                session.run("print(str(x))")
        assert session.run("print(x, y)").stdout == "1 2\n"


def test_sums_of_many_threads_and_a_closed_session(box):
    sessions, found = [box.session() for _ in range(20)], {}

    def work(n: int) -> None:
        sessions[n].run(f"x = {n}")
        found[n] = sessions[n].run("print(x * x)").stdout

    threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: f"{n * n}\n" for n in range(20)}
    for session in sessions:
        session.close()
        session.close()
        with pytest.raises(ValueError, match="closed"):
            session.run("1")
