"""Blob storage's answers that are XML: the list of a container's blobs, and errors.

learn.microsoft.com/rest/api/storageservices/list-blobs
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from emulator.blob_error import BlobError

HEAD = '<?xml version="1.0" encoding="utf-8"?>'


def error_text(error: BlobError) -> str:
    return f"{HEAD}<Error><Code>{error.code}</Code><Message>{escape(error.message)}</Message></Error>"


def listing(
    account: str, container: str, query: Mapping[str, str], found: Iterable[tuple[str, Path, dict[str, Any]]]
) -> str:
    """The blobs below a prefix; with a delimiter, what lies deeper as one entry for each folder."""
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    with_metadata = "metadata" in query.get("include", "")
    entries, seen = [], set()
    for name, path, body in found:
        below = name[len(prefix) :]
        if delimiter and delimiter in below:
            group = prefix + below.split(delimiter)[0] + delimiter
            if group not in seen:
                seen.add(group)
                entries.append(f"<BlobPrefix><Name>{escape(group)}</Name></BlobPrefix>")
            continue
        entries.append(_listed(name, path, body, with_metadata))
    return (
        f'{HEAD}<EnumerationResults ServiceEndpoint="https://{account}.blob.core.windows.net/" '
        f'ContainerName="{container}"><Prefix>{escape(prefix)}</Prefix><Blobs>{"".join(entries)}</Blobs>'
        "<NextMarker /></EnumerationResults>"
    )


def _listed(name: str, path: Path, body: dict[str, Any], with_metadata: bool) -> str:
    meta = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in body["meta"].items()) if with_metadata else ""
    return (
        f"<Blob><Name>{escape(name)}</Name><Properties><Creation-Time>{body['created']}</Creation-Time>"
        f"<Last-Modified>{body['modified']}</Last-Modified><Etag>{escape(body['etag'].strip(chr(34)))}</Etag>"
        f"<Content-Length>{path.stat().st_size}</Content-Length>"
        f"<Content-Type>{escape(body.get('type') or 'application/octet-stream')}</Content-Type>"
        f"<BlobType>BlockBlob</BlobType></Properties><Metadata>{meta}</Metadata></Blob>"
    )
