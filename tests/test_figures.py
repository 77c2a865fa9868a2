"""Figures, the rollout as HTML, and the notebook runner."""

from __future__ import annotations

import json
import re

import nbformat
import pytest
from matplotlib import pyplot as plt

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
