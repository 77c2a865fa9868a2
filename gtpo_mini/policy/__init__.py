"""A transformers causal language model: loaded, adapted, merged, with the attention that rollouts need."""

import logging

# On a CPU with AVX512-BF16 bitsandbytes says at import that it lacks a kernel, which `Policy` would not use anyway.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(lambda line: "kernels-community" not in str(line.msg))
