"""Whatever holds rows, opened as one kind of thing: a schema and a stream of bounded Arrow batches."""

from holdfast.storage.datasets.sources.opening import open_sources
from holdfast.storage.datasets.sources.source import IMAGE, MEDIA, Source

__all__ = ["IMAGE", "MEDIA", "Source", "open_sources"]
