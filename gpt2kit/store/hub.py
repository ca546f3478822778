"""The files of a model as the Hugging Face Hub describes them.

One request gives the commit, and the size and hash of each file. The answer is compared with the
catalogue. Every failure is a DownloadError.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import re
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import httpx2

from gpt2kit.errors import DownloadError
from gpt2kit.store import catalogue
from gpt2kit.store.catalogue import PublishedFile
from gpt2kit.store.folders import ADAPTERS, PEFT_FILE, TEXT_FILES
from gpt2kit.store.lookup import SAE_ID
from gpt2kit.store.manifest import PLAIN_NAME
from gpt2kit.store.parts import RemoteFile
from gpt2kit.store.retries import Patience, Progress, shown, within
from gpt2kit.store.sources import Plan, advice_on_failure, base_address
from gpt2kit.store.transfer import Transfer

HUB_URL = "https://huggingface.co"
_LARGEST = 2**24  # bytes of a description; one of ten thousand files has some two million

# Fetched from a repository that is not in the catalogue: those of TEXT_FILES that it has, and the
# first of these kinds of weights.
_WEIGHTS = (("model", "safetensors"), ("pytorch_model", "bin"))
_STEMS = tuple(f"{stem}." for stem, _ in _WEIGHTS)
_MODEL_TYPES = ("gpt2", "gpt2kit")


def hub_plan(
    model: str, revision: str | None, verify: bool, patience: Patience, progress: Progress
) -> Plan:
    """Ask the Hub for the commit, sizes and hashes of a model, and choose its files."""
    publication = catalogue.PUBLICATIONS.get(model)
    sae = SAE_ID.fullmatch(model)
    repository = publication.repository if publication else sae[1] if sae else model
    endpoint = base_address(os.environ.get("HF_ENDPOINT") or HUB_URL, "HF_ENDPOINT")
    token = token_of_user(patience)

    def refusal(response: httpx2.Response) -> str:
        """Say what a failed response means."""
        return _refusal(response, repository, revision, with_token=token is not None)

    has_other = publication and publication.openai_directory and revision is None
    other = f"OpenAI has the same weights: gpt2kit download {model} --source openai"
    advice = functools.partial(
        advice_on_failure, endpoint, "HF_ENDPOINT", other if has_other else ""
    )

    def transfer() -> Transfer:
        """Return the connection that moves the files."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return Transfer(
            endpoint=endpoint,
            headers=headers,
            refusal=refusal,
            patience=patience,
            progress=progress,
            advice=advice,
        )

    description = _Description.ask(transfer, endpoint, repository, revision)
    if sae:
        files = description.files_of_sae(sae[2])
    elif publication and revision is None:
        files = [description.pinned(file, verify) for file in publication.hub_files]
    else:
        names = {name for name in description.siblings if PLAIN_NAME.fullmatch(name)}
        files = [
            description.remote(name) for name in _needed(names, repository, description.config)
        ]
    origin = model if sae else repository  # what is typed to have these files again
    return Plan(
        source="hub", repository=origin, revision=description.commit, files=files, transfer=transfer
    )


