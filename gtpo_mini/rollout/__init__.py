"""From problems to trajectories: protocol, chat, engine, forward pass, transcript."""
