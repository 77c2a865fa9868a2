"""GTPO in TRL's `GRPOTrainer`, for what accelerate and DeepSpeed can run.

TRL keeps the model, the optimiser, the processes and the loss. From us come, in place of one advantage a rollout, one a
turn; and for a task of ours also the rollouts, in our sandbox.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate, pairwise
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset

from ..credit.arms import ARMS, assign_credit
from ..credit.credit import CreditAssignment
from ..policy.model import Policy
from ..rollout.engine import RolloutEngine
from ..rollout.protocol import ToolProtocol, load_protocol
from ..rollout.settings import SamplingSettings
from ..sandbox import Sandbox
from ..tasks.task import Task
from ..types import ExecutionResult, Problem, StopReason, Trajectory, Turn

TESTED = "1.16"  #: TRL's version whose inner methods are used here
try:
    _FOUND = version("trl")
except PackageNotFoundError as error:
    raise ImportError(f"GTPOTrainer needs TRL: pip install 'trl=={TESTED}.*'") from error
if not _FOUND.startswith(f"{TESTED}."):
    text = f"trl {_FOUND}: GTPOTrainer builds on inner methods of TRL {TESTED}, and was tested with no other"
    raise ImportError(f"{text}; pip install 'trl=={TESTED}.*'")

from trl import GRPOConfig, GRPOTrainer  # noqa: E402  (the check of its version comes first)
from trl.models import unwrap_model_for_generation  # noqa: E402


class GTPOTrainer(GRPOTrainer):
    """TRL's trainer with the advantages of a `Credit`, one a turn: its own arguments, and ``credit``.

    The weighted sum of the reward functions is the rollout's outcome, and must lie in [0, 1]. A turn is what the policy
    wrote between two tool results; its call is invalid where the tool raised. `for_task` takes our rollouts instead.
    Rollouts of a group may lie in several processes: all are gathered, and scored in each. Raises ImportError for
    another version of TRL than was tested, ValueError for settings that have no meaning here.
    """

    def __init__(self, *args: Any, credit: CreditAssignment = ARMS["gtpo"], **options: Any) -> None:
        if any(isinstance(one, GRPOConfig) and one.use_liger_kernel for one in (*args, *options.values())):
            raise ValueError("use_liger_kernel=True: its loss takes one advantage a rollout; set it to False")
        self.credit, self.rollouts = credit, list[Trajectory]()  # of this process, in the last batch
        super().__init__(*args, **options)

    @classmethod
    def for_task(
        cls,
        policy: Policy,
        task: Task,
        args: GRPOConfig,
        credit: CreditAssignment = ARMS["gtpo"],
        settings: SamplingSettings | None = None,
        protocol: ToolProtocol | None = None,
        sandbox: Sandbox | None = None,
        **options: Any,
    ) -> GTPOTrainer:
        """A trainer whose rollouts, in our sandbox, and grades are a task's; the policy's model is trained in place.

        ``args``: ``num_generations`` is the group size, ``temperature`` that of sampling. The rest is as in `Trainer`.
        Rollout i of a step draws from a random stream of its own, (seed, i), whichever process has it.
        """
        if args.use_vllm:
            raise ValueError("use_vllm=True: a task's rollouts are made by our own engine; set it to False")
        settings = replace(settings or SamplingSettings(), temperature=args.temperature)
        engine = RolloutEngine(policy, protocol or load_protocol(), sandbox or Sandbox(), settings)
        problems = {problem.question: problem for problem in task.problems}

        def roll_out(prompts: Sequence[str], trainer: GTPOTrainer) -> dict[str, list]:
            asked, group, first = [problems[one] for one in prompts], trainer.num_generations, trainer._first(prompts)
            whole = len(prompts) % group == 0 and first % group == 0  # then a shared prompt is computed once
            gathered = unwrap_model_for_generation(
                trainer.model_wrapped, trainer.accelerator, gather_deepspeed3_params=args.ds3_gather_for_generation
            )
            with gathered, trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False):
                how = {"seed": args.seed * 10**6 + trainer.state.global_step, "task": task, "first": first}
                rollouts = engine.generate(*((asked[::group], group) if whole else (asked, 1)), **how)
            trainer.rollouts = rollouts
            return {
                "prompt_ids": [list(r.token_ids[: r.prompt_length]) for r in rollouts],
                "completion_ids": [list(r.token_ids[r.prompt_length :]) for r in rollouts],
                "logprobs": [list(r.logprobs[r.prompt_length :]) for r in rollouts],
                "env_mask": [list(r.loss_mask[r.prompt_length :]) for r in rollouts],
                "outcome": [float(task.grade(r.problem, r.answer)) for r in rollouts],
            }

        rows = Dataset.from_dict({"prompt": list(problems)})
        own = {"train_dataset": rows, "processing_class": policy.tokenizer, "rollout_func": roll_out}
        return cls(policy.model, accuracy, args, credit=credit, **own, **options)

    def _first(self, prompts: Sequence[Any]) -> int:
        return self.accelerator.process_index * len(prompts)  # the number of this process's first rollout

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> torch.Tensor:
        found = super()._calculate_rewards(
            inputs, prompts, completions, completion_ids_list
        )  # (all rollouts, functions)
        self._said, self._graded = (prompts, completions), (found * self.reward_weights.to(found.device)).nansum(1)
        return found

    def _generate_and_score_completions(self, inputs: list[Mapping[str, Any]]) -> dict[str, Any]:
        self.rollouts = []
        out = super()._generate_and_score_completions(inputs)
        mine = self.rollouts = self.rollouts or read_rollouts(*self._said, out)
        rollouts, first = gather_object(mine), self._first(mine)
        rewards, advantages = assign_credit(self.credit, rollouts, self._graded.tolist(), self.num_generations)
        out["advantages"] = turn_advantages(mine, advantages[first : first + len(mine)], out["completion_ids"])
        self._metrics["train" if self.model.training else "eval"]["turn_reward"].append(
            sum(map(sum, rewards)) / len(rewards)
        )
        return out


def read_rollouts(prompts: Sequence[Any], completions: Sequence[Any], out: Mapping[str, Any]) -> list[Trajectory]:
    """Trajectories, from their first completion token on, of what TRL's own tool loop made: messages, ids and masks."""
    rollouts = []
    masks = (out["completion_ids"], out["completion_mask"], out.get("tool_mask", out["completion_mask"]))
    for prompt, messages, *row in zip(prompts, completions, *(mask.tolist() for mask in masks), strict=True):
        ids, mine = zip(*((token, said) for token, real, said in zip(*row, strict=True) if real), strict=True)
        index = [0, *accumulate(int(said and not before) for before, said in pairwise(mine))]
        turns = []
        for message in messages if isinstance(messages, list) else [{"role": "assistant", "content": messages}]:
            if message["role"] == "assistant":
                calls = [call["function"]["arguments"] for call in message.get("tool_calls") or ()]
                code = "\n".join(call.get("code") or json.dumps(call) for call in calls)
                turns.append(Turn(str(message.get("content") or ""), code=code or None))
            elif turns:
                told = str(message["content"])
                turns[-1] = replace(turns[-1], result=ExecutionResult(not told.startswith("{'error':"), told))
        turns += [Turn("")] * (index[-1] + 1 - len(turns))
        about = {"problem": Problem("", str(prompt), ""), "stop": StopReason.ANSWER, "prompt_length": 0}
        labels = {"token_ids": ids, "loss_mask": mine, "turn_index": tuple(index), "logprobs": (0.0,) * len(ids)}
        rollouts.append(Trajectory(turns=tuple(turns[: index[-1] + 1]), **labels, **about))
    return rollouts


def turn_advantages(
    rollouts: Sequence[Trajectory], advantages: Sequence[Sequence[float]], completion_ids: torch.Tensor
) -> torch.Tensor:
    """Each token's advantage (B, T): its turn's, 0 for what the tool wrote and for padding.

    Args: B rollouts, one list of turn advantages each, and the padded ids (B, T) that TRL made of the completions.
    """
    found = torch.zeros(completion_ids.shape)
    for row, (rollout, advantages_N) in enumerate(zip(rollouts, advantages, strict=True)):
        tokens = zip(rollout.turn_index, rollout.loss_mask, strict=True)
        values = [advantages_N[turn] if is_policy else 0.0 for turn, is_policy in tokens][rollout.prompt_length :]
        found[row, : len(values)] = torch.tensor(values)
    return found.to(completion_ids.device)


def accuracy(outcome: Sequence[float], **_: Any) -> list[float]:
    """TRL's reward function of a task: what its grader said."""
    return list(outcome)
