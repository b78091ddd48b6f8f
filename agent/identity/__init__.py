"""Enrolment, device keys and their renewal. Until they exist everything stays on loopback: see agent.trust.loopback."""
