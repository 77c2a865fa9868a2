"""Some steps of `Trainer` on the tiny policy, in one process or several: python ddp_steps.py OUTPUT STEPS MINIBATCHES.

Started by tests/test_processes.py, alone and by ``accelerate launch``; goes on with what is in OUTPUT.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from gtpo_mini import Trainer, load_policy, load_profile, load_task
from gtpo_mini.train.update import processes

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, steps, minibatches = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    small = {"steps": steps, "problems_per_step": 4, "group_size": 4, "minibatches": minibatches, "learning_rate": 3e-4}
    config = replace(load_profile("cpu").train, **small)
    policy, task = load_policy("tiny", device="cpu"), load_task("branching", size=64)
    trainer = Trainer(policy, task, config, folder / "run", checkpoint_every=2, resume=True, record_rollouts=True)
    history = trainer.train()
    rollouts, _, advantages = trainer.last
    told = {"history": history, "ids": [r.token_ids for r in rollouts], "advantages": advantages}
    torch.save({**told, "weights": policy.model.state_dict()}, folder / f"rank{processes()[0]}.pt")
