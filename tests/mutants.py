# ruff: noqa: E501 (an edit reads best on one line)
"""Plants slips in the package, one at a time, and counts those that the tests catch: python tests/mutants.py [NAME ...].

A mutant is one edit of the kind that a refactoring makes by mistake: the code still runs. For each, a copy of the
repository is edited and the tests named beside it are run there; a mutant that they pass is a hole in the net. Not part
of `make test` (it takes about 25 minutes on one core); `tests/test_mutants.py` holds that every edit still fits the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
CREDIT = (
    "tests/test_credit.py tests/test_advantages.py tests/test_rewards.py tests/test_shaping.py tests/test_trainer.py"
)
UPDATE = "tests/test_update.py tests/test_loss.py tests/test_trainer.py"
ENGINE = "tests/test_rollout.py tests/test_update.py tests/test_chat.py"
RUN = "tests/test_survival.py"
LATER = "tests/test_later.py"
SEEN = "tests/test_observation.py"
COMPARE = "tests/test_compare.py tests/test_stats.py tests/test_report.py"


class Mutant(NamedTuple):
    """One edit; ``old`` stands exactly once in the file."""

    name: str
    file: str
    old: str
    new: str
    tests: str


# fmt: off
MUTANTS = [
    # Credit
    Mutant("groups cut by order", "credit/credit.py", "numbers.setdefault((problem, part), len(numbers))", "len(groups) // group_size", CREDIT),
    Mutant("potential without gamma", "credit/credit.py", "self.gamma * later - now", "later - now", CREDIT),
    Mutant("earlier penalties lost", "credit/credit.py", "[math.fsum(rewards_N) for rewards_N in rewards]", "[rewards_N[-1] for rewards_N in rewards]", CREDIT),
    Mutant("a silent group spoils the batch", "credit/advantages.py", "if min(reference) == max(reference):", "if False:", CREDIT),
    Mutant("a drawn-twice problem is one group", "credit/credit.py", "part = 0 if counts[problem] % group_size else seen[problem] // group_size", "part = 0", CREDIT),
    Mutant("a partial grade loses to likeness", "credit/credit.py", "outcomes[i] = max(outcomes[i], share)", "outcomes[i] = share", CREDIT),
    Mutant("any grade counts as right", "credit/credit.py", "outcomes[i] == 1.0 for i in members", "outcomes[i] > 0.0 for i in members", CREDIT),
    Mutant("returns over the batch for all", "credit/credit.py", "gtpo_advantages(rewards, self.gamma, self.normalize, groups)", "gtpo_advantages(rewards, self.gamma, self.normalize)", CREDIT),
    Mutant("own rewards for accuracy", "credit/credit.py", 'outcome if self.rewards == "accuracy" else trajectory_reward', 'outcome if self.rewards != "accuracy" else trajectory_reward', CREDIT),
    Mutant("penalty ignored", "credit/credit.py", "turn_rewards(rollout, outcome, penalty)", "turn_rewards(rollout, outcome)", CREDIT),
    Mutant("rollouts' advantage of the neighbour", "credit/credit.py", "for a, rollout in zip(whole, rollouts, strict=True)", "for a, rollout in zip(whole[::-1], rollouts, strict=True)", CREDIT),
    Mutant("own NaN passes", "credit/arms.py", "finite_numbers(f\"{field}[{i}]\", row, at_least=0)", "[float(x) for x in row]", CREDIT),
    Mutant("returns restart", "credit/advantages.py", "running = reward + gamma * running", "running = reward + gamma * (running - reward)", CREDIT),
    Mutant("sample std", "credit/advantages.py", "for value in basis) / len(basis))", "for value in basis) / max(1, len(basis) - 1))", CREDIT),
    Mutant("turn index ignored", "credit/advantages.py", '"turn": (problems[i], j)', '"turn": problems[i]', CREDIT),
    Mutant("first returns are last returns", "credit/advantages.py", "[returns[i][0] for i, j in places if j == 0]", "[returns[i][-1] for i, j in places if j == 0]", CREDIT),
    Mutant("a missing first call is free", "credit/rewards.py", "or (index == 0 and not turn.calls_tool)", "", CREDIT),
    Mutant("format forgiven in the baseline", "credit/rewards.py", "min(accuracy, 1.0 if valid else 0.0)", "accuracy", CREDIT),
    Mutant("divided by |P| twice", "credit/shaping.py", "alpha * (math.fsum(likeness) / len(likeness))", "alpha * (math.fsum(likeness) / len(likeness) ** 2)", CREDIT),
    Mutant("a right rollout is like itself", "credit/shaping.py", "if right and p != i]", "if right]", CREDIT),
    Mutant("code that failed counts", "types.py", 'turn.code for turn in self.turns if turn.result is not None and turn.result.ok and turn.code)', "turn.code for turn in self.turns if turn.code)", CREDIT + " tests/test_experiments.py"),
    # The update
    Mutant("KL ratio inverted", "train/update.py", "kl = (base - logprobs).exp() - (base - logprobs) - 1", "kl = (logprobs - base).exp() - (logprobs - base) - 1", UPDATE),
    Mutant("gradient never clipped", "train/update.py", "config.max_grad_norm).item()", "1e9).item()", UPDATE),
    Mutant("a mean of passes, not of tokens", "train/update.py", "(total / tokens).backward()", "(total / len(logprobs)).backward()", UPDATE),
    Mutant("minibatches overlap", "train/update.py", "order[part :: config.minibatches]", "order[part:]", UPDATE),
    Mutant("ratios from themselves", "train/update.py", "torch.cat([before[i] for i in batch]) if before else logprobs.detach()", "logprobs.detach()", UPDATE),
    Mutant("steps shuffle alike", "train/update.py", 'f"{config.seed}-{step}-minibatches"', 'f"{config.seed}-minibatches"', UPDATE),
    Mutant("weights of the wrong sign", "train/loss.py", "(logprobs - sampled).exp().clamp(max=cap)", "(sampled - logprobs).exp().clamp(max=cap)", UPDATE),
    Mutant("clip range swapped", "train/loss.py", "ratio.clamp(1 - clip_low, 1 + clip_high)", "ratio.clamp(1 - clip_high, 1 + clip_low)", UPDATE),
    Mutant("never pessimistic", "train/loss.py", "-torch.minimum(plain, clipped), clipped < plain", "-torch.maximum(plain, clipped), clipped < plain", UPDATE),
    Mutant("trained at another temperature", "train/loss.py", "policy.logits(hidden) / temperature", "policy.logits(hidden)", UPDATE),
    Mutant("turns' advantages shifted", "train/loss.py", "advantage.append(advantages_N[turn])", "advantage.append(advantages_N[max(0, turn - 1)])", UPDATE),
    Mutant("a batch sees another's prompt", "train/loss.py", "torch.tensor([chosen[i] for i in batch]", "torch.tensor([chosen[0] for i in batch]", UPDATE),
    Mutant("a batch's tokens go elsewhere", "train/loss.py", "self.back[torch.cat(lines)[found]] = found", "self.back[:] = found", UPDATE),
    Mutant("tool output is trained", "train/loss.py", "                if rollout.loss_mask[t]:", "                if True:", UPDATE),
    Mutant("KL skips silent rollouts", "train/update.py", "if any(advantages[i]) or config.kl_coefficient]", "if any(advantages[i])]", UPDATE),
    Mutant("NaN gradients are applied", "train/update.py", "if sampled and all(map(math.isfinite, (norm, *found.values()))):", "if True:", RUN),
    # The engine
    Mutant("every turn draws the same", "rollout/engine.py", "[self.seed, rollout.number, len(rollout.turns)]", "[self.seed, rollout.number]", ENGINE),
    Mutant("every rollout draws the same", "rollout/engine.py", "[self.seed, rollout.number, len(rollout.turns)]", "[self.seed, len(rollout.turns)]", ENGINE),
    Mutant("every seed draws the same", "train/trainer.py", "seed = config.seed * 10**6 + step", "seed = step", UPDATE),
    Mutant("every step draws the same", "train/trainer.py", "seed = config.seed * 10**6 + step", "seed = config.seed * 10**6", UPDATE),
    Mutant("log-probabilities at temperature 1", "rollout/engine.py", "chosen = logprobs.gather(-1, tokens)", "chosen = torch.log_softmax(logits, -1).gather(-1, tokens)", ENGINE),
    Mutant("one turn too many", "rollout/engine.py", "if len(rollout.turns) + 1 >= self.settings.max_turns:", "if len(rollout.turns) >= self.settings.max_turns:", ENGINE),
    Mutant("turns may outgrow their tokens", "rollout/engine.py", "min(rollout.turn_start + self.settings.max_turn_tokens, self.context)", "rollout.turn_start + self.settings.max_turn_tokens", ENGINE),
    Mutant("the tool's text in the next turn", "rollout/engine.py", "            rollout.push_result(tool_ids)\n            rollout.end_turn(turn)\n", "            rollout.end_turn(turn)\n            rollout.push_result(tool_ids)\n", ENGINE),
    Mutant("moved rows keep their prompt", "rollout/forward.py", "self.groups[target], self.bases[target] = self.groups[source], self.bases[source]", "pass", ENGINE),
    Mutant("another group's prompt", "rollout/forward.py", "leading = list(rows) == list(range(len(rows)))", "leading = len(rows) == len(self.groups)", ENGINE),
    Mutant("sessions are shared", "rollout/engine.py", "            rollout.session = opened\n", "            rollout.session = self.rollouts[0].session = self.rollouts[0].session or opened\n", ENGINE),
    Mutant("tool output is a policy's", "rollout/builder.py", "self.push(ids, [0.0] * len(ids))\n        self._label(0)", "self.push(ids, [0.0] * len(ids))\n        self._label(1)", ENGINE),
    Mutant("the fast pass turns the other way", "policy/decoder.py", "torch.cat((-sin, sin), -1)", "torch.cat((sin, -sin), -1)", "tests/test_policy.py"),
    Mutant("short queries are weighed otherwise", "policy/attention.py", "weights.amax(-1, keepdim=True) - shares", "weights.amax(-1, keepdim=True) + shares", "tests/test_attention.py"),
    Mutant("special tokens are dropped", "policy/model.py", "skip_special_tokens=False", "skip_special_tokens=True", ENGINE + " tests/test_policy.py"),
    Mutant("a tool may write special tokens", "policy/model.py", "split_special_tokens=True", "split_special_tokens=False", ENGINE + " tests/test_policy.py"),
    Mutant("4-bit weights are repacked", "policy/model.py", "module.support_avx512bf16_for_cpu = False", "pass", "tests/test_policy.py"),
    # Runs and checkpoints
    Mutant("resume under any settings", "train/trainer.py", "if name not in MAY_CHANGE}", 'if name == "credit"}', RUN),
    Mutant("smaller passes forgotten", "train/run.py", 'update.tokens_per_pass = min(update.tokens_per_pass, state["tokens_per_pass"])', "pass", RUN),
    Mutant("the record is written over", "train/record.py", 'new = path.with_name(path.name + ".new")', "new = path", RUN),
    Mutant("a half-written checkpoint is taken", "train/checkpoint.py", 'if _size_and_hash(place / name) != manifest["files"][name]:', "if False:", RUN),
    Mutant("numpy's state is not put back", "train/checkpoint.py", "    np.random.set_state((kind", "    tuple((kind", RUN),
    Mutant("the optimiser begins anew", "train/checkpoint.py", 'optimizer.load_state_dict(state.pop("optimizer"))', 'state.pop("optimizer")', RUN),
    Mutant("one checkpoint is kept", "train/checkpoint.py", "KEEP = 2", "KEEP = 1", RUN),
    Mutant("a grader may change", "train/checkpoint.py", '        "grader": _digest(_code(task.grader)),\n', "", RUN),
    Mutant("metadata may change", "train/checkpoint.py", "(p.id, p.question, p.answer, dict(p.metadata))", "(p.id, p.question, p.answer)", RUN),
    Mutant("broken weights are saved", "train/run.py", "if update.skipped or (", "if (", RUN),
    Mutant("two processes in one folder", "train/record.py", "fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)", "pass", RUN),
    Mutant("an interrupt saves nothing", "train/run.py", "if isinstance(error, KeyboardInterrupt | ValueError) and self._settled:", "if False:", RUN),
    Mutant("half a step is saved", "train/run.py", "        self._settled = False\n", "        self._settled = True\n", RUN),
    Mutant("a second footer", "train/run.py", "        if not self.finished:\n            append_line(", "        if True:\n            append_line(", RUN),
    Mutant("metrics of a damaged line are lost", "train/run.py", 'self.history = state["history"]', 'self.history = [{k: v for k, v in line.items() if k != "kind"} for line in lines if line["kind"] == "step"][:done]', RUN),
    # Comparison and tasks
    Mutant("runs paired by order", "experiments/compare.py", "[(run, theirs[seed]) for seed, run in _by_seed(runs, arm).items() if seed in theirs]", "list(zip(_by_seed(runs, arm).values(), theirs.values()))", COMPARE),
    Mutant("problems paired by order", "experiments/compare.py", "[[score[problem] for problem in least] for score in scores]", "[list(score.values())[: len(least)] for score in scores]", COMPARE),
    Mutant("the difference the other way round", "experiments/compare.py", "difference = _bootstrap(b_P, a_P)", "difference = _bootstrap(a_P, b_P)", COMPARE),
    Mutant("runs that never moved count as many", "experiments/compare.py", "        if not here & still:\n", "        if True:\n", COMPARE),
    Mutant("p-values not corrected", "experiments/compare.py", "return corrected(found)", "return found", COMPARE),
    Mutant("unpaired power", "experiments/compare.py", 'sd=spread, over="problems")', 'sd=spread, over="seeds")', COMPARE),
    Mutant("a file that is cut off passes", "experiments/compare.py", 'if len(rows) != header["problems"] or len(scores) != len(rows):', "if False:", COMPARE),
    Mutant("groups in the order of stopping", "experiments/evaluate.py", "return [graded[place] for place in sorted(graded)]", "return [*graded.values()]", COMPARE),
    Mutant("train problems among the test's", "tasks/rows.py", "draw(seed, seen)", "draw(seed, set())", "tests/test_tasks.py"),
    Mutant("progress in every arm", "credit/credit.py", "    progress: float = 0.0", "    progress: float = 1.0", "tests/test_progress.py"),
    Mutant("progress of the last turn only", "tasks/task.py", "turns[: number + 1]", "turns", "tests/test_progress.py"),
    Mutant("no setup in a session", "tasks/task.py", 'if self.setup is not None else ""', 'if False else ""', "tests/test_progress.py"),
    Mutant("sums: a printed name may be print", "sandbox/sums.py", 'if first == "print" or first[0] == "_"', 'if first[0] == "_"', "tests/sandbox/test_sums.py"),
    Mutant("sums: a failed turn keeps its names", "sandbox/sums.py", '"", "", dict(names)', '"", "", names', "tests/sandbox/test_sums.py"),
    Mutant("sums: numbers of any size", "sandbox/sums.py", "found.bit_length() > _BITS", "False", "tests/sandbox/test_sums.py"),
    Mutant("sums: the trainer's own trouble is told", "sandbox/sums.py", "problem.__context__ = None", "pass", "tests/sandbox/test_sums.py"),
    Mutant("sums: forgotten by the child", "sandbox/client.py", "            self._turns.append((number, code))\n            result", "            result", "tests/sandbox/test_sums.py"),
    Mutant("sums: computed beside a child", "sandbox/client.py", "names, self._names = self._names, None", "names = self._names", "tests/sandbox/test_sums.py"),
    Mutant("what is asked is corrected a start", "experiments/compare.py", "    means = corrected([one.mean for one in found])", "    means = [corrected([o.mean for o in found if o.start == one.start])[0] for one in found]", COMPARE),
    Mutant("a pair is taken from both machines", "experiments/compare.py", "gaps[-1], blind))\n                    break", "gaps[-1], blind))", COMPARE),
    Mutant("setup counts as a turn", "sandbox/client.py", "return self._guarded(code, 0)", "return self._guarded(code, 1)", "tests/test_progress.py"),
    Mutant("a grader may hang", "tasks/task.py", "within(_SECONDS, lambda", "within(1e9, lambda", "tests/test_progress.py"),
    Mutant("guesses are not taken off", "experiments/evaluate.py", "(self.accuracy - self.guess_rate) /", "self.accuracy /", "tests/test_progress.py"),
    Mutant("a bool is a number", "tasks/submissions.py", "isinstance(value, int | float) and not isinstance(value, bool)", "isinstance(value, int | float)", "tests/test_programs.py"),
    Mutant("asking twice pays twice", "tasks/facts.py", "max(0, reached[-1] - max(reached[:-1], default=0))", "reached[-1]", "tests/test_facts.py"),
    Mutant("an example pays again", "tasks/submissions.py", "gained, best = max(0.0, share - best), max(best, share)", "gained, best = max(0.0, share - best), share", "tests/test_programs.py"),
    Mutant("an idea is drawn anew at every step", "tasks/habits.py", "if kind not in self._mistakes:", "if True:", "tests/test_coldstart.py"),
    Mutant("continuations have all turns", "experiments/meter.py", "max_turns=settings.max_turns - turns", "max_turns=settings.max_turns", "tests/test_meter.py"),
    Mutant("continuations in an empty session", "experiments/meter.py", "for code in state.codes:", "for code in ():", "tests/test_meter.py"),
    Mutant("praise by the value after alone", "experiments/meter.py", "[later - now for now, later in", "[later for now, later in", "tests/test_meter.py"),
    Mutant("penalties where nothing is right", "credit/credit.py", "0.0 if self.spare_hopeless and group not in hopeful else", "0.0 if self.spare_hopeless else", CREDIT),
    Mutant("centred is the batch", "credit/advantages.py", 'returns, normalize = _centre(returns, problems), "batch"', 'normalize = "batch"', CREDIT),
    Mutant("any grade is right", "tasks/task.py", "if not self.partial_credit and isinstance(grade, bool | np.bool_):", "if not self.partial_credit:", "tests/test_tasks.py"),
    Mutant("later: states are forgotten", "credit/later.py", "shared = [(group, state) for", "shared = [(group, 0) for", LATER),
    Mutant("later: turns of all numbers together", "credit/later.py", "[(groups[i], j) for i, j in own]", "[(groups[i], 0) for i, j in own]", LATER),
    Mutant("later: the residual counts itself", "credit/later.py", "for k in who if k != i)", "for k in who)", LATER),
    Mutant("later: tiers grow that agree", "credit/later.py", "if earned[name] * statistics.fmean(given[name]) < 0]", "if earned[name] * statistics.fmean(given[name]) > 0]", LATER),
    Mutant("later: guesses are paid", "credit/later.py", "right if is_supported(answer_claims(r)) else 0.0", "right", LATER),
    Mutant("later: void turns are trained", "credit/later.py", "[0.0] * len(row) if out else row for", "row for", LATER),
    # What a policy sees
    Mutant("seen: a gap costs nothing", "rollout/observation.py", "(budget + 1) // unit, -(-gap // unit))", "(budget + 1) // unit)", SEEN),
    Mutant("seen: an error's lines are folded again", "rollout/observation.py", 'text.split("\\n"), 0) if folded else', 'text.split("\\n"), 0) if False else', SEEN),
    Mutant("seen: numbers begin anew", "rollout/observation.py", "session.kept_lines += len(lines)", "pass", SEEN),
    Mutant("seen: lines without those above", "rollout/observation.py", "    end = _ends(parents)\n    # best", "    end = list(range(1, count + 1))\n    # best", SEEN),
    Mutant("seen: the rest is lost", "rollout/observation.py", "session.prepare(_KEEP.format(lines=kept))", 'session.prepare("")', SEEN),
    Mutant("seen: the turn asks no louder", "rollout/observation.py", "(3 if word in now else 1)", "1", SEEN),
    Mutant("seen: traces show all", "train/imitation.py", "builder.push_result(chat.encode_result(told))", "builder.push_result(chat.encode_result(result))", SEEN),
    Mutant("an echo is a source", "credit/provenance.py", "numbers |= {value for", "{value for", "tests/test_provenance.py"),
    Mutant("a gap's numbers are an output's", "credit/provenance.py", "for piece in pieces if piece in whole]", "for piece in pieces]", "tests/test_provenance.py"),
    Mutant("half a number is a number", "credit/provenance.py", "if word in words] for piece", "] for piece", "tests/test_provenance.py"),
    Mutant("what computes nothing is a source", "credit/provenance.py", "if not _computes(code):", "if False:", "tests/test_provenance.py"),
    Mutant("a part of a word is the word", "credit/provenance.py", 'rf"(?<!\\w){re.escape(words)}(?!\\w)"', "re.escape(words)", "tests/test_provenance.py"),
    Mutant("verified without a run", "credit/provenance.py", 'run(turn.code or "").stdout if run else turn.result.stdout', "turn.result.stdout", "tests/test_provenance.py"),
    Mutant("the first source is named", "credit/provenance.py", "in reversed(self.texts):", "in self.texts:", "tests/test_provenance.py"),
]
# fmt: on


def copy_tree(folder: Path) -> None:
    """The tracked files of the working tree, as they are."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)


