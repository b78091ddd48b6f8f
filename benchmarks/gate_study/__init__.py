"""The gate and five other rules on the same simulated rollouts: ``python -m benchmarks.gate_study``."""
