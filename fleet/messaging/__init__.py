"""Brokers and the fleet manager's MQTT 5 client.

Faces: ``fleet.messaging.client`` (the client), ``fleet.messaging.broker`` (running one),
``fleet.messaging.bridge`` (what the fleet manager does with it).
"""

from fleet.messaging.client import ClientLimits, Message, MqttClient, Will
from fleet.messaging.errors import BrokerError

__all__ = ["BrokerError", "ClientLimits", "Message", "MqttClient", "Will"]