@dataclass(frozen=True, kw_only=True)
class _Description:
    """What the Hub says about a repository."""

    endpoint: str
    repository: str
    commit: str
    siblings: Mapping[str, Mapping[str, Any]]  # the files, by name
    config: Any

    @classmethod
    def ask(
        cls,
        transfer: Callable[[], Transfer],
        endpoint: str,
        repository: str,
        revision: str | None,
    ) -> _Description:
        """Return the description of a revision, or of the newest one."""
        url = f"{endpoint}/api/models/{repository}"
        path = f"/revision/{urllib.parse.quote(revision, safe='')}" if revision else ""
        with transfer() as asking:
            content = asking.read(f"{url}{path}?blobs=true", largest=_LARGEST)
        try:
            found = json.loads(content)
            siblings = {each["rfilename"]: each for each in found["siblings"]}
            if not all(isinstance(name, str) for name in siblings):
                raise TypeError("a file has a name that is no text")
            commit, config = found["sha"], found.get("config")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            message = (
                f"{shown(url)} answered with something else than the description of a model: "
                "is there a proxy or login page in between?"
            )
            raise DownloadError(message, url=shown(url)) from error
        if not (isinstance(commit, str) and re.fullmatch(r"[A-Za-z0-9]{1,64}", commit)):
            raise DownloadError(
                f"{shown(endpoint)} does not name the commit of {repository}; is it a Hub?",
                url=shown(endpoint),
            )
        return cls(
            endpoint=endpoint,
            repository=repository,
            commit=commit,
            siblings=siblings,
            config=config,
        )

    def files_of_sae(self, inner: str) -> list[RemoteFile]:
        """Choose the files of a sparse autoencoder: a folder, or a .pt with what describes it."""
        if inner.endswith(".pt"):
            needed, optional = [inner], [f"{inner.removesuffix('.pt')}_cfg.json"]
        else:
            needed = [f"{inner}/cfg.json", f"{inner}/sae_weights.safetensors"]
            optional = [f"{inner}/sparsity.safetensors"]
        if missing := [name for name in needed if name not in self.siblings]:
            folders = sorted(
                name.rpartition("/")[0] for name in self.siblings if name.endswith("/cfg.json")
            )
            known = [*folders, *(name for name in self.siblings if name.endswith(".pt"))]
            advice = (
                f"; it has {', '.join(known[:4])}{', …' if len(known) > 4 else ''}" if known else ""
            )
            raise DownloadError(f"{self.repository} has no {missing[0]}{advice}")
        chosen = [name for name in (*needed, *optional) if name in self.siblings]
        files = [self.remote(name) for name in chosen]
        return [replace(file, name=file.name.rpartition("/")[2]) for file in files]

    def remote(self, name: str) -> RemoteFile:
        """Return a file as the Hub describes it; only one that is needed must have all of that."""
        sibling = self.siblings[name]
        lfs = sibling.get("lfs")
        stored = lfs if isinstance(lfs, dict) else sibling
        kind, key = ("sha256", "sha256") if stored is lfs else ("git", "blobId")
        size, digest = stored.get("size"), stored.get(key)
        is_known = isinstance(digest, str) or (digest is None and kind == "git")
        if type(size) is not int or size < 0 or not is_known:
            raise DownloadError(
                f"{shown(self.endpoint)} does not give the size and the hash of {name} in "
                f"{self.repository}; is it a Hub?",
                url=shown(self.endpoint),
            )
        return RemoteFile(
            name=name,
            url=f"{self.endpoint}/{self.repository}/resolve/{self.commit}/{name}",
            size=size,
            digests={kind: digest} if digest else {},
        )

    def pinned(self, known: PublishedFile, verify: bool) -> RemoteFile:
        """Return the file as the Hub and the catalogue describe it.

        Raises DownloadError if they disagree.
        """
        if known.name not in self.siblings:
            raise DownloadError(
                f"{self.repository} has no {known.name}, but should have; "
                f"is {shown(self.endpoint)} a Hub?",
                url=shown(self.endpoint),
            )
        file = self.remote(known.name)
        told = file.digests.get("sha256")
        other_hash = (
            verify and known.sha256 is not None and told is not None and told != known.sha256
        )
        if other_hash or (known.size is not None and known.size != file.size):
            raise DownloadError(
                f"{known.name} of {self.repository} is not the published file: "
                f"found {file.size:,} bytes, sha256 {told or 'unknown'}; "
                f"expected {known.size or file.size:,} bytes, sha256 {known.sha256}. "
                "To take it as it is now, add: --revision main",
                url=file.url,
            )
        digests = {**file.digests, **({"sha256": known.sha256} if known.sha256 else {})}
        return replace(file, digests=digests)


