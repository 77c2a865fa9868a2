"""What a notebook's first page says of recorded runs is what the records give now."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from notebook_rules import source

from gtpo_mini.experiments import compare, report
from gtpo_mini.experiments.compare import Difference, by_arm, differences, over_starts, points
from gtpo_mini.train.metrics import mean

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


@functools.cache
def runs(folder: str) -> list:
    return report.load_runs(report.RUNS / folder)


def ladder_steps() -> list[Difference]:
    return [one.mean for one in report.asked(report.load_study(), *report.QUESTIONS["c"])]


def step(arm: str) -> list[str]:
    """Of the ladder's step that ends in an arm."""
    return [points(d.over_seeds) for d in ladder_steps() if d.arm == arm]


def held_out() -> list[str]:
    """Of GTPO and GRPO in one regime, at the end; by seed, without the bootstrap over problems."""
    ends = report.load_study()["branching_20"]
    return [points(differences(ends, ["gtpo"], kind=compare.held_out)[0].over_seeds)]


def by_verdict() -> list[str]:
    found = report.by_verdict(report.over_regimes(report.load_study()))
    return [f"{verdict} in {', '.join(names)}" for verdict, names in found.items()]


def rank_correlations() -> list[str]:
    read = [report.prediction(report.load_meters(after=steps), report.load_study()) for steps in (0, 20, 60)]
    return ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*report.rank_correlation(dots)) for dots in read]


def views() -> list[str]:
    found = json.loads((report.RUNS / "observation.json").read_text(encoding="utf-8"))["views"]["value"]
    return [f"{100 * found[f'{way} 120']['accuracy'][0]:.1f} %" for way in ("cut", "select")]


def paid_with_support() -> str:
    found = differences(runs("supported"), ["gtpo_supported"], "gtpo", report.supported_share)
    return points(found[0].over_seeds)


def estimators() -> list[str]:
    """Which of the twelve differences of question (g) are shown."""
    found = [one.mean for one in report.asked(report.load_study(), *report.QUESTIONS["g"])]
    assert len(found) == 12
    told = [f"`{d.arm}` {points(d.over_seeds)} against `{d.base}`" for d in found if d.p_holm < 0.05]
    return told or ["after correction: none is shown to differ"]


def whole_and_steps() -> list[str]:
    study = report.load_study()
    whole = over_starts([*report.in_starts(study, "_20").values()], "gtpo", "grpo")[-1]
    claimed = [one.mean for one in report.asked(report.load_study(which="parts"), *report.QUESTIONS["i"])]
    return [points(d.over_seeds) for d in (whole, *(d for d in (*ladder_steps(), *claimed) if d.p_holm < 0.05))]


SAID = {
    "03_turn_level_rewards": lambda: step("grpo_accuracy") + step("+turn_rewards"),
    "04_returns_as_advantages": lambda: step("+returns"),
    "05_self_supervised_shaping": lambda: step("gtpo"),
    "06_grpo_and_gtpo_side_by_side": held_out,
    "07_ablation": whole_and_steps,
    "08_does_praise_go_where_it_belongs": rank_correlations,
    "09_against_the_paper": lambda: [
        *by_verdict(),
        points(report.pooled(report.over_regimes(report.load_study())).over_studies),
    ],
    "11_what_came_after": lambda: [*views(), paid_with_support(), *estimators()],
}


@pytest.mark.parametrize("name", SAID)
def test_a_first_page_says_what_the_records_give(name):
    page = source(json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"][0])
    lacking = [said for said in SAID[name]() if said not in page]
    assert not lacking, f"gtpo-mini reproduce {name[:2]} --keep; the records say {lacking}"


def test_the_readme_says_what_paying_for_support_brought():
    page = (NOTEBOOKS.parent / "README.md").read_text(encoding="utf-8")
    ends = [
        100 * mean([report.supported_share(run) for run in by_arm(runs("supported"))[arm]])
        for arm in ("gtpo_supported", "gtpo")
    ]
    assert "{:.0f} % are right and supported, not {:.0f} %".format(*ends) in " ".join(page.split())
    assert paid_with_support() in page


def test_the_readme_says_where_gtpo_gains_and_that_accuracy_alone_gains_as_much():
    page, parts = (NOTEBOOKS.parent / "README.md").read_text(encoding="utf-8"), report.load_study(which="parts")
    gain = next(one.mean for one in report.asked(parts, *report.QUESTIONS["i"]) if one.mean.base == "grpo")
    assert gain.p_holm < 0.05 and f"GTPO gains {points(gain.over_seeds)} points on GRPO" in page
    between = over_starts([*report.in_starts(parts, "rare_clean").values()], "gtpo", "grpo_accuracy")[-1]
    assert between.p_within(0.02) < 0.05, "no longer as much"


def test_the_readme_says_what_training_showed_of_the_estimators():
    page = " ".join((NOTEBOOKS.parent / "README.md").read_text(encoding="utf-8").split())
    assert ("six other estimators (none is shown to differ)" in page) == ("none is shown" in estimators()[0])


def test_of_the_real_model_an_order_is_told_and_no_difference():
    real = runs("smollm2")
    areas = {arm: {run.seed: compare.area(run) for run in mine} for arm, mine in by_arm(real).items()}
    orders = [sorted(areas, key=lambda arm: areas[arm][seed]) for seed in areas["grpo"]]
    assert orders == [["gtpo", "normalize_centred", "grpo"]] * 3
    found = report.asked({"smollm2": real}, *report.QUESTIONS["j"])
    assert len(found) == 3 and all(one.mean.p_holm > 0.05 for one in found)
    said = "In each of the three seeds GRPO's area is the largest and GTPO's the smallest, yet after correction none"
    for page in (NOTEBOOKS / "09_against_the_paper.ipynb", NOTEBOOKS.parent / "docs" / "results.md"):
        assert said in page.read_text(encoding="utf-8")
