"""The demonstration: one machine, no hardware, real processes, a real model, two rollouts with opposite ends."""
