"""Who this device is: its keys, its certificate, how it came by it, and the next one."""

from agent.identity.certificate import DeviceCertificate
from agent.identity.errors import EnrolmentRefusedError, IdentityDamagedError, NotEnrolledError
from agent.identity.keeper import IdentityKeeper, KeeperLimits
from agent.identity.store import IdentityInUse, IdentityStore

__all__ = [
    "DeviceCertificate",
    "EnrolmentRefusedError",
    "IdentityDamagedError",
    "IdentityInUse",
    "IdentityKeeper",
    "IdentityStore",
    "KeeperLimits",
    "NotEnrolledError",
]
