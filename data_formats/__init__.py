"""Files and hub rows -> Demonstration, Comparison, Scored, Prompt, Document, and ChatML. No torch, no models."""

from align.runtime.errors import AlignError, MissingFileError, StorageError
from data_formats.detection import format_names
from data_formats.errors import DataError, EmptyDatasetError, TooLargeError
from data_formats.hub import HubDataset
from data_formats.reading import Stream, read, stream
from data_formats.records import (
    Comparison,
    Demonstration,
    Document,
    Message,
    Prompt,
    Record,
    Reply,
    Scored,
    Step,
    ToolCall,
)
from data_formats.report import ReadReport, ReadResult
from data_formats.splitting import split_heldout
from data_formats.writing import write_jsonl

__all__ = [
    "AlignError",
    "Comparison",
    "DataError",
    "Demonstration",
    "Document",
    "EmptyDatasetError",
    "HubDataset",
    "Message",
    "MissingFileError",
    "Prompt",
    "ReadReport",
    "ReadResult",
    "Record",
    "Reply",
    "Scored",
    "Step",
    "StorageError",
    "Stream",
    "TooLargeError",
    "ToolCall",
    "format_names",
    "read",
    "split_heldout",
    "stream",
    "write_jsonl",
]
