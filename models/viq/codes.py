"""The codes of one image and their file forms. Needs numpy only, so that clients can read codes without torch."""

from __future__ import annotations

import base64
import binascii
import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal, cast

import numpy as np
import numpy.typing as npt

from viq import code_file, npz
from viq.config import CODES_PER_PATCH, PATCH, variant
from viq.errors import InvalidInput, TooLarge, UnknownModel

_LARGEST = 2**31 - 1  # pixels or patches of a side; far larger numbers could not even be shown in a message
MAX_NPZ_BYTES = 64 * 2**20
"""Unpacked bytes that `from_npz` and `from_viq` read at most unless told otherwise."""

_MEMBERS = ("codes", "image_size", "size", "fingerprint")


@dataclass(frozen=True, eq=False)
class Codes:
    """The discrete codes of one image.

    `array` is uint16 `(h, w, 4)`, row-major, each value below the codebook size of `size`;
    `image_size` is `(H, W)` in pixels before padding; `fingerprint` says which weights and numerics
    made them (empty if unknown). Raises `InvalidInput` if shapes or values do not fit together.
    """

    array: npt.NDArray[np.uint16]
    image_size: tuple[int, int]
    size: str
    fingerprint: str = ""

    def __post_init__(self) -> None:
        array = np.asarray(self.array)
        if array.ndim != 3 or array.shape[2] != CODES_PER_PATCH or 0 in array.shape:
            raise InvalidInput(f"codes have shape {array.shape}, expected (h, w, {CODES_PER_PATCH})")
        if array.dtype.kind not in "iu":
            raise InvalidInput(f"codes are {array.dtype}, expected whole numbers")
        h, w = array.shape[:2]
        height, width = (_whole(v, "image_size") for v in _pair(self.image_size, "image_size"))
        for name, pixels, patches in (("height", height, h), ("width", width, w)):
            if not PATCH * (patches - 1) < pixels <= PATCH * patches:
                raise InvalidInput(
                    f"image {name} {pixels} does not fit {patches} patches: "
                    f"{PATCH * (patches - 1)} < {name} <= {PATCH * patches}"
                )
        if not isinstance(self.size, str):
            raise InvalidInput(f"size is {self.size!r}, expected a string")
        limit = variant(self.size).codebook_size
        low, high = int(array.min()), int(array.max())
        if low < 0 or high >= limit:
            code = low if low < 0 else high
            raise InvalidInput(f"code {code} is out of range for size {self.size}: 0 to {limit - 1}")
        if not isinstance(self.fingerprint, str):
            raise InvalidInput(f"fingerprint is {type(self.fingerprint).__name__}, expected a string")
        frozen = np.array(array, dtype=np.uint16, order="C")
        frozen.setflags(write=False)
        object.__setattr__(self, "array", frozen)
        object.__setattr__(self, "image_size", (height, width))

    @property
    def grid(self) -> tuple[int, int]:
        """Patch grid `(h, w)`."""
        return int(self.array.shape[0]), int(self.array.shape[1])

    @property
    def flat(self) -> npt.NDArray[np.uint16]:
        """The codes in the released order, `(4*h*w,)`: row `4n+s` is sub-token `s` of patch `n`."""
        return self.array.reshape(-1)

    @property
    def family(self) -> str:
        """The part of the fingerprint that names the weights, empty if unknown."""
        return self.fingerprint.partition(".")[0]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        return (
            self.size == other.size
            and self.image_size == other.image_size
            and self.fingerprint == other.fingerprint
            and bool(np.array_equal(self.array, other.array))
        )

    def __hash__(self) -> int:
        return hash((self.size, self.image_size, self.fingerprint, self.array.tobytes()))

    @classmethod
    def from_flat(
        cls,
        flat: Sequence[int] | npt.NDArray[np.integer],
        grid: Sequence[int],
        size: str,
        image_size: Sequence[int] | None = None,
        fingerprint: str = "",
    ) -> Codes:
        """Codes from `4*h*w` values in the released order.

        Codes made by the released code know no pixel size and no fingerprint: `image_size` is then the
        whole grid, `(16h, 16w)`. Raises `InvalidInput` if the length does not fit the grid.
        """
        h, w = (_whole(v, "grid") for v in _pair(grid, "grid"))
        if h < 1 or w < 1:
            raise InvalidInput(f"grid {h}x{w} has no patches")
        try:
            array = np.asarray(flat if len(flat) else np.zeros(0, np.uint16))
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise InvalidInput(f"codes are no list of whole numbers: {error}") from None
        if array.ndim != 1 or array.dtype.kind not in "iu":
            raise InvalidInput(f"codes are no flat list of whole numbers (shape {array.shape}, type {array.dtype})")
        if array.size != CODES_PER_PATCH * h * w:
            raise InvalidInput(f"{array.size} codes for a {h}x{w} grid, expected {CODES_PER_PATCH * h * w}")
        pixels = (h * PATCH, w * PATCH) if image_size is None else _pair(image_size, "image_size")
        return cls(array.reshape(h, w, CODES_PER_PATCH), pixels, size, fingerprint)

    @classmethod
    def from_bytes(
        cls,
        data: bytes,
        grid: Sequence[int],
        size: str,
        image_size: Sequence[int] | None = None,
        fingerprint: str = "",
    ) -> Codes:
        """Codes from raw little-endian uint16, in the released order."""
        if len(data) % 2:
            raise InvalidInput(f"{len(data)} bytes are no whole number of 16-bit codes")
        return cls.from_flat(np.frombuffer(data, "<u2"), grid, size, image_size, fingerprint)

    def to_bytes(self) -> bytes:
        """Raw little-endian uint16, in the released order, `8*h*w` bytes."""
        return self.array.astype("<u2", copy=False).tobytes()

    def to_dict(self, codes: str = "list") -> dict[str, object]:
        """A JSON-ready form; `codes` is `list` (key `codes`) or `base64` (key `codes_b64`, uint16 little-endian)."""
        if codes not in ("list", "base64"):
            raise InvalidInput(f"codes={codes!r}; there are list and base64")
        data: dict[str, object] = {
            "size": self.size,
            "fingerprint": self.fingerprint,
            "image_size": list(self.image_size),
            "grid": list(self.grid),
        }
        if codes == "base64":
            data["codes_b64"] = base64.b64encode(self.to_bytes()).decode("ascii")
        else:
            data["codes"] = self.flat.tolist()
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Codes:
        """The inverse of `to_dict`, either form.

        `image_size` and `fingerprint` may be missing, other keys are not looked at.
        """
        if not isinstance(data, Mapping):
            raise InvalidInput(f"codes are {type(data).__name__}, expected an object with size, grid and codes")
        missing = [k for k in ("size", "grid") if k not in data]
        if missing:
            raise InvalidInput(f"codes lack {' and '.join(missing)}")
        size, grid, image_size = data["size"], data["grid"], data.get("image_size")
        fingerprint = "" if data.get("fingerprint") is None else data["fingerprint"]
        if not isinstance(size, str) or not isinstance(fingerprint, str):
            raise InvalidInput("size and fingerprint must be strings")
        pair = _pair(grid, "grid")
        pixels = None if image_size is None else _pair(image_size, "image_size")
        if ("codes" in data) == ("codes_b64" in data):
            raise InvalidInput("expected exactly one of codes and codes_b64")
        if "codes" in data:
            flat = data["codes"]
            if isinstance(flat, (list, tuple)):
                if any(isinstance(v, bool) for v in flat):
                    raise InvalidInput("codes hold true or false, expected whole numbers")
            elif not isinstance(flat, np.ndarray):
                raise InvalidInput(f"codes are {type(flat).__name__}, expected a list of whole numbers")
            return cls.from_flat(flat, pair, size, pixels, fingerprint)
        text = data["codes_b64"]
        if not isinstance(text, str):
            raise InvalidInput("codes_b64 must be a string")
        try:
            raw = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise InvalidInput(f"codes_b64 is no base64: {error}") from None
        return cls.from_bytes(raw, pair, size, pixels, fingerprint)

    def to_npz(self, file: str | os.PathLike[str] | IO[bytes]) -> None:
        """Write the file that `viq encode` writes: `codes`, `image_size`, `size`, `fingerprint`.

        Equal codes give equal bytes: members are written with a fixed date.
        """
        members: dict[str, npt.NDArray[np.generic]] = {
            "codes": self.array,
            "image_size": np.asarray(self.image_size, np.int32),
            "size": np.asarray(self.size),
            "fingerprint": np.asarray(self.fingerprint),
        }
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, value in members.items():
                buffer = io.BytesIO()
                np.save(buffer, value, allow_pickle=False)
                info = zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0))
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = 0o644 << 16
                archive.writestr(info, buffer.getvalue())

    def npz_bytes(self) -> bytes:
        """The contents of the file that `to_npz` writes."""
        buffer = io.BytesIO()
        self.to_npz(buffer)
        return buffer.getvalue()

    @classmethod
    def from_npz(cls, file: str | os.PathLike[str] | IO[bytes] | bytes, max_bytes: int = MAX_NPZ_BYTES) -> Codes:
        """Read what `to_npz` wrote. Pickles are never read, nor more than `max_bytes` unpacked.

        Raises `InvalidInput` for anything that is not such a file, `TooLarge` over `max_bytes`, `UnknownModel`
        for codes of a size there is not, and `OSError` if a path cannot be opened.
        """
        what = str(file) if isinstance(file, (str, os.PathLike)) else "npz"
        arrays = npz.read(file, _MEMBERS, max_bytes, what)
        size, fingerprint = (npz.text(arrays[name], f"{what}: {name}") for name in ("size", "fingerprint"))
        try:
            pixels = _pair(arrays["image_size"], "image_size")
            array = cast(npt.NDArray[np.uint16], arrays["codes"])  # any whole numbers: the constructor looks
            return cls(array, pixels, size, fingerprint)
        except (InvalidInput, UnknownModel) as error:
            raise type(error)(f"{what}: {error}") from None

    def to_viq(
        self, file: str | os.PathLike[str] | IO[bytes], compress: Literal["auto", "never", "always"] = "auto"
    ) -> None:
        """Write the compact file, `.viq`: see docs/code-file.md, and `viq.code_file.written` for `compress`."""
        data = self.viq_bytes(compress)
        if isinstance(file, (str, os.PathLike)):
            Path(file).write_bytes(data)
        else:
            file.write(data)

    def viq_bytes(self, compress: Literal["auto", "never", "always"] = "auto") -> bytes:
        """The contents of the file that `to_viq` writes."""
        contents = code_file.Contents(self.flat, self.grid, self.image_size, self.size, self.fingerprint)
        return code_file.written(contents, compress)

    @classmethod
    def from_viq(cls, file: str | os.PathLike[str] | IO[bytes] | bytes, max_bytes: int = MAX_NPZ_BYTES) -> Codes:
        """Read what `to_viq` wrote.

        Raises `InvalidInput` for anything that is not such a file, of this version, whole and undamaged; `TooLarge`
        over `max_bytes`, `UnknownModel` for codes of a size there is not, `OSError` if a path cannot be opened.
        """
        what = str(file) if isinstance(file, (str, os.PathLike)) else ".viq file"
        limit = max_bytes + code_file.HEADER_BYTES
        data = npz.contents(file, limit)
        if len(data) > limit:
            raise TooLarge(f"{what}: more than {limit} bytes")
        try:
            found = code_file.read(data, max_bytes, what)
            return cls.from_flat(found.flat, found.grid, found.size, found.image_size, found.fingerprint)
        except (InvalidInput, UnknownModel) as error:
            raise type(error)(str(error) if str(error).startswith(what) else f"{what}: {error}") from None

    @classmethod
    def from_file(cls, file: str | os.PathLike[str] | bytes, max_bytes: int = MAX_NPZ_BYTES) -> Codes:
        """Read a `.npz` or a `.viq` file, told apart by how it begins; raises what `from_npz` and `from_viq` raise."""
        data = npz.contents(file, max_bytes + npz.OVERHEAD)
        return cls.from_viq(data, max_bytes) if data[:4] == code_file.MAGIC else cls.from_npz(data, max_bytes)


def _pair(value: object, name: str) -> tuple[int, int]:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise InvalidInput(f"{name} is {value!r}, expected two whole numbers")
    return value[0], value[1]


def _whole(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InvalidInput(f"{name} holds {value!r}, expected whole numbers")
    if abs(int(value)) > _LARGEST:
        raise InvalidInput(f"{name} holds a number over {_LARGEST}")
    return int(value)
