"""A delta made small enough to serve beside others: low rank, ranks by gain per byte, rotation, smoothing, integers."""

from skillweave.skillzip.codecs import CODECS
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.zip import zip_delta, zipped

__all__ = ["CODECS", "ZipConfig", "zip_delta", "zipped"]
