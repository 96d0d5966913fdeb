"""Where the images of a data set lie, and what is in them: bytes, pixels and content hashes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from iqa_ray.images.decoding import (
    AbsentError,
    ImageError,
    UnreadError,
    decode_image,
    hash_content,
)
from iqa_ray.images.listing import Listing, list_images, locate_image
from iqa_ray.images.prefetch import run_ahead
from iqa_ray.images.settings import DEFAULT_MAX_PIXELS, LabelMode
from iqa_ray.storage.files import Location, locate, one_line, read_bytes
from iqa_ray.storage.object_stores import UnansweredError

# an object store answers slowly and many at a time
_REMOTE_READERS, _REMOTE_AHEAD = 8, 32
_HASH_READERS, _HASHED_AHEAD = 8, 64


@dataclass(frozen=True)
class ImageSource:
    """A data set: lists its images, and reads, decodes and hashes one of them.

    A table's `path` names an image, and nobody but this class takes it apart. An image is a member
    of a container; a folder is no container, so here a path is the member alone, which is a file.

    Attributes:
        root: the folder or manifest, with the options of its URI.
        max_pixels: larger images are not decoded.
    """

    root: Location
    max_pixels: int = DEFAULT_MAX_PIXELS

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ImageSource:
        """What a workspace was scored from; `record` is that of its `images.parquet`."""
        max_pixels = int(record.get("max_pixels", DEFAULT_MAX_PIXELS))
        return cls(locate(record.get("images", "")), max_pixels)

    @property
    def options(self) -> str:
        """Those of the root's URI, with which all images are reached."""
        return self.root.options

    def list(self, labels: LabelMode = "parent", exclude: Sequence[Location] = ()) -> Listing:
        """The images, none of them opened. Takes and raises what `list_images` does."""
        return list_images(str(self.root), labels, exclude)

    def read(self, path: str) -> bytes:
        """The bytes of an image.

        Raises:
            AbsentError: it is not there.
            UnreadError: it is refused, with the reason.
            ImageError: it is empty, or too large for the memory.
            UnansweredError: an object store failed on every try, which says nothing of the image.
        """
        try:
            data = read_bytes(locate_image(path, self.options))
        except UnansweredError:
            raise
        except FileNotFoundError:
            raise AbsentError("unreadable", "No such file or directory") from None
        except MemoryError:
            raise ImageError("too_large", "not enough memory to read it") from None
        except (OSError, pa.ArrowException) as error:
            reason = getattr(error, "strerror", None) or one_line(error)
            raise UnreadError("unreadable", reason) from None
        if not data:
            raise ImageError("unreadable", "the file is empty")
        return data

    def read_each(self, paths: Sequence[str]) -> Iterator[bytes | ImageError]:
        """The bytes of each image in order, or what is wrong with it.

        Those in an object store are read ahead. Raises UnansweredError as `read`.
        """
        if all(locate_image(path, self.options).is_local for path in paths):
            return map(self._try_read, paths)
        return run_ahead(self._try_read, paths, _REMOTE_READERS, _REMOTE_AHEAD)

    def _try_read(self, path: str) -> bytes | ImageError:
        try:
            return self.read(path)
        except ImageError as error:
            return error

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of an image's bytes. Raises as `decode_image`."""
        return decode_image(data, self.max_pixels)

    def hash(self, path: str) -> str | None:
        """The content hash of an image; None where it cannot be read.

        Raises UnansweredError as `read`.
        """
        data = self._try_read(path)
        return None if isinstance(data, ImageError) else hash_content(data)

    def hash_each(self, paths: Iterable[str]) -> Iterator[str | None]:
        """The content hash of each image in order, read ahead. As `hash`."""
        return run_ahead(self.hash, paths, _HASH_READERS, _HASHED_AHEAD)
