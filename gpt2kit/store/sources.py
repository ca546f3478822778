"""The files of a model as a source describes them, and what to do if the source fails.

Here is what both sources share, and OpenAI's server, which is asked for each of its files. The
answers are compared with the catalogue. Every failure is a DownloadError.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import os
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import httpx2

from gpt2kit.errors import DownloadError
from gpt2kit.store import catalogue
from gpt2kit.store.catalogue import PublishedFile
from gpt2kit.store.parts import RemoteFile
from gpt2kit.store.retries import Patience, Progress, shown
from gpt2kit.store.transfer import Transfer

OPENAI_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that will be fetched, known before the first byte of a file."""

    source: str  # "hub" or "openai"
    repository: str  # on the Hub, or the address of OpenAI's directory
    revision: str | None  # the Hub's commit
    files: Sequence[RemoteFile]
    transfer: Callable[[], Transfer]


def openai_plan(model: str, patience: Patience, progress: Progress) -> Plan:
    """Ask OpenAI's server for the size of each file of a model."""
    publication = catalogue.PUBLICATIONS[model]
    base = base_address(os.environ.get("GPT2KIT_OPENAI_URL") or OPENAI_URL, "GPT2KIT_OPENAI_URL")
    address = f"{base}/{publication.openai_directory}"
    other = f"The Hub has the same weights: gpt2kit download {model}"

    def refusal(response: httpx2.Response) -> str:
        """Say what a failed response means."""
        where = shown(str(response.url))
        return f"{where}: the server answered {response.status_code}. {other}"

    def transfer() -> Transfer:
        """Return the connection that moves the files."""
        return Transfer(
            endpoint=base,
            headers={},
            refusal=refusal,
            patience=patience,
            progress=progress,
            advice=functools.partial(advice_on_failure, base, "GPT2KIT_OPENAI_URL", other),
        )

    with transfer() as asking:
        files = [
            _openai_file(file, f"{address}/{file.name}", asking.head(f"{address}/{file.name}"))
            for file in publication.openai_files
        ]
    return Plan(
        source="openai", repository=shown(address), revision=None, files=files, transfer=transfer
    )


def _openai_file(known: PublishedFile, url: str, headers: httpx2.Headers) -> RemoteFile:
    """Return the file as the catalogue describes it; what that does not know, the server tells."""
    length = headers.get("Content-Length", "")
    size = int(length) if length.isascii() and length.isdigit() else known.size
    if size is None:
        raise DownloadError(f"{shown(url)}: the server does not give the size", url=shown(url))
    if known.size not in (None, size):
        raise DownloadError(
            f"{shown(url)} has {size:,} bytes, expected {known.size:,}; "
            "is there a proxy in between?",
            url=shown(url),
        )
    if known.sha256:
        return RemoteFile(name=known.name, url=url, size=size, digests={"sha256": known.sha256})
    with contextlib.suppress(ValueError):
        if md5 := base64.b64decode(headers.get("Content-MD5", ""), validate=True):
            return RemoteFile(name=known.name, url=url, size=size, digests={"md5": md5.hex()})
    return RemoteFile(name=known.name, url=url, size=size)


def base_address(value: str, variable: str) -> str:
    """Return a base address; the value of the variable is not shown, as it may hold a password."""
    with contextlib.suppress(httpx2.InvalidURL):
        url = httpx2.URL(value.strip())
        if url.scheme in ("http", "https") and url.host:
            return value.strip().rstrip("/")
    raise DownloadError(f"{variable} is not an address that begins with http:// or https://")


def advice_on_failure(endpoint: str, variable: str, other: str, unreachable: bool) -> str:
    """Say what the user can do after a server failed.

    `other` says where else the weights are, if anywhere; `variable` is the environment variable
    that may name another endpoint.
    """
    if not unreachable:
        return other or "Try again later"
    advice = [other] if other else []
    url = httpx2.URL(endpoint)
    proxies = {} if urllib.request.proxy_bypass(url.host) else urllib.request.getproxies()
    kind = next((kind for kind in (url.scheme, "all") if kind in proxies), None)
    if kind is None:
        advice.append(f"If a proxy is needed here, set {url.scheme.upper()}_PROXY")
    else:
        advice.append(_is_right(f"{kind.upper()}_PROXY", proxies[kind]))
    if os.environ.get(variable):
        advice.append(_is_right(variable, endpoint))
    else:
        advice.append(f"If you use a mirror, set {variable}")
    return ". ".join(advice).replace("?.", "?")


def _is_right(variable: str, address: str) -> str:
    """Ask whether the address in a variable is right; a password in it is not shown."""
    with contextlib.suppress(httpx2.InvalidURL):
        address = address if "://" in address else f"http://{address}"
        return f"{variable} is {shown(address).rstrip('/')}: is that right?"
    return f"{variable} is not an address: is that right?"
