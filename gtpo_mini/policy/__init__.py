"""A transformers causal language model: loaded, adapted, merged, with the attention that rollouts need."""
