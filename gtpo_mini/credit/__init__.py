"""The paper: graded trajectories in, rewards and advantages out. Plain Python, no torch."""