def token_of_user(patience: Patience) -> str | None:
    """Return the user's token if huggingface_hub finds one, in the environment or from a login."""
    from huggingface_hub import get_token

    if os.environ.get("HF_HUB_DISABLE_IMPLICIT_TOKEN", "").upper() in ("1", "ON", "YES", "TRUE"):
        return None
    try:
        # An expired login is renewed over the network.
        token = within(patience.connect + patience.read, get_token)
    except (OSError, ValueError, httpx2.HTTPError) as error:
        raise DownloadError(
            f"the saved login to the Hub failed ({type(error).__name__}); run: hf auth login"
        ) from error
    if token and (not token.isascii() or not token.isprintable() or " " in token):
        # The client's error message would quote it.
        raise DownloadError(
            "the Hub token (HF_TOKEN, or the one that `hf auth login` saved) has invalid "
            "characters; set it again"
        )
    return token


def _refusal(
    response: httpx2.Response, repository: str, revision: str | None, *, with_token: bool
) -> str:
    """Say what a response of the Hub with a status of 400 or above means and what to do."""
    status, code = response.status_code, response.headers.get("X-Error-Code", "")
    who = f"the Hub answered {status}: "
    if code == "GatedRepo":
        return (
            f"{who}{repository} is gated: accept its license at {HUB_URL}/{repository}, "
            "then run: hf auth login"
        )
    if code == "RevisionNotFound" or (
        status == 404 and "/revision/" in response.url.path and code != "RepoNotFound"
    ):
        return f"{who}{repository} has no revision {revision}; leave --revision out for the newest"
    if code == "EntryNotFound" or (
        status == 404 and "/resolve/" in response.url.path and code != "RepoNotFound"
    ):
        return (
            f"{who}{repository} has no file {response.url.path.rpartition('/')[2]} in this revision"
        )
    if status == 404 or code == "RepoNotFound" or (status == 401 and not with_token):
        return (
            f"{who}there is no repository {repository}, or it is private."
            f"{_similar(repository)} For a private one, run: hf auth login"
        )
    if status == 401:
        return f"{who}the token was not accepted; check HF_TOKEN, or run: hf auth login"
    if status == 403:
        token = " with this token" if with_token else ""
        return f"{who}{repository} may not be read{token}; ask its owner, or run: hf auth login"
    return f"{who}{repository} cannot be fetched"


def _similar(repository: str) -> str:
    """Return a sentence that names published repositories of a similar name, or nothing."""
    known = [
        publication.repository
        for publication in catalogue.PUBLICATIONS.values()
        if publication.repository != repository
    ]
    close = difflib.get_close_matches(repository, known, n=2, cutoff=0.6)
    return f" Did you mean {' or '.join(close)}?" if close else ""


def _needed(present: Collection[str], repository: str, config: Any) -> list[str]:
    """Choose the files of a repository that is not in the catalogue, the weights last."""
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind is not None and kind not in _MODEL_TYPES:
        raise DownloadError(f"{repository} is a {kind} model; gpt2kit reads GPT-2")
    texts = [name for name in TEXT_FILES if name in present]
    adapters = [name for name in ADAPTERS if name in present]
    is_whole = "config.json" in present and any(name.startswith(_STEMS) for name in present)
    if PEFT_FILE in present and adapters and not is_whole:
        return [*texts, PEFT_FILE, adapters[0]]
    if "config.json" not in present:
        raise DownloadError(f"{repository} has no config.json, so gpt2kit cannot read it")
    for stem, extension in _WEIGHTS:
        if (whole := f"{stem}.{extension}") in present:
            return [*texts, whole]
        if (index := f"{stem}.{extension}.index.json") in present:
            shards = sorted(
                name
                for name in present
                if re.fullmatch(rf"{stem}-\d{{5}}-of-\d{{5}}\.{extension}", name)
            )
            if not shards or int(shards[-1].rpartition(".")[0][-5:]) != len(shards):
                raise DownloadError(
                    f"{repository} has {index}, but only {len(shards)} of the files that it lists"
                )
            return [*texts, index, *shards]
    raise DownloadError(
        f"{repository} has no weights that gpt2kit reads: "
        "expected model.safetensors or pytorch_model.bin"
    )
