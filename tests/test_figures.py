"""Figures, the rollout as HTML, and the notebook runner."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import nbformat
import pytest
from matplotlib import pyplot as plt

from gtpo_mini.experiments import plots
from gtpo_mini.experiments import reproduce as runner
from gtpo_mini.experiments.plots import ARM_STYLE, plot_learning_curves, save_figure
from gtpo_mini.experiments.viewer import trajectory_html
from gtpo_mini.train.record import RecordedRun
from gtpo_mini.types import ExecutionResult, Turn


@pytest.fixture
def runs() -> list[RecordedRun]:
    def make(arm: str, seed: int) -> RecordedRun:
        keys = ("reward/outcome", "rollout/calls", "rollout/invalid_calls")
        steps = tuple({"step": i, "time/step": seed, **dict.fromkeys(keys, 0.1 * i + 0.01 * seed)} for i in range(6))
        header = {"arm": arm, "seed": seed, "config": {"problems_per_step": 8, "group_size": 8}, "commit": "c"}
        return RecordedRun(header, steps, {})

    return [make(arm, seed) for arm in ("grpo", "gtpo") for seed in (0, 1, 2)]


def test_figures_are_byte_stable_and_say_where_they_come_from(runs, tmp_path):
    for name in ("a", "b"):
        save_figure(plot_learning_curves(runs, "Title"), "curves", runs, tmp_path / name)
        plt.close("all")
    for suffix in ("svg", "png", "json"):
        first, second = ((tmp_path / name / f"curves.{suffix}").read_bytes() for name in ("a", "b"))
        assert first == second
    record = json.loads((tmp_path / "a" / "curves.json").read_text())
    assert record["arms"] == ["grpo", "gtpo"] and record["seeds"] == [0, 1, 2] and record["commit"] == "c"
    runs[0].steps[0]["reward/outcome"] = 0.9
    save_figure(plot_learning_curves(runs, "Title"), "curves", runs, tmp_path / "c")
    assert json.loads((tmp_path / "c" / "curves.json").read_text())["data_sha256"] != record["data_sha256"]


def test_panels_have_labels_legend_caption_and_rates_from_zero(runs):
    figure = plot_learning_curves(runs, "Title")
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["GRPO", "GTPO"]
    for axes in figure.axes:
        assert axes.get_xlabel() == "training step" and axes.get_ylabel() and axes.get_ylim()[0] == 0
    assert "3 seeds" in figure._supxlabel.get_text() and "t-interval" in figure._supxlabel.get_text()
    assert len({style[0] for style in ARM_STYLE.values()}) == len(ARM_STYLE)
    plt.close(figure)


def test_one_seed_has_no_band_and_unequal_runs_end_with_the_shortest(runs):
    figure = plot_learning_curves(runs[:1], "Title")
    (line,) = figure.axes[0].lines
    assert not figure.axes[0].collections and len(line.get_xdata()) == 6
    assert "One run" in figure._supxlabel.get_text()
    short = RecordedRun(runs[1].header, runs[1].steps[:4], {})
    figure = plot_learning_curves([runs[0], short], "Title")
    *thin, bold = figure.axes[0].lines
    assert [len(line.get_xdata()) for line in (*thin, bold)] == [6, 4, 4] and len(figure.axes[0].collections) == 1
    assert bold.get_ydata()[0] == pytest.approx((runs[0].steps[0]["reward/outcome"] + 0.01) / 2)
    plt.close("all")


def test_the_notebooks_figures_show_what_they_are_given(runs):
    figure = plots.plot_bars({"Silent: groups, %": {"grpo": 25.0, "gtpo": 0.0}, "Told: advantage": {"grpo": -0.3}})
    first, second = figure.axes
    assert [bar.get_height() for bar in first.patches] == [25.0, 0.0] and first.get_ylabel() == "groups, %"
    assert first.get_title() == "Silent" and [bar.get_height() for bar in second.patches] == [-0.3]
    told = {f"advantage/{kind}_turn_{j}": j * sign for kind, sign in (("right", 1), ("wrong", -1)) for j in range(1, 7)}
    (axes,) = plots.plot_turns({"GTPO": told}, "Title").axes
    assert [list(line.get_ydata()) for line in axes.lines[:2]] == [[1, 2, 3, 4, 5, 6], [-1, -2, -3, -4, -5, -6]]
    (axes,) = plots.plot_likeness({"ngram": {True: [1.0, 0.99], False: [0.1]}}).axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["right rollouts", "wrong rollouts"]
    many = [replace(run, header={**run.header, "arm": f"{run.arm}{kind}"}) for run in runs for kind in ("", "_2")]
    few, crowded = plots.plot_panels({"one": [runs[0], *runs[3:5]], "all": many}, "Title").axes
    assert few.get_title() == "one" and [len(axes.lines) for axes in (few, crowded)] == [1 + 1 + 2, 4]
    for run in runs:
        for step in run.steps:
            step["advantage/hopeless_share"] = 0.2 if run.arm == "grpo" else 0.5
    later = [run for run in many if run.arm == "gtpo_2"]  # an arm that only the second regime has
    legend = plots.plot_hopeless({"here": runs, "there": later}).axes[1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["GRPO", "GTPO", "gtpo_2"]
    early, whole = plots.plot_hopeless({"here": runs}, early=2).axes
    assert [line.get_xdata()[0] for line in whole.lines] == pytest.approx(
        [20, 50]
    ) and "first 2 steps" in early.get_title()
    plt.close("all")


def test_html_escapes_marks_tokens_and_shows_rewards(make_trajectory, tiny_policy):
    text = "```python\nprint('<script>alert(1)</script>')\n```"
    call = Turn(text, code="print(1)", result=ExecutionResult(ok=False, error="E"))
    trajectory = make_trajectory(
        (tiny_policy.encode(text), tiny_policy.encode("<b>tool</b>"), call), (tiny_policy.encode("é"), [], Turn("é"))
    )
    page = trajectory_html(trajectory, tiny_policy, rewards=[-0.1, 1.0], advantages=[-1.5, 0.5])
    shown = re.sub(r"<[^>]*>", "", page)
    assert "<script>" not in page and "<b>tool" not in page and "&lt;b&gt;tool&lt;/b&gt;" in page
    assert "reward -0.10" in shown and "advantage +0.50" in shown and "invalid call" in shown
    assert page.count('title="logprob ') == sum(trajectory.loss_mask) - (len(tiny_policy.encode("é")) - 1)


def notebook(folder, name: str, code: str) -> None:
    cells = [nbformat.v4.new_markdown_cell("# T\n\n**Runtime.** About 5 s"), nbformat.v4.new_code_cell(code)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / name)


def test_reproduce_runs_all_in_order_and_names_the_one_that_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    for variable in ("GTPO_RESULTS", "GTPO_PROGRESS", "JUPYTER_PREFER_ENV_PATH"):
        monkeypatch.setenv(variable, "")  # so that it is put back afterwards
    notebook(
        tmp_path,
        "00_a.ipynb",
        "import os, pathlib\npathlib.Path(os.environ['GTPO_RESULTS'], 'f').touch()\nprint(6 * 7)",
    )
    notebook(tmp_path, "01_b.ipynb", "print('before')\nraise KeyError('mine')")
    output = tmp_path / "out"
    (page,) = runner.reproduce(output, ["00"])
    assert "42" in page.read_text() and (output / "f").is_file()
    with pytest.raises(RuntimeError, match=r"01_b.ipynb failed: KeyError.*mine"):
        runner.reproduce(output)
    assert "before" in (output / "01_b.html").read_text()  # what ran is kept
    assert "00_a" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no notebook"):
        runner.reproduce(output, ["99"])


def test_outputs_are_kept_without_what_changes_and_the_answer_goes_to_the_top(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path)
    for variable in ("GTPO_RESULTS", "GTPO_PROGRESS", "JUPYTER_PREFER_ENV_PATH"):
        monkeypatch.setenv(variable, "")
    title = "# T\n\n**Answer in one sentence.** Filled in.\n\n**Runtime.** About 5 s"
    setup = "from IPython.display import Markdown, display\nanswer = display(Markdown('later'), display_id=True)"
    shown = "import sys\nprint(6 * 7)\nprint('a bar', file=sys.stderr)\nanswer.update(Markdown('**Yes**, 42.'))"
    codes = [setup, shown, "import time\nprint(time.time())"]
    cells = [nbformat.v4.new_markdown_cell(title), *map(nbformat.v4.new_code_cell, codes)]
    cells[3].metadata["tags"] = ["clear"]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "00_a.ipynb")
    runner.reproduce(tmp_path / "out")
    assert not any(cell.outputs for cell in nbformat.read(tmp_path / "00_a.ipynb", as_version=4).cells[1:])
    runner.reproduce(tmp_path / "out", keep=True)
    kept = nbformat.read(tmp_path / "00_a.ipynb", as_version=4)
    assert kept.cells[0].source == title.replace("Filled in.", "**Yes**, 42.")
    assert [[one.get("text") for one in cell.outputs] for cell in kept.cells[1:]] == [[], ["42\n"], []]
    assert all(cell.execution_count is None and "execution" not in cell.metadata for cell in kept.cells[1:])
    before = (tmp_path / "00_a.ipynb").read_bytes()
    runner.reproduce(tmp_path / "out", keep=True)
    assert (tmp_path / "00_a.ipynb").read_bytes() == before
