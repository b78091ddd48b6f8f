from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PHASE_UNSPECIFIED: _ClassVar[Phase]
    PHASE_IDLE: _ClassVar[Phase]
    PHASE_FETCH: _ClassVar[Phase]
    PHASE_VERIFY: _ClassVar[Phase]
    PHASE_TRY: _ClassVar[Phase]
    PHASE_SWAP: _ClassVar[Phase]
    PHASE_PROBATION: _ClassVar[Phase]
    PHASE_COMMIT: _ClassVar[Phase]
    PHASE_REVERT: _ClassVar[Phase]
    PHASE_BESIDE: _ClassVar[Phase]

class Outcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OUTCOME_UNSPECIFIED: _ClassVar[Outcome]
    OUTCOME_COMMITTED: _ClassVar[Outcome]
    OUTCOME_REFUSED: _ClassVar[Outcome]
    OUTCOME_REVERTED: _ClassVar[Outcome]
    OUTCOME_CANCELLED: _ClassVar[Outcome]
PHASE_UNSPECIFIED: Phase
PHASE_IDLE: Phase
PHASE_FETCH: Phase
PHASE_VERIFY: Phase
PHASE_TRY: Phase
PHASE_SWAP: Phase
PHASE_PROBATION: Phase
PHASE_COMMIT: Phase
PHASE_REVERT: Phase
PHASE_BESIDE: Phase
OUTCOME_UNSPECIFIED: Outcome
OUTCOME_COMMITTED: Outcome
OUTCOME_REFUSED: Outcome
OUTCOME_REVERTED: Outcome
OUTCOME_CANCELLED: Outcome

class ReportBatch(_message.Message):
    __slots__ = ("reports",)
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[Report]
    def __init__(self, reports: _Optional[_Iterable[_Union[Report, _Mapping]]] = ...) -> None: ...

class SignedReports(_message.Message):
    __slots__ = ("batch", "signature", "key_sha256")
    BATCH_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    KEY_SHA256_FIELD_NUMBER: _ClassVar[int]
    batch: bytes
    signature: bytes
    key_sha256: bytes
    def __init__(self, batch: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., key_sha256: _Optional[bytes] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("device_id", "boot_id", "seq", "created_unix_ms", "inventory", "window", "deployment")
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    CREATED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    INVENTORY_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    DEPLOYMENT_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    boot_id: str
    seq: int
    created_unix_ms: int
    inventory: Inventory
    window: Window
    deployment: DeploymentEvent
    def __init__(self, device_id: _Optional[str] = ..., boot_id: _Optional[str] = ..., seq: _Optional[int] = ..., created_unix_ms: _Optional[int] = ..., inventory: _Optional[_Union[Inventory, _Mapping]] = ..., window: _Optional[_Union[Window, _Mapping]] = ..., deployment: _Optional[_Union[DeploymentEvent, _Mapping]] = ...) -> None: ...

class ReportAck(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedCompositeFieldContainer[ReportId]
    def __init__(self, ids: _Optional[_Iterable[_Union[ReportId, _Mapping]]] = ...) -> None: ...

class SignedAck(_message.Message):
    __slots__ = ("ack", "signature", "certificate")
    ACK_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    ack: bytes
    signature: bytes
    certificate: bytes
    def __init__(self, ack: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., certificate: _Optional[bytes] = ...) -> None: ...

class ReportId(_message.Message):
    __slots__ = ("boot_id", "seq")
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    boot_id: str
    seq: int
    def __init__(self, boot_id: _Optional[str] = ..., seq: _Optional[int] = ...) -> None: ...

class Inventory(_message.Message):
    __slots__ = ("device_class", "hardware", "labels", "agent_version", "onnxruntime_version", "memory_bytes", "disk_free_bytes", "cpu_count", "operating_system", "active", "execution_provider", "utc_offset_minutes", "battery_percent", "on_battery", "trust")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    DEVICE_CLASS_FIELD_NUMBER: _ClassVar[int]
    HARDWARE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    AGENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    ONNXRUNTIME_VERSION_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_COUNT_FIELD_NUMBER: _ClassVar[int]
    OPERATING_SYSTEM_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    EXECUTION_PROVIDER_FIELD_NUMBER: _ClassVar[int]
    UTC_OFFSET_MINUTES_FIELD_NUMBER: _ClassVar[int]
    BATTERY_PERCENT_FIELD_NUMBER: _ClassVar[int]
    ON_BATTERY_FIELD_NUMBER: _ClassVar[int]
    TRUST_FIELD_NUMBER: _ClassVar[int]
    device_class: str
    hardware: str
    labels: _containers.ScalarMap[str, str]
    agent_version: str
    onnxruntime_version: str
    memory_bytes: int
    disk_free_bytes: int
    cpu_count: int
    operating_system: str
    active: _containers.RepeatedCompositeFieldContainer[ActiveModel]
    execution_provider: str
    utc_offset_minutes: int
    battery_percent: float
    on_battery: bool
    trust: TrustStatus
    def __init__(self, device_class: _Optional[str] = ..., hardware: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., agent_version: _Optional[str] = ..., onnxruntime_version: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., cpu_count: _Optional[int] = ..., operating_system: _Optional[str] = ..., active: _Optional[_Iterable[_Union[ActiveModel, _Mapping]]] = ..., execution_provider: _Optional[str] = ..., utc_offset_minutes: _Optional[int] = ..., battery_percent: _Optional[float] = ..., on_battery: _Optional[bool] = ..., trust: _Optional[_Union[TrustStatus, _Mapping]] = ...) -> None: ...

class TrustStatus(_message.Message):
    __slots__ = ("refusal_code", "refusal", "refused_unix_ms", "refused", "refusing", "notices")
    REFUSAL_CODE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    REFUSED_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    REFUSING_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    refusal_code: str
    refusal: str
    refused_unix_ms: int
    refused: int
    refusing: bool
    notices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, refusal_code: _Optional[str] = ..., refusal: _Optional[str] = ..., refused_unix_ms: _Optional[int] = ..., refused: _Optional[int] = ..., refusing: _Optional[bool] = ..., notices: _Optional[_Iterable[str]] = ...) -> None: ...

class ActiveModel(_message.Message):
    __slots__ = ("model", "version", "manifest_sha256", "rollout_id")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    manifest_sha256: str
    rollout_id: str
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., manifest_sha256: _Optional[str] = ..., rollout_id: _Optional[str] = ...) -> None: ...

