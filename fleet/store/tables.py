"""Every table of the fleet manager, as SQLAlchemy Core; ``fleet/store/migrations`` makes them.

Times end in ``_s`` (seconds since the epoch, float) or ``_ms`` (milliseconds, int). Digests are
lower-case hex.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)

metadata = MetaData()

devices = Table(
    "devices",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("device_class", String(64), nullable=False, default=""),
    Column("hardware", String(64), nullable=False, default=""),
    Column("labels", JSON, nullable=False, default=dict),
    Column("agent_version", String(64), nullable=False, default=""),
    Column("onnxruntime_version", String(64), nullable=False, default=""),
    Column("memory_bytes", BigInteger, nullable=False, default=0),
    Column("disk_free_bytes", BigInteger, nullable=False, default=0),
    Column("cpu_count", Integer, nullable=False, default=0),
    Column("operating_system", String(128), nullable=False, default=""),
    Column("execution_provider", String(40), nullable=False, default="", server_default=""),
    Column("utc_offset_minutes", Integer, nullable=True),  # of the device's local time
    Column("battery_percent", Float, nullable=True),
    Column("on_battery", Boolean, nullable=False, default=False, server_default="0"),
    Column("trust", JSON, nullable=False, default=dict, server_default="{}"),  # what it refused
    Column("boot_id", String(64), nullable=False, default=""),
    Column("online", Boolean, nullable=False, default=False),
    Column("standing", String(16), nullable=False, default="open", server_default="open"),
    Column("first_seen_s", Float, nullable=False),
    Column("last_seen_s", Float, nullable=False),
    Column(
        "inventory_ms", BigInteger, nullable=False, default=0
    ),  # created_unix_ms of the newest inventory taken
)

device_models = Table(  # what a device says it serves
    "device_models",
    metadata,
    Column("device_id", String(40), primary_key=True),
    Column("model", String(64), primary_key=True),
    Column("version", String(64), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("rollout_id", String(64), nullable=False, default=""),
    Column("updated_s", Float, nullable=False),
)

windows = Table(  # telemetry; (device, boot, seq) makes it idempotent
    "windows",
    metadata,
    Column("device_id", String(40), primary_key=True),
    Column("boot_id", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("model", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("rollout_id", String(64), nullable=False),
    Column("start_ms", BigInteger, nullable=False),
    Column("end_ms", BigInteger, nullable=False),
    Column("requests", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
    Column("over_objective", BigInteger, nullable=False),
    Column("input_violations", BigInteger, nullable=False),
    Column("output_violations", BigInteger, nullable=False),
    Column("non_finite", BigInteger, nullable=False),
    Column("error_kinds", JSON, nullable=False, default=dict),
    Column("latency", LargeBinary, nullable=False, default=b""),  # serialised report_pb2.Histogram
    Column("rss_bytes", BigInteger, nullable=False, default=0),
    Column("cpu_percent", Float, nullable=False, default=0.0),
    Column("disk_free_bytes", BigInteger, nullable=False, default=0),
    Column("temperature_c", Float, nullable=True),
    Column("merged", Integer, nullable=False, default=1),
    Column("feedback_count", BigInteger, nullable=False, default=0, server_default="0"),
    Column("feedback_correct", BigInteger, nullable=False, default=0, server_default="0"),
    Column("feedback_abs_error_sum", Float, nullable=False, default=0.0, server_default="0"),
    Column("feedback_unknown", BigInteger, nullable=False, default=0, server_default="0"),
    Column("notices", JSON, nullable=False, default=list, server_default="[]"),
    Column("role", String(16), nullable=False, default="", server_default=""),
    Column("shadow_compared", BigInteger, nullable=False, default=0, server_default="0"),
    Column("shadow_disagreed", BigInteger, nullable=False, default=0, server_default="0"),
    Column("shadow_dropped", BigInteger, nullable=False, default=0, server_default="0"),
    Column("confidence_count", BigInteger, nullable=False, default=0, server_default="0"),
    Column("low_confidence", BigInteger, nullable=False, default=0, server_default="0"),
    Column("output_counts", JSON, nullable=False, default=dict, server_default="{}"),
    Column("counters", JSON, nullable=False, default=dict, server_default="{}"),
    Column("received_s", Float, nullable=False),
    Index("windows_by_bundle", "manifest_sha256", "end_ms"),
    Index("windows_by_device", "device_id", "end_ms"),
    Index("windows_by_arrival", "received_s"),
)

deployment_events = Table(  # every step every device reported
    "deployment_events",
    metadata,
    Column("device_id", String(40), primary_key=True),
    Column("boot_id", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("deployment_id", String(64), nullable=False),
    Column("rollout_id", String(64), nullable=False),
    Column("model", String(64), nullable=False),
    Column("bundle", String(256), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("phase", String(16), nullable=False),  # lower-case Phase without prefix: "fetch"
    Column(
        "outcome", String(16), nullable=False
    ),  # "", "committed", "refused", "reverted", "cancelled"
    Column("reason_code", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("attempt", Integer, nullable=False, default=0),
    Column("bytes_fetched", BigInteger, nullable=False, default=0),
    Column("measures", JSON, nullable=False, default=dict),
    Column("at_ms", BigInteger, nullable=False),
    Column("received_s", Float, nullable=False),
    Index("deployment_events_by_rollout", "rollout_id", "device_id"),
    Index("deployment_events_by_arrival", "received_s"),
)

deployments = Table(  # the newest known step of each device in each rollout
    "deployments",
    metadata,
    Column("device_id", String(40), primary_key=True),
    Column("rollout_id", String(64), primary_key=True),
    Column("deployment_id", String(64), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("phase", String(16), nullable=False),
    Column("outcome", String(16), nullable=False),
    Column("reason_code", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("boot_id", String(64), nullable=False, default=""),  # with seq: the report it came from
    Column("seq", BigInteger, nullable=False, default=0),
    Column("updated_s", Float, nullable=False),
    Column(
        "committed_s", Float, nullable=True
    ),  # when this device first reported a commit of this rollout's bundle
    Index("deployments_by_rollout", "rollout_id"),
)

bundles = Table(  # what the release role has signed
    "bundles",
    metadata,
    Column("path", String(256), primary_key=True),  # "bundles/CLASS/MODEL-VERSION"
    Column("model", String(64), nullable=False),
    Column("version", String(64), nullable=False),
    Column("device_class", String(64), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("manifest_bytes", Integer, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("release", Integer, nullable=False),
    Column("published_s", Float, nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("number", Integer, nullable=False, unique=True),  # counts up over the fleet; newer wins
    Column("model", String(64), nullable=False),
    Column("bundle", String(256), nullable=False),
    Column("manifest_sha256", String(64), nullable=False),
    Column("previous_bundle", String(256), nullable=False, default=""),
    Column("spec", JSON, nullable=False),
    Column("state", String(32), nullable=False),  # see fleet/rollout/states.py
    Column("stage", Integer, nullable=False),  # index into spec.stages
    Column("stage_started_s", Float, nullable=False),
    Column("reason", Text, nullable=False, default=""),
    Column("created_s", Float, nullable=False),
    Column("updated_s", Float, nullable=False),
    Column("details", JSON, nullable=False, default=dict, server_default="{}"),  # of the strategy
    Index("rollouts_by_state", "state"),
)

decisions = Table(  # append-only audit trail
    "decisions",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("rollout_id", String(64), nullable=False),
    Column("at_s", Float, nullable=False),
    Column("actor", String(64), nullable=False),  # "controller" or "operator"
    Column("action", String(32), nullable=False),
    Column("from_state", String(32), nullable=False),
    Column("to_state", String(32), nullable=False),
    Column("stage", Integer, nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("evidence", JSON, nullable=False, default=dict),
    Index("decisions_by_rollout", "rollout_id"),
)

directives = Table(  # what the rollout role is to say; signed anew whenever it changes
    "directives",
    metadata,
    Column("rollout_id", String(64), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("body", JSON, nullable=False),  # agent.trust.Directive.to_json()
    Column("updated_s", Float, nullable=False),
)

rings = Table(  # a run of a stage, frozen when it begins; a stage that is resumed gets another one
    "rings",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("rollout_id", String(64), nullable=False),
    Column("stage", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),  # from 0
    Column("started_s", Float, nullable=False),  # the rollout's stage_started_s
    Column("body", LargeBinary, nullable=False),  # see fleet/rollout/frozen.py
    Column("hashes", JSON, nullable=False, default=dict),  # pool, cohort, baselines
    Index("rings_by_rollout", "rollout_id", "stage", "attempt", unique=True),
)

histories = Table(  # what each device was like before a rollout, frozen when its first ring begins
    "histories",
    metadata,
    Column("rollout_id", String(64), primary_key=True),
    Column("taken_s", Float, nullable=False),
    Column("body", LargeBinary, nullable=False),
)

ring_counts = Table(  # what each device of a ring has reported, at equal exposure
    "ring_counts",
    metadata,
    Column("ring_id", Integer, primary_key=True, autoincrement=False),
    Column("role", String(16), primary_key=True),  # of the windows: "", "arm" or "shadow"
    Column("device", Integer, primary_key=True, autoincrement=False),  # index in the ring's pool
    Column("body", LargeBinary, nullable=False),  # float64: see fleet/rollout/counting.py
)

served = Table(  # plain counts since a stage began, of any device, for absolute limits
    "served",
    metadata,
    Column("ring_id", Integer, primary_key=True, autoincrement=False),
    Column("ours", Boolean, primary_key=True),  # with the rollout's bundle, or with another
    Column("device_id", String(40), primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("failures", BigInteger, nullable=False),
    Column("over_objective", BigInteger, nullable=False),
    Column("output_violations", BigInteger, nullable=False),
    Column("last_window_s", Float, nullable=False),  # when the newest one came in
)

looks = Table(  # append-only; written with the decision that followed
    "looks",
    metadata,
    Column("ring_id", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),  # from 1
    Column("rollout_id", String(64), nullable=False),
    Column("stage", Integer, nullable=False),
    Column("k", Integer, nullable=False),  # of the ring's schedule
    Column("at_s", Float, nullable=False),
    Column("state", LargeBinary, nullable=False),  # after it: fleet.rollout.gate.State
    Column("result", JSON, nullable=False),
    Column("evidence", JSON, nullable=False),
    Column("counts", LargeBinary, nullable=False),  # what it looked at
    Index("looks_by_rollout", "rollout_id", "at_s"),
)

decision_snapshots = Table(  # what a decision that changed a rollout was made from
    "decision_snapshots",
    metadata,
    Column("decision_id", Integer, primary_key=True, autoincrement=False),
    Column("rollout_id", String(64), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Index("decision_snapshots_by_rollout", "rollout_id"),
)

baseline_hours = Table(  # windows that arrived in one hour, added up
    "baseline_hours",
    metadata,
    Column("hour", Integer, primary_key=True, autoincrement=False),  # since the epoch
    Column("model", String(64), primary_key=True),
    Column("device_id", String(40), primary_key=True),
    Column("sums", LargeBinary, nullable=False),  # float64: see fleet/monitor/baselines.py
    Column("outputs", JSON, nullable=False, default=dict),
    Column("counters", JSON, nullable=False, default=dict),
)

outbox = Table(  # events in order, written with the decisions they tell of
    "outbox",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("message_id", String(64), nullable=False),  # the same however often it is sent
    Column("type", String(64), nullable=False),
    Column("at_s", Float, nullable=False),
    Column("rollout_id", String(64), nullable=False),
    Column("path", String(256), nullable=False),
    Column("data", JSON, nullable=False),
    Index("outbox_by_rollout", "rollout_id", "type", "id"),
    sqlite_autoincrement=True,  # a number is never used twice, though rows are deleted
)

webhooks = Table(  # how far each has got; everything in the outbox behind it waits
    "webhooks",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("events", JSON, nullable=False),  # the types it is told
    Column("delivered_id", Integer, nullable=False),  # of the outbox: delivered or given up
    Column("delivered", Integer, nullable=False),  # events, since it was added
    Column("delivered_s", Float, nullable=True),
    Column("failures", Integer, nullable=False),  # in a row
    Column("next_try_s", Float, nullable=False),
    Column("last_error", Text, nullable=False),
    Column("given_up", Integer, nullable=False),
    Column("given_up_s", Float, nullable=True),
)

check_results = Table(  # the newest answer of each external check
    "check_results",
    metadata,
    Column("rollout_id", String(64), primary_key=True),
    Column("url", Text, primary_key=True),
    Column("stage", Integer, nullable=False),
    Column("stage_started_s", Float, nullable=False),  # it counts for this run of the stage alone
    Column("asked_s", Float, nullable=False),
    Column("answered_s", Float, nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("reason", Text, nullable=False),
)

operator_tokens = Table(  # who may ask for what over HTTP; the token itself is nowhere
    "operator_tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("scope", JSON, nullable=False, default=dict),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("created_s", Float, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("expires_s", Float, nullable=False),
    Column("last_used_s", Float, nullable=True),
    Column("revoked_s", Float, nullable=True),
    Column("revoked_by", String(64), nullable=False, default="", server_default=""),
    Index("operator_tokens_by_name", "name"),
)

audit_log = (
    Table(  # append-only, and the database refuses anything else; see fleet/operators/chain.py
        "audit_log",
        metadata,
        Column("number", Integer, primary_key=True, autoincrement=False),
        Column("at_ms", BigInteger, nullable=False),
        Column("token_id", String(16), nullable=False),
        Column("name", String(64), nullable=False),
        Column("role", String(16), nullable=False),
        Column("operation", String(64), nullable=False),
        Column("object", String(256), nullable=False),
        Column("outcome", String(16), nullable=False),
        Column("reason", Text, nullable=False),
        Column("previous", String(64), nullable=False),
        Column("sha256", String(64), nullable=False),
    )
)

enrolment_tokens = Table(  # one-time; the secret itself is nowhere
    "enrolment_tokens",
    metadata,
    Column("sha256", String(64), primary_key=True),  # of the secret
    Column("device_id", String(40), nullable=False),
    Column("device_class", String(40), nullable=False),
    Column("labels", JSON, nullable=False, default=dict),
    Column("created_s", Float, nullable=False),
    Column("expires_s", Float, nullable=False),
    Column("used_by", String(64), nullable=False, default=""),  # sha256 of the identity key
    Index("enrolment_tokens_by_device", "device_id"),
)

device_identities = Table(  # who a device is by enrolment; see fleet/registry/enrolment.py
    "device_identities",
    metadata,
    Column("device_id", String(40), primary_key=True),
    Column("device_class", String(40), nullable=False),
    Column("labels", JSON, nullable=False, default=dict),
    Column("identity_key", LargeBinary, nullable=False),  # SubjectPublicKeyInfo, DER
    Column("identity_sha256", String(64), nullable=False),
    Column("reason", Text, nullable=False, default=""),  # of its standing
    Column("changed_s", Float, nullable=False),  # its standing
)

device_certificates = Table(
    "device_certificates",
    metadata,
    Column("serial", String(40), primary_key=True),  # hex
    Column("device_id", String(40), nullable=False),
    Column("device_class", String(40), nullable=False),
    Column("fingerprint", String(64), nullable=False, unique=True),  # sha256 of the DER
    Column("key_sha256", String(64), nullable=False),  # of the SubjectPublicKeyInfo
    Column("pem", Text, nullable=False),
    Column("not_before_s", Float, nullable=False),
    Column("not_after_s", Float, nullable=False),
    Column("state", String(16), nullable=False),  # issued, current, superseded, revoked
    Column("changed_s", Float, nullable=False),  # the state
    Index("device_certificates_by_device", "device_id", "state"),
)

identity_events = Table(  # append-only: what became of a device's identity
    "identity_events",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("device_id", String(40), nullable=False),
    Column("at_s", Float, nullable=False),
    Column("event", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Index("identity_events_by_device", "device_id", "id"),
)
