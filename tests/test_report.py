"""Differences from recorded runs against a slow reference, and a README that cannot drift from its records."""

from __future__ import annotations

import json
import math
import random
from statistics import fmean, stdev

import pytest
from matplotlib import pyplot as plt
from scipy.stats import t as student

from gtpo_mini.experiments import plots, report
from gtpo_mini.experiments.compare import Difference, area, collapsed, differences, plateau, steps_to
from gtpo_mini.experiments.report import arms_table, load_regime_runs, write_report
from gtpo_mini.experiments.stats import Interval
from gtpo_mini.train.record import RecordedRun


def make_run(arm: str, seed: int, scores: list[float]) -> RecordedRun:
    behaviour = {"rollout/calls": 3.0, "rollout/invalid_calls": 0.1}
    evaluation = {
        "accuracy": fmean(scores),
        "per_problem": {str(i): score for i, score in enumerate(scores)},
        "behaviour": behaviour,
    }
    step = {"step": 0, "reward/outcome": 0.2, **behaviour}
    header = {"arm": arm, "seed": seed, "config": {"learning_rate": 3e-4}}
    return RecordedRun(header, (step,), {"sampled": evaluation, "greedy": evaluation})


@pytest.fixture
def runs() -> list[RecordedRun]:
    rng = random.Random(0)
    rates = {"grpo": 0.5, "+turn_rewards": 0.5, "gtpo": 0.8}
    return [
        make_run(arm, seed, [float(rng.random() < rate) for _ in range(200)])
        for arm, rate in rates.items()
        for seed in range(5)
    ]


def test_differences_by_hand(runs):
    first, second = differences(runs, ["gtpo", "+turn_rewards"])
    ends = {(run.arm, run.seed): run.footer["sampled"]["accuracy"] for run in runs}
    gaps = [ends["gtpo", seed] - ends["grpo", seed] for seed in range(5)]
    half = student.ppf(0.975, 4) * stdev(gaps) / math.sqrt(5)
    assert first.over_seeds == pytest.approx((fmean(gaps), fmean(gaps) - half, fmean(gaps) + half))
    assert first.over_problems.estimate == pytest.approx(fmean(gaps))
    assert first.seeds == 5 and first.verdict == "better" and second.verdict == "no difference shown"
    assert first.p_holm == pytest.approx(min(1, 2 * min(first.p, second.p))) and first.p < first.p_holm
    assert first.detectable > half / 2
    (back,) = differences(runs, ["grpo"], base="gtpo")  # a swapped arm changes the sign, nothing else
    assert back.over_seeds.estimate == -first.over_seeds.estimate and back.verdict == "worse"


def curve(values: list[float], arm: str = "grpo", seed: int = 0) -> RecordedRun:
    steps = tuple({"step": i, "reward/outcome": value} for i, value in enumerate(values))
    return RecordedRun({"arm": arm, "seed": seed, "config": {}}, steps, {})


def test_what_a_curve_is_worth_by_hand():
    run = curve([0.0] * 10 + [1.0] * 20)
    assert area(run) == pytest.approx(2 / 3) and area(run, 20) == 0.5 and plateau(run) == 1
    assert steps_to(run, 0.5) == 15 and steps_to(run, 1.0) == 20 and steps_to(run, 1.1) == 30  # never: all of them
    assert not collapsed(run) and collapsed(curve([0.5] * 10 + [0.3] * 10)) and not collapsed(curve([0.3] * 5))
    pairs = [
        curve([0.1 * seed + gain] * 4, arm, seed) for arm, gain in (("grpo", 0), ("gtpo", 0.1)) for seed in (0, 1, 2)
    ]
    (found,) = differences(pairs, ["gtpo"], kind=area)
    assert found.over_seeds.estimate == pytest.approx(0.1) and found.over_problems is None and found.seeds == 3


