from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Alpha(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALPHA_UNSPECIFIED: _ClassVar[Alpha]
    ALPHA_WHITE: _ClassVar[Alpha]
    ALPHA_DROP: _ClassVar[Alpha]

class FeatureDtype(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FEATURE_DTYPE_UNSPECIFIED: _ClassVar[FeatureDtype]
    FEATURE_DTYPE_FLOAT32: _ClassVar[FeatureDtype]
    FEATURE_DTYPE_FLOAT16: _ClassVar[FeatureDtype]
    FEATURE_DTYPE_BFLOAT16: _ClassVar[FeatureDtype]

class PictureFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PICTURE_FORMAT_UNSPECIFIED: _ClassVar[PictureFormat]
    PICTURE_FORMAT_PNG: _ClassVar[PictureFormat]
    PICTURE_FORMAT_JPEG: _ClassVar[PictureFormat]
    PICTURE_FORMAT_WEBP: _ClassVar[PictureFormat]
ALPHA_UNSPECIFIED: Alpha
ALPHA_WHITE: Alpha
ALPHA_DROP: Alpha
FEATURE_DTYPE_UNSPECIFIED: FeatureDtype
FEATURE_DTYPE_FLOAT32: FeatureDtype
FEATURE_DTYPE_FLOAT16: FeatureDtype
FEATURE_DTYPE_BFLOAT16: FeatureDtype
PICTURE_FORMAT_UNSPECIFIED: PictureFormat
PICTURE_FORMAT_PNG: PictureFormat
PICTURE_FORMAT_JPEG: PictureFormat
PICTURE_FORMAT_WEBP: PictureFormat

class ItemOptions(_message.Message):
    __slots__ = ("exif", "alpha")
    EXIF_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    exif: bool
    alpha: Alpha
    def __init__(self, exif: _Optional[bool] = ..., alpha: _Optional[_Union[Alpha, str]] = ...) -> None: ...

class Codes(_message.Message):
    __slots__ = ("data", "h", "w", "height", "width", "size", "fingerprint")
    DATA_FIELD_NUMBER: _ClassVar[int]
    H_FIELD_NUMBER: _ClassVar[int]
    W_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    h: int
    w: int
    height: int
    width: int
    size: str
    fingerprint: str
    def __init__(self, data: _Optional[bytes] = ..., h: _Optional[int] = ..., w: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., size: _Optional[str] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("key", "image", "codes", "options")
    KEY_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    key: str
    image: bytes
    codes: Codes
    options: ItemOptions
    def __init__(self, key: _Optional[str] = ..., image: _Optional[bytes] = ..., codes: _Optional[_Union[Codes, _Mapping]] = ..., options: _Optional[_Union[ItemOptions, _Mapping]] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("code", "grpc_code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    GRPC_CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: str
    grpc_code: int
    message: str
    def __init__(self, code: _Optional[str] = ..., grpc_code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class FeatureChunk(_message.Message):
    __slots__ = ("dtype", "n", "c", "row_offset", "data", "last")
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    C_FIELD_NUMBER: _ClassVar[int]
    ROW_OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    dtype: FeatureDtype
    n: int
    c: int
    row_offset: int
    data: bytes
    last: bool
    def __init__(self, dtype: _Optional[_Union[FeatureDtype, str]] = ..., n: _Optional[int] = ..., c: _Optional[int] = ..., row_offset: _Optional[int] = ..., data: _Optional[bytes] = ..., last: _Optional[bool] = ...) -> None: ...

class Result(_message.Message):
    __slots__ = ("key", "status", "codes", "features", "image")
    KEY_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    key: str
    status: Status
    codes: Codes
    features: FeatureChunk
    image: bytes
    def __init__(self, key: _Optional[str] = ..., status: _Optional[_Union[Status, _Mapping]] = ..., codes: _Optional[_Union[Codes, _Mapping]] = ..., features: _Optional[_Union[FeatureChunk, _Mapping]] = ..., image: _Optional[bytes] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("size", "fingerprint", "codebook_size", "levels", "untrained")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    CODEBOOK_SIZE_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    UNTRAINED_FIELD_NUMBER: _ClassVar[int]
    size: str
    fingerprint: str
    codebook_size: int
    levels: _containers.RepeatedScalarFieldContainer[int]
    untrained: bool
    def __init__(self, size: _Optional[str] = ..., fingerprint: _Optional[str] = ..., codebook_size: _Optional[int] = ..., levels: _Optional[_Iterable[int]] = ..., untrained: _Optional[bool] = ...) -> None: ...

class Timings(_message.Message):
    __slots__ = ("preprocess_ms", "queue_ms", "transfer_ms", "compute_ms", "postprocess_ms")
    PREPROCESS_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_MS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_MS_FIELD_NUMBER: _ClassVar[int]
    POSTPROCESS_MS_FIELD_NUMBER: _ClassVar[int]
    preprocess_ms: float
    queue_ms: float
    transfer_ms: float
    compute_ms: float
    postprocess_ms: float
    def __init__(self, preprocess_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., transfer_ms: _Optional[float] = ..., compute_ms: _Optional[float] = ..., postprocess_ms: _Optional[float] = ...) -> None: ...

class EncodeRequest(_message.Message):
    __slots__ = ("items", "size")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    size: str
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., size: _Optional[str] = ...) -> None: ...

class EncodeResponse(_message.Message):
    __slots__ = ("model", "results", "timings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    results: _containers.RepeatedCompositeFieldContainer[Result]
    timings: Timings
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class EmbedRequest(_message.Message):
    __slots__ = ("items", "size", "dtype", "allow_fingerprint_mismatch")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FINGERPRINT_MISMATCH_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    size: str
    dtype: FeatureDtype
    allow_fingerprint_mismatch: bool
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., size: _Optional[str] = ..., dtype: _Optional[_Union[FeatureDtype, str]] = ..., allow_fingerprint_mismatch: _Optional[bool] = ...) -> None: ...

class EmbedResponse(_message.Message):
    __slots__ = ("model", "results", "timings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    results: _containers.RepeatedCompositeFieldContainer[Result]
    timings: Timings
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class DecodeRequest(_message.Message):
    __slots__ = ("items", "size", "format", "allow_fingerprint_mismatch")
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FINGERPRINT_MISMATCH_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Item]
    size: str
    format: PictureFormat
    allow_fingerprint_mismatch: bool
    def __init__(self, items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., size: _Optional[str] = ..., format: _Optional[_Union[PictureFormat, str]] = ..., allow_fingerprint_mismatch: _Optional[bool] = ...) -> None: ...

class DecodeResponse(_message.Message):
    __slots__ = ("model", "results", "timings")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    results: _containers.RepeatedCompositeFieldContainer[Result]
    timings: Timings
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ..., timings: _Optional[_Union[Timings, _Mapping]] = ...) -> None: ...

class EncodeStreamOptions(_message.Message):
    __slots__ = ("size",)
    SIZE_FIELD_NUMBER: _ClassVar[int]
    size: str
    def __init__(self, size: _Optional[str] = ...) -> None: ...

class EncodeStreamRequest(_message.Message):
    __slots__ = ("options", "items")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    options: EncodeStreamOptions
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, options: _Optional[_Union[EncodeStreamOptions, _Mapping]] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class EncodeStreamResponse(_message.Message):
    __slots__ = ("model", "results")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    results: _containers.RepeatedCompositeFieldContainer[Result]
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ...) -> None: ...

class EmbedStreamOptions(_message.Message):
    __slots__ = ("size", "dtype", "allow_fingerprint_mismatch")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FINGERPRINT_MISMATCH_FIELD_NUMBER: _ClassVar[int]
    size: str
    dtype: FeatureDtype
    allow_fingerprint_mismatch: bool
    def __init__(self, size: _Optional[str] = ..., dtype: _Optional[_Union[FeatureDtype, str]] = ..., allow_fingerprint_mismatch: _Optional[bool] = ...) -> None: ...

class EmbedStreamRequest(_message.Message):
    __slots__ = ("options", "items")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    options: EmbedStreamOptions
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, options: _Optional[_Union[EmbedStreamOptions, _Mapping]] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class EmbedStreamResponse(_message.Message):
    __slots__ = ("model", "results")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    results: _containers.RepeatedCompositeFieldContainer[Result]
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ...) -> None: ...

class DecodeStreamOptions(_message.Message):
    __slots__ = ("size", "format", "allow_fingerprint_mismatch")
    SIZE_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    ALLOW_FINGERPRINT_MISMATCH_FIELD_NUMBER: _ClassVar[int]
    size: str
    format: PictureFormat
    allow_fingerprint_mismatch: bool
    def __init__(self, size: _Optional[str] = ..., format: _Optional[_Union[PictureFormat, str]] = ..., allow_fingerprint_mismatch: _Optional[bool] = ...) -> None: ...

class DecodeStreamRequest(_message.Message):
    __slots__ = ("options", "items")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    options: DecodeStreamOptions
    items: _containers.RepeatedCompositeFieldContainer[Item]
    def __init__(self, options: _Optional[_Union[DecodeStreamOptions, _Mapping]] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ...) -> None: ...

class DecodeStreamResponse(_message.Message):
    __slots__ = ("model", "results")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    results: _containers.RepeatedCompositeFieldContainer[Result]
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., results: _Optional[_Iterable[_Union[Result, _Mapping]]] = ...) -> None: ...

class ImageSize(_message.Message):
    __slots__ = ("height", "width")
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    height: int
    width: int
    def __init__(self, height: _Optional[int] = ..., width: _Optional[int] = ...) -> None: ...

class PlanRequest(_message.Message):
    __slots__ = ("images", "size")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[ImageSize]
    size: str
    def __init__(self, images: _Optional[_Iterable[_Union[ImageSize, _Mapping]]] = ..., size: _Optional[str] = ...) -> None: ...

class ImagePlan(_message.Message):
    __slots__ = ("h", "w", "height", "width", "patches", "codes", "cost", "fits", "limit")
    H_FIELD_NUMBER: _ClassVar[int]
    W_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    PATCHES_FIELD_NUMBER: _ClassVar[int]
    CODES_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    FITS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    h: int
    w: int
    height: int
    width: int
    patches: int
    codes: int
    cost: int
    fits: bool
    limit: str
    def __init__(self, h: _Optional[int] = ..., w: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., patches: _Optional[int] = ..., codes: _Optional[int] = ..., cost: _Optional[int] = ..., fits: _Optional[bool] = ..., limit: _Optional[str] = ...) -> None: ...

class PlanResponse(_message.Message):
    __slots__ = ("model", "results")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    model: Model
    results: _containers.RepeatedCompositeFieldContainer[ImagePlan]
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., results: _Optional[_Iterable[_Union[ImagePlan, _Mapping]]] = ...) -> None: ...

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LoadedModel(_message.Message):
    __slots__ = ("model", "dtype", "device", "width", "is_default")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    IS_DEFAULT_FIELD_NUMBER: _ClassVar[int]
    model: Model
    dtype: str
    device: str
    width: int
    is_default: bool
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ..., width: _Optional[int] = ..., is_default: _Optional[bool] = ...) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("models", "limits")
    class LimitsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    MODELS_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[LoadedModel]
    limits: _containers.ScalarMap[str, float]
    def __init__(self, models: _Optional[_Iterable[_Union[LoadedModel, _Mapping]]] = ..., limits: _Optional[_Mapping[str, float]] = ...) -> None: ...
