"""What can be wrong with a device's identity."""

from agent.errors import ConfigError, DeviceError, TrustError

__all__ = ["EnrolmentRefusedError", "IdentityDamagedError", "NotEnrolledError"]


class NotEnrolledError(ConfigError):
    """The device has no certificate, and the configuration says that it shows one."""

    def __init__(self, folder: str) -> None:
        super().__init__(
            f"[fleet] tls = true, and there is no certificate in {folder}: run `fleet-agent enroll` with a token "
            f"from `fleet device token create`"
        )


class IdentityDamagedError(DeviceError):
    """A key or certificate on this device cannot be used."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(
            f"{path} {what}; remove {path} and run `fleet-agent enroll` again, after `fleet device revoke` and a new "
            f"token where the fleet manager knows this device already"
        )


class EnrolmentRefusedError(TrustError):
    """The fleet manager said no, or is not the one that the token names. Asking again changes nothing."""
