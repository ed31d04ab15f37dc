import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_QUEUED: _ClassVar[RunState]
    RUN_STATE_RUNNING: _ClassVar[RunState]
    RUN_STATE_SUCCEEDED: _ClassVar[RunState]
    RUN_STATE_FAILED: _ClassVar[RunState]
    RUN_STATE_STOPPED: _ClassVar[RunState]

class PictureChange(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICTURE_CHANGE_UNSPECIFIED: _ClassVar[PictureChange]
    PICTURE_CHANGE_SAME: _ClassVar[PictureChange]
    PICTURE_CHANGE_BETTER: _ClassVar[PictureChange]
    PICTURE_CHANGE_WORSE: _ClassVar[PictureChange]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_QUEUED: RunState
RUN_STATE_RUNNING: RunState
RUN_STATE_SUCCEEDED: RunState
RUN_STATE_FAILED: RunState
RUN_STATE_STOPPED: RunState
PICTURE_CHANGE_UNSPECIFIED: PictureChange
PICTURE_CHANGE_SAME: PictureChange
PICTURE_CHANGE_BETTER: PictureChange
PICTURE_CHANGE_WORSE: PictureChange

class Run(_message.Message):
    __slots__ = ("id", "state", "recipe", "iteration", "iterations", "policy_version", "error", "create_time", "update_time", "reason")
    ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    POLICY_VERSION_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    UPDATE_TIME_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    id: str
    state: RunState
    recipe: str
    iteration: int
    iterations: int
    policy_version: int
    error: str
    create_time: _timestamp_pb2.Timestamp
    update_time: _timestamp_pb2.Timestamp
    reason: str
    def __init__(self, id: _Optional[str] = ..., state: _Optional[_Union[RunState, str]] = ..., recipe: _Optional[str] = ..., iteration: _Optional[int] = ..., iterations: _Optional[int] = ..., policy_version: _Optional[int] = ..., error: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., update_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class StartRunRequest(_message.Message):
    __slots__ = ("request_id", "recipe_name", "recipe_text", "overrides", "run_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPE_NAME_FIELD_NUMBER: _ClassVar[int]
    RECIPE_TEXT_FIELD_NUMBER: _ClassVar[int]
    OVERRIDES_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    recipe_name: str
    recipe_text: str
    overrides: _containers.RepeatedScalarFieldContainer[str]
    run_id: str
    def __init__(self, request_id: _Optional[str] = ..., recipe_name: _Optional[str] = ..., recipe_text: _Optional[str] = ..., overrides: _Optional[_Iterable[str]] = ..., run_id: _Optional[str] = ...) -> None: ...

class StartRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class GetRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class GetRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ListRunsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRunsResponse(_message.Message):
    __slots__ = ("runs", "next_page_token")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[Run]
    next_page_token: str
    def __init__(self, runs: _Optional[_Iterable[_Union[Run, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchRunRequest(_message.Message):
    __slots__ = ("run_id", "from_event")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_EVENT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    from_event: int
    def __init__(self, run_id: _Optional[str] = ..., from_event: _Optional[int] = ...) -> None: ...

class WatchRunResponse(_message.Message):
    __slots__ = ("event", "time", "state", "iteration", "stage", "done", "total", "metrics", "message")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    EVENT_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    event: int
    time: _timestamp_pb2.Timestamp
    state: RunState
    iteration: int
    stage: str
    done: int
    total: int
    metrics: _containers.ScalarMap[str, float]
    message: str
    def __init__(self, event: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[_Union[RunState, str]] = ..., iteration: _Optional[int] = ..., stage: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ..., message: _Optional[str] = ...) -> None: ...

class StopRunRequest(_message.Message):
    __slots__ = ("run_id", "now")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    now: bool
    def __init__(self, run_id: _Optional[str] = ..., now: bool = ...) -> None: ...

class StopRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ResumeRunRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class ResumeRunResponse(_message.Message):
    __slots__ = ("run",)
    RUN_FIELD_NUMBER: _ClassVar[int]
    run: Run
    def __init__(self, run: _Optional[_Union[Run, _Mapping]] = ...) -> None: ...

class ListRunPicturesRequest(_message.Message):
    __slots__ = ("run_id", "iteration", "limit")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    iteration: int
    limit: int
    def __init__(self, run_id: _Optional[str] = ..., iteration: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ListRunPicturesResponse(_message.Message):
    __slots__ = ("pictures",)
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    pictures: _containers.RepeatedCompositeFieldContainer[RunPicture]
    def __init__(self, pictures: _Optional[_Iterable[_Union[RunPicture, _Mapping]]] = ...) -> None: ...

class RunPicture(_message.Message):
    __slots__ = ("prompt_id", "image", "before", "after", "change")
    PROMPT_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    prompt_id: str
    image: bytes
    before: RunText
    after: RunText
    change: PictureChange
    def __init__(self, prompt_id: _Optional[str] = ..., image: _Optional[bytes] = ..., before: _Optional[_Union[RunText, _Mapping]] = ..., after: _Optional[_Union[RunText, _Mapping]] = ..., change: _Optional[_Union[PictureChange, str]] = ...) -> None: ...

class RunText(_message.Message):
    __slots__ = ("text", "reward", "tokens", "wrong_spans", "wrong", "missed")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    REWARD_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    WRONG_SPANS_FIELD_NUMBER: _ClassVar[int]
    WRONG_FIELD_NUMBER: _ClassVar[int]
    MISSED_FIELD_NUMBER: _ClassVar[int]
    text: str
    reward: float
    tokens: int
    wrong_spans: _containers.RepeatedCompositeFieldContainer[TextSpan]
    wrong: _containers.RepeatedScalarFieldContainer[str]
    missed: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, text: _Optional[str] = ..., reward: _Optional[float] = ..., tokens: _Optional[int] = ..., wrong_spans: _Optional[_Iterable[_Union[TextSpan, _Mapping]]] = ..., wrong: _Optional[_Iterable[str]] = ..., missed: _Optional[_Iterable[str]] = ...) -> None: ...

class TextSpan(_message.Message):
    __slots__ = ("start", "end")
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    start: int
    end: int
    def __init__(self, start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class ListRunPoliciesRequest(_message.Message):
    __slots__ = ("run_id",)
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    def __init__(self, run_id: _Optional[str] = ...) -> None: ...

class ListRunPoliciesResponse(_message.Message):
    __slots__ = ("policies",)
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[RunPolicy]
    def __init__(self, policies: _Optional[_Iterable[_Union[RunPolicy, _Mapping]]] = ...) -> None: ...

class RunPolicy(_message.Message):
    __slots__ = ("version", "parent_version", "kind", "iteration", "manifest_sha256")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ITERATION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    version: int
    parent_version: int
    kind: str
    iteration: int
    manifest_sha256: bytes
    def __init__(self, version: _Optional[int] = ..., parent_version: _Optional[int] = ..., kind: _Optional[str] = ..., iteration: _Optional[int] = ..., manifest_sha256: _Optional[bytes] = ...) -> None: ...

class CompareRunsRequest(_message.Message):
    __slots__ = ("run_id", "other_run_id", "limit")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    OTHER_RUN_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    other_run_id: str
    limit: int
    def __init__(self, run_id: _Optional[str] = ..., other_run_id: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class CompareRunsResponse(_message.Message):
    __slots__ = ("recipe", "metrics", "unpaired", "pictures")
    RECIPE_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    UNPAIRED_FIELD_NUMBER: _ClassVar[int]
    PICTURES_FIELD_NUMBER: _ClassVar[int]
    recipe: _containers.RepeatedCompositeFieldContainer[RecipeDifference]
    metrics: _containers.RepeatedCompositeFieldContainer[MetricChange]
    unpaired: str
    pictures: _containers.RepeatedCompositeFieldContainer[RunPicture]
    def __init__(self, recipe: _Optional[_Iterable[_Union[RecipeDifference, _Mapping]]] = ..., metrics: _Optional[_Iterable[_Union[MetricChange, _Mapping]]] = ..., unpaired: _Optional[str] = ..., pictures: _Optional[_Iterable[_Union[RunPicture, _Mapping]]] = ...) -> None: ...

class RecipeDifference(_message.Message):
    __slots__ = ("key", "one", "other")
    KEY_FIELD_NUMBER: _ClassVar[int]
    ONE_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    key: str
    one: str
    other: str
    def __init__(self, key: _Optional[str] = ..., one: _Optional[str] = ..., other: _Optional[str] = ...) -> None: ...

class MetricChange(_message.Message):
    __slots__ = ("metric", "one", "other", "change", "low", "high", "clear")
    METRIC_FIELD_NUMBER: _ClassVar[int]
    ONE_FIELD_NUMBER: _ClassVar[int]
    OTHER_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    CLEAR_FIELD_NUMBER: _ClassVar[int]
    metric: str
    one: float
    other: float
    change: float
    low: float
    high: float
    clear: bool
    def __init__(self, metric: _Optional[str] = ..., one: _Optional[float] = ..., other: _Optional[float] = ..., change: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ..., clear: bool = ...) -> None: ...