class Window(_message.Message):
    __slots__ = ("model", "version", "manifest_sha256", "rollout_id", "start_unix_ms", "end_unix_ms", "requests", "failures", "over_objective", "input_violations", "output_violations", "non_finite", "error_kinds", "latency_s", "resources", "merged", "feedback_count", "feedback_correct", "feedback_abs_error_sum", "feedback_unknown", "notices", "role", "shadow_compared", "shadow_disagreed", "shadow_dropped", "confidence_count", "low_confidence", "output_counts", "counters")
    class ErrorKindsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class OutputCountsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class CountersEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    START_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    END_UNIX_MS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    OVER_OBJECTIVE_FIELD_NUMBER: _ClassVar[int]
    INPUT_VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    NON_FINITE_FIELD_NUMBER: _ClassVar[int]
    ERROR_KINDS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    RESOURCES_FIELD_NUMBER: _ClassVar[int]
    MERGED_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_COUNT_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_CORRECT_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_ABS_ERROR_SUM_FIELD_NUMBER: _ClassVar[int]
    FEEDBACK_UNKNOWN_FIELD_NUMBER: _ClassVar[int]
    NOTICES_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SHADOW_COMPARED_FIELD_NUMBER: _ClassVar[int]
    SHADOW_DISAGREED_FIELD_NUMBER: _ClassVar[int]
    SHADOW_DROPPED_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOW_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_COUNTS_FIELD_NUMBER: _ClassVar[int]
    COUNTERS_FIELD_NUMBER: _ClassVar[int]
    model: str
    version: str
    manifest_sha256: str
    rollout_id: str
    start_unix_ms: int
    end_unix_ms: int
    requests: int
    failures: int
    over_objective: int
    input_violations: int
    output_violations: int
    non_finite: int
    error_kinds: _containers.ScalarMap[str, int]
    latency_s: Histogram
    resources: Resources
    merged: int
    feedback_count: int
    feedback_correct: int
    feedback_abs_error_sum: float
    feedback_unknown: int
    notices: _containers.RepeatedScalarFieldContainer[str]
    role: str
    shadow_compared: int
    shadow_disagreed: int
    shadow_dropped: int
    confidence_count: int
    low_confidence: int
    output_counts: _containers.ScalarMap[str, int]
    counters: _containers.ScalarMap[str, int]
    def __init__(self, model: _Optional[str] = ..., version: _Optional[str] = ..., manifest_sha256: _Optional[str] = ..., rollout_id: _Optional[str] = ..., start_unix_ms: _Optional[int] = ..., end_unix_ms: _Optional[int] = ..., requests: _Optional[int] = ..., failures: _Optional[int] = ..., over_objective: _Optional[int] = ..., input_violations: _Optional[int] = ..., output_violations: _Optional[int] = ..., non_finite: _Optional[int] = ..., error_kinds: _Optional[_Mapping[str, int]] = ..., latency_s: _Optional[_Union[Histogram, _Mapping]] = ..., resources: _Optional[_Union[Resources, _Mapping]] = ..., merged: _Optional[int] = ..., feedback_count: _Optional[int] = ..., feedback_correct: _Optional[int] = ..., feedback_abs_error_sum: _Optional[float] = ..., feedback_unknown: _Optional[int] = ..., notices: _Optional[_Iterable[str]] = ..., role: _Optional[str] = ..., shadow_compared: _Optional[int] = ..., shadow_disagreed: _Optional[int] = ..., shadow_dropped: _Optional[int] = ..., confidence_count: _Optional[int] = ..., low_confidence: _Optional[int] = ..., output_counts: _Optional[_Mapping[str, int]] = ..., counters: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("scale", "offset", "counts", "zero_count", "sum", "max")
    SCALE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    ZERO_COUNT_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    MAX_FIELD_NUMBER: _ClassVar[int]
    scale: int
    offset: int
    counts: _containers.RepeatedScalarFieldContainer[int]
    zero_count: int
    sum: float
    max: float
    def __init__(self, scale: _Optional[int] = ..., offset: _Optional[int] = ..., counts: _Optional[_Iterable[int]] = ..., zero_count: _Optional[int] = ..., sum: _Optional[float] = ..., max: _Optional[float] = ...) -> None: ...

class Resources(_message.Message):
    __slots__ = ("rss_bytes", "cpu_percent", "disk_free_bytes", "memory_available_bytes", "temperature_c")
    RSS_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_PERCENT_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_C_FIELD_NUMBER: _ClassVar[int]
    rss_bytes: int
    cpu_percent: float
    disk_free_bytes: int
    memory_available_bytes: int
    temperature_c: float
    def __init__(self, rss_bytes: _Optional[int] = ..., cpu_percent: _Optional[float] = ..., disk_free_bytes: _Optional[int] = ..., memory_available_bytes: _Optional[int] = ..., temperature_c: _Optional[float] = ...) -> None: ...

class DeploymentEvent(_message.Message):
    __slots__ = ("deployment_id", "rollout_id", "model", "bundle", "manifest_sha256", "phase", "outcome", "reason_code", "reason", "attempt", "bytes_fetched", "measures", "previous_manifest_sha256")
    class MeasuresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DEPLOYMENT_ID_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    BUNDLE_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    REASON_CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    BYTES_FETCHED_FIELD_NUMBER: _ClassVar[int]
    MEASURES_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    deployment_id: str
    rollout_id: str
    model: str
    bundle: str
    manifest_sha256: str
    phase: Phase
    outcome: Outcome
    reason_code: str
    reason: str
    attempt: int
    bytes_fetched: int
    measures: _containers.ScalarMap[str, float]
    previous_manifest_sha256: str
    def __init__(self, deployment_id: _Optional[str] = ..., rollout_id: _Optional[str] = ..., model: _Optional[str] = ..., bundle: _Optional[str] = ..., manifest_sha256: _Optional[str] = ..., phase: _Optional[_Union[Phase, str]] = ..., outcome: _Optional[_Union[Outcome, str]] = ..., reason_code: _Optional[str] = ..., reason: _Optional[str] = ..., attempt: _Optional[int] = ..., bytes_fetched: _Optional[int] = ..., measures: _Optional[_Mapping[str, float]] = ..., previous_manifest_sha256: _Optional[str] = ...) -> None: ...
