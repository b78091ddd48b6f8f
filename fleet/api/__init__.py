"""The fleet manager's two faces: HTTP for people (``fleet.api.http``), gRPC for devices
(``fleet.api.device_service``)."""
