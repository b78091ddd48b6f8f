"""Fixtures that every test may ask for."""

from tests.support.mosquitto_session import mosquitto, own_mosquitto

__all__ = ["mosquitto", "own_mosquitto"]
