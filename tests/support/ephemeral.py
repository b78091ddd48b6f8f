"""A fleet manager's configuration with every port chosen by the system, and no broker."""

from fleet.config import BrokerConfig, FleetConfig, GrpcConfig, NameConfig
from fleet.operators.settings import HttpConfig

CONFIG = FleetConfig(
    fleet=NameConfig("lab"),
    http=HttpConfig("127.0.0.1:0"),
    grpc=GrpcConfig("127.0.0.1:0"),
    broker=BrokerConfig("none"),
)
