"""GTPO in TRL's `GRPOTrainer`, for what accelerate and DeepSpeed can run.

TRL keeps the model, the optimiser, the processes and the loss. From us come, in place of one advantage a rollout, one a
turn; and for a task of ours also the rollouts, in our sandbox.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset

from ..credit.arms import ARMS, assign_credit
from ..credit.credit import CreditAssignment
from ..policy.model import Policy
from ..rollout.chat import read_rollouts
from ..rollout.engine import RolloutEngine
from ..rollout.protocol import ToolProtocol, load_protocol
from ..rollout.settings import SamplingSettings
from ..sandbox import Sandbox
from ..tasks.task import Task
from ..types import Trajectory
from .loss import per_token, prompt_of

TESTED = "1.16"  #: TRL's version whose inner methods are used here
if find_spec("trl") is None or not version("trl").startswith(f"{TESTED}."):
    found = version("trl") if find_spec("trl") else "is not installed"
    raise ImportError(f"trl {found}: GTPOTrainer needs TRL {TESTED}; pip install 'trl=={TESTED}.*'")

from trl import GRPOConfig, GRPOTrainer  # noqa: E402  (the check of its version comes first)
from trl.models import unwrap_model_for_generation  # noqa: E402


class GTPOTrainer(GRPOTrainer):
    """TRL's trainer with the advantages of a `Credit`, one a turn: its own arguments, and ``credit``.

    The weighted sum of the reward functions is the rollout's outcome, and must lie in [0, 1]; where all of them gave
    None its advantage is 0. A turn is what the policy wrote between two tool results; its call is invalid where the
    tool raised. `for_task` takes our rollouts instead. The credit normalises, so that ``scale_rewards`` and
    ``multi_objective_aggregation`` change nothing. Rollouts of a group may lie in several processes: all are gathered,
    and scored in each. Raises ImportError for another TRL than was tested, ValueError for settings without meaning.
    """

    def __init__(self, *args: Any, credit: CreditAssignment = ARMS["gtpo"], **options: Any) -> None:
        if any(isinstance(one, GRPOConfig) and one.use_liger_kernel for one in (*args, *options.values())):
            raise ValueError("use_liger_kernel=True: its loss takes one advantage a rollout; set it to False")
        self.credit, self.rollouts, self._made = credit, list[Trajectory](), Counter[int]()  # of the last batch
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

        ``args``: ``num_generations`` is the group size, ``temperature`` that of sampling; lengths are in ``settings``.
        Rollout i of a generation draws from a random stream of its own, whichever process has it.
        """
        if args.use_vllm:
            raise ValueError("use_vllm=True: a task's rollouts are made by our own engine; set it to False")
        usual = {field.name: field.default for field in fields(GRPOConfig)}
        for name in ("top_k", "top_p", "min_p", "repetition_penalty", "max_completion_length"):
            if getattr(args, name) != usual[name]:
                raise ValueError(f"{name}: our engine goes by temperature and settings; leave it at {usual[name]}")
        settings = replace(settings or SamplingSettings(), temperature=args.temperature)
        engine = RolloutEngine(policy, protocol or load_protocol(), sandbox or Sandbox(), settings)
        problems = {problem.question: problem for problem in task.problems}

        def roll_out(prompts: Sequence[str], trainer: GTPOTrainer) -> dict[str, list]:
            asked, group = [problems[one] for one in prompts], trainer._group
            first = trainer.accelerator.process_index * len(asked)  # the number of this process's first rollout
            whole = len(asked) % group == first % group == 0  # then a shared prompt is computed once
            trainer._made[step := trainer.state.global_step] += 1
            how = {"seed": (args.seed * 10**6 + step) * 10**3 + trainer._made[step], "task": task, "first": first}
            model, gather = trainer.model_wrapped, {"gather_deepspeed3_params": args.ds3_gather_for_generation}
            unwrapped = unwrap_model_for_generation(model, trainer.accelerator, **gather)
            with unwrapped, trainer._dist.summon_full_params(model, recurse=False):
                trainer.rollouts = engine.generate(*((asked[::group], group) if whole else (asked, 1)), **how)
            columns = {"completion_ids": "token_ids", "logprobs": "logprobs", "env_mask": "loss_mask"}
            out: dict[str, list] = {key: [] for key in columns}
            for rollout, (key, own) in product(trainer.rollouts, columns.items()):
                out[key].append(list(getattr(rollout, own)[rollout.prompt_length :]))
            out["prompt_ids"] = [list(prompt_of(rollout)) for rollout in trainer.rollouts]
            return out | {"outcome": [float(task.grade(r.problem, r.answer)) for r in trainer.rollouts]}

        def accuracy(outcome: Sequence[float], **_: Any) -> list[float]:
            return list(outcome)

        own = {"processing_class": policy.tokenizer, "rollout_func": roll_out, "credit": credit}
        return cls(policy.model, accuracy, args, Dataset.from_dict({"prompt": list(problems)}), **own, **options)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, ids: Any) -> torch.Tensor:
        found = super()._calculate_rewards(inputs, prompts, completions, ids)  # (all rollouts, functions)
        total = (found * self.reward_weights.to(found.device)).nansum(1).masked_fill(found.isnan().all(1), torch.nan)
        self._said, self._graded = (prompts, completions, ids), [round(one, 6) for one in total.tolist()]
        if wrong := [one for one in self._graded if one < 0 or one > 1]:
            raise ValueError(f"reward_funcs: summed by reward_weights must lie in [0, 1], got {wrong[0]}; scale them")
        return found

    def _generate_and_score_completions(self, inputs: list[Mapping[str, Any]]) -> dict[str, Any]:
        self.rollouts, self._group = [], self.num_generations if self.model.training else self.num_generations_eval
        out = super()._generate_and_score_completions(inputs)
        mine = self.rollouts or read_rollouts(*self._said, out.get("tool_mask", out["completion_mask"]))
        found, first = gather_object(mine), self.accelerator.process_index * len(mine)
        for i, rollout in enumerate(found):  # a group is where it stands: its prompts may differ
            lead = found[i - i % self._group].problem
            found[i] = replace(rollout, problem=replace(lead, id=lead.id or str(i // self._group)))
        known = [i for i, grade in enumerate(self._graded) if grade >= 0]  # NaN: no function has scored it
        kept = [found[i] for i in known], [self._graded[i] for i in known]
        rewards, told = assign_credit(self.credit, *kept, self._group) if known else ([], [])
        credited = dict(zip(known, told, strict=True))
        advantages = [credited.get(i, [0.0] * len(rollout.turns)) for i, rollout in enumerate(found)]
        self.rollouts, own = (both[first : first + len(mine)] for both in (found, advantages))
        out["advantages"] = turn_advantages(self.rollouts, own, out["completion_ids"])
        logged, means = self._logs["advantages"], [sum(row) / len(row) for row in advantages]
        self._logs["advantages"] = type(logged)([*logged][: -len(means)] + means, logged.maxlen)  # in place of TRL's
        mean = sum(map(sum, rewards)) / max(1, len(rewards))
        self._metrics["train" if self.model.training else "eval"]["turn_reward"].append(mean)
        return out


def turn_advantages(
    rollouts: Sequence[Trajectory], advantages: Sequence[Sequence[float]], completion_ids: torch.Tensor
) -> torch.Tensor:
    """Each token's advantage (B, T): its turn's, 0 for what the tool wrote and for padding.

    Args: B rollouts, one list of turn advantages each, and the padded ids (B, T) that TRL made of the completions.
    """
    found = torch.zeros(completion_ids.shape)
    for row, rollout, own in zip(found, rollouts, advantages, strict=True):
        mask = torch.tensor(rollout.loss_mask[rollout.prompt_length :], dtype=torch.bool)
        row[: len(mask)][mask] = per_token([rollout], [own], found.device)[1]
    return found.to(completion_ids.device)
