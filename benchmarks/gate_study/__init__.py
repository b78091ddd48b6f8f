"""The gate and other rules on the same simulated rollouts: ``python -m benchmarks.gate_study``."""
