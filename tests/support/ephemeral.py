"""A fleet manager's configuration with every port chosen by the system, and no broker."""

from fleet.config import BrokerConfig, FleetConfig, GrpcConfig, ListenConfig, NameConfig

CONFIG = FleetConfig(
    fleet=NameConfig("lab"),
    http=ListenConfig("127.0.0.1:0"),
    grpc=GrpcConfig("127.0.0.1:0"),
    broker=BrokerConfig("none"),
)
