"""Zip a delta into a pack small enough to serve beside others.

The steps are low-rank factors, ranks by gain per byte, rotation, smoothing, and integers: see
docs/explanation/skillzip.md.
"""

from skillweave.skillzip.codecs import CODECS
from skillweave.skillzip.config import ZipConfig
from skillweave.skillzip.zip import zip_delta, zipped

__all__ = ["CODECS", "ZipConfig", "zip_delta", "zipped"]
