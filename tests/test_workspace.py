"""The family workspace: a repository that only look() shows, and a solver that asks for what was left out."""

from __future__ import annotations

import io
import random
from contextlib import redirect_stdout

import pytest

from gtpo_mini import load_protocol, load_task
from gtpo_mini.rollout.chat import Chat
from gtpo_mini.rollout.settings import SamplingSettings
from gtpo_mini.tasks.habits import Habits
from gtpo_mini.tasks.task import check_task
from gtpo_mini.tasks.workspace import KINDS, PROPERTIES, draw_problems, setup, write_turns
from gtpo_mini.train.imitation import make_trace


def traces(policy, sandbox, problems, habits, view=SamplingSettings()):
    chat, task, rng = Chat(policy, load_protocol()), load_task("workspace", size=1), random.Random(0)
    return [make_trace(p, write_turns(p, rng, habits), chat, sandbox, task, view) for p in problems]


def right(found):
    return sum(trace.answer == trace.problem.answer for trace in found)


def look(problem, *where):
    world: dict = {}
    exec(setup(problem), world)
    with redirect_stdout(io.StringIO()) as said:
        world["look"](*where)
    return said.getvalue().splitlines()


@pytest.mark.parametrize("options", [{}, {"hops": 1}, {"hops": 4}, {"ask": "fault"}])
def test_the_task_is_whole(options):
    train, test = (load_task("workspace", split, size=60, **options) for split in ("train", "test"))
    assert not {p.question for p in train.problems} & {p.question for p in test.problems}
    assert check_task(test).ok and len({p.id for p in train.problems}) == 60


def test_a_question_that_cannot_be_drawn_is_named():
    assert len({p.question for p in draw_problems(3000, "test", ask="fault")}) == 3000
    for options in ({"hops": 5}, {"ask": "x"}, {"size": 0}, {"split": "dev"}):
        with pytest.raises(ValueError, match=next(iter(options))):
            draw_problems(**{"size": 1, **options})


def test_look_shows_folders_files_and_definitions():
    problem = draw_problems(1)[0]
    paths = list(problem.metadata["files"])
    every = look(problem)
    assert [line for line in every if not line.startswith(" ")] == [
        f"{x}/" for x in dict.fromkeys(p.split("/")[0] for p in paths)
    ]
    assert len([line for line in every if line.startswith("  ")]) == len(paths) * len(PROPERTIES)
    folder, _, file = paths[0].partition("/")
    assert [line.strip() for line in look(problem, folder) if "." in line] == [
        path.partition("/")[2] for path in paths if path.startswith(folder)
    ]
    whole = look(problem, paths[0])
    assert whole[0] == paths[0] and whole == look(problem, file) == look(problem, file.partition(".")[0])
    assert look(problem, file, 4) == whole[3:] and look(problem, "./" + paths[0].partition(".")[0]) == whole
    assert look(problem, "nowhere") == ["nowhere: no such file or folder"]


def test_a_solver_without_wrong_ideas_is_right_where_it_sees_enough(tiny_policy, sandbox):
    for options in ({}, {"hops": 3}, {"ask": "fault"}):
        problems = draw_problems(12, **options)
        assert right(traces(tiny_policy, sandbox, problems, Habits({}))) == 12
        whole = traces(tiny_policy, sandbox, problems, Habits({}, broken=0.0))
        assert not any(turn.invalid_call for trace in whole for turn in trace.turns)


def test_a_selection_shows_it_more_in_fewer_tokens_than_a_cut(tiny_policy, sandbox):
    problems = draw_problems(30)
    views = [SamplingSettings(max_output=120, select_output=select) for select in (False, True)]
    cut, selected = (traces(tiny_policy, sandbox, problems, Habits({}, broken=0.0), view) for view in views)
    assert right(selected) == 30 > right(cut)
    assert sum(len(t.token_ids) for t in selected) < 0.7 * sum(len(t.token_ids) for t in cut)
    assert any("unfold(" in turn.code for trace in selected for turn in trace.turns if turn.code)


def test_each_wrong_idea_leads_astray_where_it_can(tiny_policy, sandbox):
    problems, view = draw_problems(25), SamplingSettings(max_output=120, select_output=True)
    for kind in KINDS:
        found = traces(tiny_policy, sandbox, problems, Habits({kind: 1.0}, broken=0.0), view)
        assert right(found) < 25, kind
        assert not any(turn.invalid_call for trace in found for turn in trace.turns)
