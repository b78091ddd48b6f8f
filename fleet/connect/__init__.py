"""Telling others what becomes of rollouts: webhooks, signed, in order, at least once."""
