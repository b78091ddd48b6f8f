"""The configuration of a Mosquitto in which each device has its own topics and nothing else.

Rules kept here: pure text from values; each line that guards something says what it guards; a device is named by its
certificate alone (``%u``), never by what it says of itself.
"""

from dataclasses import dataclass
from pathlib import PurePath
from typing import Final

from fleet.errors import ConfigError
from protos import topics

__all__ = [
    "ACL_FILE",
    "CONFIG_FILE",
    "PID_FILE",
    "MosquittoSettings",
    "mosquitto_acl",
    "mosquitto_config",
]

CONFIG_FILE: Final = "mosquitto.conf"
ACL_FILE: Final = "mosquitto.acl"
PID_FILE: Final = "mosquitto.pid"
_BY_CERTIFICATE: Final = "%u"

_CONFIG: Final = """\
# Mosquitto 2 for fleet {fleet}, written by `fleet broker config`: run that again instead of editing this.
# Start it:   mosquitto -c {folder}/{config_file}
# Reload it (SIGHUP) after a certificate was renewed or a device was revoked: certificates, revocations and
# the topic rules are read anew, and connections stay.

# The account it runs as when root starts it; it must be able to read the key below.
user {user}
pid_file {folder}/{pid_file}

# Who may read and write what; whoever shows no certificate is nobody.
per_listener_settings false
acl_file {folder}/{acl_file}
allow_anonymous false

# Nothing of ours is larger; whoever sends more is disconnected.
max_packet_size {packet_bytes}
# A slow reader may keep so much waiting, and then loses the rest: devices repeat what nobody acknowledged.
max_queued_messages 10000
max_queued_bytes 67108864
max_inflight_messages 100
# A device that went away without a word is noticed within one and a half times this, in seconds.
max_keepalive 300
# Sessions of clients that do not come back are forgotten. Ours ask for none to be kept.
persistent_client_expiration 1d

# The newest pack is retained; it survives a restart of the broker. Seconds between two writes.
persistence true
persistence_location {folder}/data
autosave_interval 60

log_dest stderr
log_type error
log_type warning
log_type notice
log_type information
# Counters of the broker itself, in seconds; only the fleet manager may read them.
sys_interval 10

# The one listener there is: TLS 1.3, and nobody without a certificate of this fleet's device CA.
listener {port} {host}
protocol mqtt
tls_version tlsv1.3
certfile {pki}/broker.pem
keyfile {pki}/broker.key.pem
cafile {pki}/device-ca.pem
require_certificate true
{revocations}
# A client is who its certificate says ...
use_identity_as_username true
# ... also by its client id: otherwise one device could take another's place and throw it off.
use_username_as_clientid true
"""

_WITH_CRL: Final = """\
# Certificates that are no longer accepted. Read at the start and at SIGHUP; when it has lapsed, nobody gets in.
crlfile {pki}/devices.crl.pem"""
_WITHOUT_CRL: Final = "# No list of revoked certificates (--no-crl): a revoked device stays until its certificate ends."

_ACL: Final = """\
# Topics of fleet {fleet}, written by `fleet broker config`. What is not allowed here is not delivered: a
# subscription to anything else is granted and stays silent.

# The fleet manager hears every device, answers each, and publishes the pack.
user {manager}
topic read {reports}
topic read {statuses}
topic read {responses}
topic write {requests}
topic write {pack}
topic read $SYS/#

# A device, which its certificate names: what is for all, what is for it, and what it says of itself.
# (Mosquitto warns that the first line names nobody: it is meant for every device.)
pattern read {pack}
pattern read {request}
pattern write {report}
pattern write {status}
pattern write {response}
"""


@dataclass(frozen=True, slots=True)
class MosquittoSettings:
    """``folder``: where the files lie on the broker's host; ``pki``: where the certificates do."""

    fleet: str
    host: str
    port: int
    folder: PurePath
    pki: PurePath
    user: str
    crl: bool = True


def mosquitto_config(settings: MosquittoSettings) -> str:
    """The text of ``mosquitto.conf``.

    Raises:
        ConfigError: a path or the account cannot be written into it.
    """
    for what in (str(settings.folder), str(settings.pki), settings.user, settings.host):
        if not what or not what.isprintable() or what != what.strip():
            raise ConfigError(
                f"{what!r} cannot be written into Mosquitto's configuration: choose another"
            )
    revocations = _WITH_CRL.format(pki=settings.pki) if settings.crl else _WITHOUT_CRL
    return _CONFIG.format(
        fleet=settings.fleet,
        folder=settings.folder,
        pki=settings.pki,
        user=settings.user,
        host=settings.host,
        port=settings.port,
        packet_bytes=topics.MAX_PAYLOAD_BYTES,
        revocations=revocations,
        config_file=CONFIG_FILE,
        acl_file=ACL_FILE,
        pid_file=PID_FILE,
    )


def mosquitto_acl(fleet: str) -> str:
    """The text of the topic rules."""
    anyone = "+"
    return _ACL.format(
        fleet=fleet,
        manager=topics.MANAGER,
        pack=topics.pack(fleet),
        reports=topics.all_reports(fleet),
        statuses=topics.all_statuses(fleet),
        responses=topics.response(fleet, anyone),
        requests=topics.request(fleet, anyone),
        request=topics.request(fleet, _BY_CERTIFICATE),
        report=topics.report(fleet, _BY_CERTIFICATE),
        status=topics.status(fleet, _BY_CERTIFICATE),
        response=topics.response(fleet, _BY_CERTIFICATE),
    )
