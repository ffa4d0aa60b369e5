"""Few bits: to the nearest, by GPTQ, zeros in patterns, and the plain baselines."""
