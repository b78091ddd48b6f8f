"""Bundles with known faults rolled out over the wire, and what came of each."""
