"""How long to wait before trying again: exponential, capped, with full jitter on the upper half."""

__all__ = ["backoff_s"]

_MAX_DOUBLINGS = 32  # beyond it every cap is reached; keeps the power finite


def backoff_s(failures: int, base_s: float, max_s: float, jitter: float) -> float:
    """Seconds to wait after ``failures`` failures in a row (1 is the first).

    Between half of and all of ``min(max_s, base_s * 2**(failures - 1))``; ``jitter`` in 0..1 chooses.
    """
    doublings = min(max(failures, 1) - 1, _MAX_DOUBLINGS)
    ceiling = min(max_s, base_s * 2.0**doublings)
    return ceiling * (0.5 + 0.5 * min(max(jitter, 0.0), 1.0))
