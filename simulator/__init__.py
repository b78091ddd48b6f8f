"""Devices that do not exist, on the real wire: the second implementation of the agent's ports."""