def test_pairs_need_common_seeds_and_the_same_problems(runs):
    with pytest.raises(ValueError, match=r"gtpo against grpo: 1 common seeds"):
        differences([run for run in runs if run.seed == 0], ["gtpo"])
    part = {key: value for key, value in runs[-1].footer["sampled"]["per_problem"].items() if int(key) < 100}
    runs[-1].footer["sampled"]["per_problem"] = dict(part)
    hundred = [run.footer["sampled"]["per_problem"] for run in runs if run.arm in ("grpo", "gtpo")]
    first, last = ([fmean(list(s.values())[:100]) for s in half] for half in (hundred[:5], hundred[5:]))
    (d,) = differences(runs, ["gtpo"])  # on the problems that all have
    assert d.over_seeds.estimate == pytest.approx(fmean(last) - fmean(first))
    runs[-1].footer["sampled"]["per_problem"]["another"] = 1.0
    with pytest.raises(ValueError, match="different problems"):
        differences(runs, ["gtpo"])


def test_equal_runs_show_no_difference(runs):
    twins = [make_run("gtpo", run.seed, [1.0, 0.0]) for run in runs[:5]]
    twins += [make_run("grpo", run.seed, [1.0, 0.0]) for run in runs[:5]]
    (d,) = differences(twins, ["gtpo"])
    assert d.over_seeds == Interval(0.0, 0.0, 0.0) and d.p == 1.0 and d.verdict == "no difference shown"


def test_tables_and_figures_show_every_arm(runs):
    table = arms_table(runs)
    assert all(f"`{arm}`" in table for arm in ("grpo", "+turn_rewards", "gtpo"))
    assert all(line.count("|") == table.splitlines()[0].count("|") for line in table.splitlines())
    figure = plots.plot_differences(differences(runs, ["gtpo", "+turn_rewards"]), "Title")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["gtpo − grpo  (5 seeds)", "+turn_rewards − grpo  (5 seeds)"]
    figure = plots.plot_regimes({"here": runs, "there": runs})
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["here", "there"]
    plt.close("all")


def test_a_tool_given_up_is_named(runs):
    assert report.given_up({"here": runs}) == []
    for run in runs:
        if run.arm == "gtpo":
            run.footer["sampled"]["behaviour"]["rollout/calls"] = 1.0
    assert report.given_up({"here": runs}) == ["GTPO in here (3.0 to 1.0 [1.0, 1.0] calls a rollout)"]


def test_added_seeds_are_looked_at_alone(runs):
    variant = [
        make_run(arm, seed, [1.0, 1.0, 0.0, 1.0] * 50) for arm in ("no_penalty", "potential") for seed in range(5)
    ]
    (d,) = differences([run for run in runs if run.seed > 1], ["gtpo"])
    assert f"`gtpo` minus `grpo` {report.points(d.over_seeds)} points" in report.seen_again([*runs, *variant], first=2)


def test_runs_that_never_moved_count_once(runs):
    for run in runs:
        run.steps[0]["grad/norm"] = 0.0 if run.arm == "grpo" and run.seed > 1 else 0.3
    (d,) = differences(runs, ["gtpo"])
    (kept,) = differences([run for run in runs if run.seed < 3], ["gtpo"])
    assert d.seeds == 3 and d.over_seeds == kept.over_seeds
    assert report.unmoved({"here": runs}) == ["GRPO in here (3 of 5 seeds)"]
    with pytest.raises(ValueError, match="1 common seeds"):
        differences([run for run in runs if run.seed > 1], ["gtpo"])


def test_two_steps_of_the_ladder_are_also_at_one_rate():
    runs = [run for name in ("ablation", "one_rate") for run in report.load_runs(report.ROOT / "data" / "runs" / name)]
    ends = {
        arm: fmean(
            run.footer["sampled"]["accuracy"]
            for run in runs
            if (run.arm, run.header["config"]["learning_rate"]) == (arm, 6e-4)
        )
        for arm in ("+turn_rewards", "+returns", "gtpo")
    }
    said = report.at_one_rate()
    assert said.startswith("all at 0.0006 (10 seeds): ")
    assert f"`+returns` minus `+turn_rewards` {100 * (ends['+returns'] - ends['+turn_rewards']):+.1f} [" in said
    assert f"`gtpo` minus `+returns` {100 * (ends['gtpo'] - ends['+returns']):+.1f} [" in said


