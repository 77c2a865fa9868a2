"""GTPO in TRL: our rollouts, sandbox and credit inside its `GRPOTrainer`, for what accelerate and DeepSpeed can run.

TRL keeps the model, the optimiser, the distribution over processes and the loss. From us come the completions
(TRL's ``rollout_func``) and, in place of one advantage a rollout, one a turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset

from ..credit.credit import ARMS, CreditAssignment, assign_credit
from ..policy.model import Policy
from ..rollout.engine import RolloutEngine
from ..rollout.protocol import ToolProtocol, load_protocol
from ..rollout.settings import SamplingSettings
from ..sandbox import Sandbox
from ..tasks.task import Task
from ..types import Trajectory

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
    """TRL's trainer, with the advantages of a `Credit`, one a turn.

    Args:
        policy, task: what learns, from what; the policy's model is trained in place.
        args: TRL's configuration. ``num_generations`` is the group size; ``temperature`` that of sampling.
        credit: an arm of `ARMS`, or any credit assignment.
        settings: the limits of a rollout; its temperature comes from ``args``.
        protocol, sandbox: as in `Trainer`.
        options: of `GRPOTrainer`: ``callbacks``, ``optimizers``, ``peft_config``.

    Every process rolls its own prompts out; rollouts of a group may lie in several, so all are gathered and scored in
    each. Rollout i of a step draws from a random stream of its own, (seed, i), whichever process has it.
    Raises ImportError for another version of TRL than was tested, ValueError for settings that have no meaning here.
    """

    def __init__(
        self,
        policy: Policy,
        task: Task,
        args: GRPOConfig,
        credit: CreditAssignment = ARMS["gtpo"],
        settings: SamplingSettings | None = None,
        protocol: ToolProtocol | None = None,
        sandbox: Sandbox | None = None,
        **options: Any,
    ) -> None:
        for name, why in (
            ("use_vllm", "rollouts are made by our own engine"),
            ("use_liger_kernel", "its loss takes one advantage a rollout"),
        ):
            if getattr(args, name):
                raise ValueError(f"{name}=True: {why}; set it to False")
        self.policy, self.task, self.credit = policy, task, credit
        settings = replace(settings or SamplingSettings(), temperature=args.temperature)
        self._own_sandbox = None if sandbox else Sandbox()
        self.engine = RolloutEngine(policy, protocol or load_protocol(), sandbox or self._own_sandbox, settings)
        self._problems = {problem.question: problem for problem in task.problems}
        self._made: tuple[list[Trajectory], list[float]] = ([], [])  # of this process, and their grades
        super().__init__(
            model=policy.model,
            reward_funcs=accuracy,
            args=args,
            train_dataset=Dataset.from_dict({"prompt": list(self._problems)}),
            processing_class=policy.tokenizer,
            rollout_func=self._roll_out,
            **options,
        )

    def train(self, *args: Any, **options: Any) -> Any:
        """As TRL's; a sandbox of the trainer's own is closed at the end."""
        try:
            return super().train(*args, **options)
        finally:
            if self._own_sandbox is not None:
                self._own_sandbox.close()

    def _roll_out(self, prompts: Sequence[str], _: GRPOTrainer) -> dict[str, list]:
        """TRL's ``rollout_func``: the ids as they were sampled, whose tokens they are, and the grades."""
        problems, group = [self._problems[prompt] for prompt in prompts], self.num_generations
        first, seed = self.accelerator.process_index * len(prompts), self.args.seed * 10**6 + self.state.global_step
        whole = len(prompts) % group == 0 and first % group == 0  # a prompt that is shared is computed once
        asked = (problems[::group], group) if whole else (problems, 1)
        gathered = unwrap_model_for_generation(
            self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
        )
        with gathered, self._dist.summon_full_params(self.model_wrapped, recurse=False):
            rollouts = self.engine.generate(*asked, seed, task=self.task, first=first)
        correct = [float(self.task.grade(rollout.problem, rollout.answer)) for rollout in rollouts]
        self._made = (rollouts, correct)
        return {
            "prompt_ids": [list(r.token_ids[: r.prompt_length]) for r in rollouts],
            "completion_ids": [list(r.token_ids[r.prompt_length :]) for r in rollouts],
            "logprobs": [list(r.logprobs[r.prompt_length :]) for r in rollouts],
            "env_mask": [list(r.loss_mask[r.prompt_length :]) for r in rollouts],
            "outcome": correct,
        }

    def _generate_and_score_completions(self, inputs: list[Mapping[str, Any]]) -> dict[str, Any]:
        out = super()._generate_and_score_completions(inputs)
        mine, correct = self._made
        rollouts, grades = (gather_object(each) for each in (mine, correct))
        rewards, advantages = assign_credit(self.credit, rollouts, grades, self.num_generations)
        first = self.accelerator.process_index * len(mine)
        out["advantages"] = turn_advantages(mine, advantages[first : first + len(mine)], out["completion_ids"])
        self._metrics["train"]["turn_reward"].append(sum(map(sum, rewards)) / len(rewards))
        return out


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
    """TRL's reward function: what the task's grader said; it is only logged."""
    return list(outcome)