def caught(mutant: Mutant, folder: Path) -> bool:
    """Whether a test fails with the slip planted in the copy; the copy is as before afterwards."""
    path = folder / "gtpo_mini" / mutant.file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.tests.split()]
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
        if done.returncode not in (0, 1):  # 1: tests failed; others: no test was run
            raise RuntimeError(
                f"{mutant.name}: pytest ended with {done.returncode}\n{done.stdout[-2000:]}{done.stderr}"
            )
        return done.returncode == 1
    except subprocess.TimeoutExpired:
        return True  # a hang is seen
    finally:
        path.write_text(text, encoding="utf-8")


def main(names: list[str]) -> int:
    """Run all mutants, or those whose names hold one of ``names``; returns how many were missed."""
    chosen = [m for m in MUTANTS if not names or any(name in m.name for name in names)]
    missed = []
    with tempfile.TemporaryDirectory() as scratch:
        copy_tree(Path(scratch))
        for number, mutant in enumerate(chosen, 1):
            begin = time.monotonic()
            seen = caught(mutant, Path(scratch))
            missed += [] if seen else [mutant.name]
            word = "caught" if seen else "MISSED"
            print(f"{number:3d}/{len(chosen)} {word} {mutant.name} ({time.monotonic() - begin:.0f} s)", flush=True)
    share = 1 - len(missed) / max(1, len(chosen))
    print(f"caught {len(chosen) - len(missed)} of {len(chosen)} ({share:.0%}); missed: {', '.join(missed) or 'none'}")
    return len(missed)


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