def test_a_run_that_broke_down_is_named(runs):
    assert report.broke_down(runs) == []
    assert report.broke_down([make_run("gtpo", 3, [0.0, 0.0, 0.0, 0.0, 1.0, 0.0])]) == ["`gtpo` seed 3 (20 to 17 %)"]


def test_variants_are_compared_where_they_were_run(runs):
    variant = [make_run("no_penalty", seed, [1.0, 1.0, 0.0, 1.0] * 50) for seed in range(5)]
    table = report.variants_table({"here": [*runs, *variant], "there": runs, "once": [*runs, variant[0]]})
    assert table.count("| here |") == 2 and "there" not in table and "once" not in table
    words = report.without_penalties({"here": [*runs, *variant], "there": runs})
    (d,) = differences([*runs, *variant], ["no_penalty"], "gtpo")
    assert words == f"here {report.points(d.over_seeds)}, p {d.p:.2g}" and report.without_penalties({}) == "not run"


def test_the_verdict_follows_the_corrected_p():
    clear, unclear = Interval(-0.1, -0.2, -0.01), Interval(-0.1, -0.3, 0.1)
    cases = [(clear, 0.04), (clear, 0.06), (unclear, 0.04)]
    made = [Difference("a", "b", 5, clear, problems, 0.1, p=0.01, p_holm=p).verdict for problems, p in cases]
    assert made == ["worse", "no difference shown", "no difference shown"]


def test_readme_and_results_are_what_the_recorded_runs_say(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text((report.ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8")
    write_report(tmp_path)
    for name in ("README.md", "docs/results.md"):
        made, kept = ((root / name).read_text(encoding="utf-8") for root in (tmp_path, report.ROOT))
        assert made == kept, "run: gtpo-mini report"
    for path in plots.readme_figures(output=tmp_path):
        name = path.with_suffix(".json").name
        made, kept = (json.loads((folder / name).read_text()) for folder in (tmp_path, report.ROOT / "docs"))
        assert made["data_sha256"] == kept["data_sha256"], "run: gtpo-mini report"
    plt.close("all")
    copy.write_text("no marks here")
    with pytest.raises(ValueError, match="lacks the marks"):
        write_report(tmp_path)


def test_the_readme_s_numbers_are_the_table_s():
    """The sentence and the small table say what the large table says, row by row."""
    results = (report.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    (sentence,) = [line for line in results.splitlines() if line.startswith("**GTPO minus GRPO")]
    runs = report.load_runs(report.ROOT / "data" / "runs" / "ablation")
    assert report.headline(runs) in sentence
    assert len(report.ladder_table(runs).splitlines()) == 6
    for row in report.ladder_table(runs).splitlines()[2:]:
        arm, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        (line,) = [line for line in results.splitlines() if line.startswith(f"| {arm} |") and line.count("|") == 12]
        assert all(f"| {cell} |" in line for cell in cells if cell)


def test_the_recorded_set_is_as_large_as_the_readme_says():
    runs = [run for cell in load_regime_runs().values() for run in cell]
    main = load_regime_runs()["(shipped)"]
    assert {run.seed for run in main if run.arm == "grpo"} == {run.seed for run in main if run.arm == "gtpo"}
    assert len({run.seed for run in main}) >= 10
    assert all(len(run.footer[kind]["per_problem"]) >= 1000 for run in main for kind in ("sampled", "greedy"))
    assert all(len(run.footer["sampled"]["per_problem"]) >= 1000 for run in runs)
    assert all(not run.header["commit"].endswith("+") for run in runs), "made from files that were not committed"


def test_every_recorded_step_learned_from_what_was_sampled():
    """In float32 the sampler and the update agree to rounding; where they do not, a prompt or a cache is wrong."""
    gaps = [
        gap for run in report.load_runs(report.ROOT / "data" / "runs") for gap in run.series("loss/sampler_mismatch")
    ]
    assert len(gaps) > 5000 and max(gaps) < 2e-6
