"""The files of a model as the Hugging Face Hub describes them.

One request gives the commit, and the size and hash of each file. The answer is compared with the
catalogue. Every failure is a DownloadError.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import httpx2

from gpt2kit.errors import DownloadError
from gpt2kit.store import catalogue
from gpt2kit.store.catalogue import PublishedFile
from gpt2kit.store.folders import PEFT_FILE
from gpt2kit.store.lookup import SAE_ID
from gpt2kit.store.manifest import PLAIN_NAME
from gpt2kit.store.parts import RemoteFile
from gpt2kit.store.retries import Interrupted, Patience, Progress, Tries, shown, within
from gpt2kit.store.sources import Plan, advice_on_failure, base_address
from gpt2kit.store.transfer import Transfer, judge

if TYPE_CHECKING:
    from huggingface_hub import HfApi, ModelInfo

HUB_URL = "https://huggingface.co"

# Fetched from a repository that is not in the catalogue: those of these files that it has, and the
# first of these kinds of weights.
TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "added_tokens.json",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
    "sentencepiece.bpe.model",
    "labels.json",  # words by which the model labels texts
    "gpt2kit_tokenizer.json",  # of characters or words, in models that gpt2kit pushed
)
_WEIGHTS = (("model", "safetensors"), ("pytorch_model", "bin"))
_STEMS = tuple(f"{stem}." for stem, _ in _WEIGHTS)
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # of PEFT, beside PEFT_FILE
_MODEL_TYPES = ("gpt2", "gpt2kit")


def hub_plan(
    model: str, revision: str | None, verify: bool, patience: Patience, progress: Progress
) -> Plan:
    """Ask the Hub for the commit, sizes and hashes of a model, and choose its files."""
    from huggingface_hub import HfApi

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
    # False: no other token either that huggingface_hub might find.
    api = HfApi(endpoint=endpoint, token=token or False, library_name="gpt2kit")
    tries = Tries(patience, progress, patience.lookups, advice)
    info = _model_info(api, repository, revision, refusal, tries, patience)
    commit = _commit(info, repository, endpoint)
    described = _described(info, repository, endpoint, commit)
    if sae:
        files = _files_of_sae(info, repository, endpoint, commit, sae[2])
    elif publication and revision is None:
        files = [
            _pinned(file, described, repository, endpoint, verify) for file in publication.hub_files
        ]
    else:
        files = [described[name]() for name in _needed(described, repository, info.config)]

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

    origin = model if sae else repository  # what is typed to have these files again
    return Plan(source="hub", repository=origin, revision=commit, files=files, transfer=transfer)


def _files_of_sae(
    info: ModelInfo, repository: str, endpoint: str, commit: str, inner: str
) -> list[RemoteFile]:
    """Choose the files of a sparse autoencoder: a folder, or a .pt with what describes it."""
    siblings = {each.rfilename: each for each in info.siblings or ()}
    if inner.endswith(".pt"):
        needed, optional = [inner], [f"{inner.removesuffix('.pt')}_cfg.json"]
    else:
        needed = [f"{inner}/cfg.json", f"{inner}/sae_weights.safetensors"]
        optional = [f"{inner}/sparsity.safetensors"]
    if missing := [name for name in needed if name not in siblings]:
        folders = sorted(name.rpartition("/")[0] for name in siblings if name.endswith("/cfg.json"))
        known = [*folders, *(name for name in siblings if name.endswith(".pt"))]
        advice = (
            f"; it has {', '.join(known[:4])}{', …' if len(known) > 4 else ''}" if known else ""
        )
        raise DownloadError(f"{repository} has no {missing[0]}{advice}")
    chosen = [name for name in (*needed, *optional) if name in siblings]
    files = [_remote(siblings[name], repository, endpoint, commit) for name in chosen]
    return [replace(file, name=file.name.rpartition("/")[2]) for file in files]


def _commit(info: ModelInfo, repository: str, endpoint: str) -> str:
    """Return the commit that a description is of; raise DownloadError if it names none."""
    commit = info.sha
    if isinstance(commit, str) and re.fullmatch(r"[A-Za-z0-9]{1,64}", commit):
        return commit
    raise DownloadError(
        f"{shown(endpoint)} does not name the commit of {repository}; is it a Hub?",
        url=shown(endpoint),
    )


def _described(
    info: ModelInfo, repository: str, endpoint: str, commit: str
) -> dict[str, Callable[[], RemoteFile]]:
    """Return, for each file at the top of the repository, a function that gives its description.

    Only files that are needed must have a valid one.
    """
    return {
        sibling.rfilename: functools.partial(_remote, sibling, repository, endpoint, commit)
        for sibling in info.siblings or ()
        if PLAIN_NAME.fullmatch(sibling.rfilename)
    }


def _model_info(
    api: HfApi,
    repository: str,
    revision: str | None,
    refusal: Callable[[httpx2.Response], str],
    tries: Tries,
    patience: Patience,
) -> ModelInfo:
    """Return the Hub's description of a repository; errors of huggingface_hub are translated."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    url = f"{api.endpoint}/api/models/{repository}"
    while True:
        try:
            return within(
                patience.connect + patience.read,
                lambda: api.model_info(
                    repository, revision=revision, files_metadata=True, timeout=patience.read
                ),
            )
        except HfHubHTTPError as error:
            failure = judge(error.response, url, refusal)
            if isinstance(failure, DownloadError):
                raise failure from error
        except (HFValidationError, OfflineModeIsEnabled) as error:
            raise DownloadError(str(error)) from error
        except (httpx2.HTTPError, OSError) as error:
            failure = Interrupted.by(error)
        except (ValueError, KeyError, TypeError, AttributeError, httpx2.InvalidURL) as error:
            message = (
                f"{shown(url)} answered with something else than the description of a model: "
                "is there a proxy or login page in between?"
            )
            raise DownloadError(message, url=shown(url)) from error
        tries.failed(failure, url)


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


def _remote(sibling: Any, repository: str, endpoint: str, commit: str) -> RemoteFile:
    """Return the file as the Hub describes it."""
    name = sibling.rfilename
    size = sibling.lfs.size if sibling.lfs else sibling.size
    if type(size) is not int or size < 0:
        raise DownloadError(
            f"{shown(endpoint)} does not give the size of {name} in {repository}; is it a Hub?",
            url=shown(endpoint),
        )
    if sibling.lfs:
        digests = {"sha256": sibling.lfs.sha256}
    else:
        digests = {"git": sibling.blob_id} if sibling.blob_id else {}
    return RemoteFile(
        name=name,
        url=f"{endpoint}/{repository}/resolve/{commit}/{name}",
        size=size,
        digests=digests,
    )


def _pinned(
    known: PublishedFile,
    described: Mapping[str, Callable[[], RemoteFile]],
    repository: str,
    endpoint: str,
    verify: bool,
) -> RemoteFile:
    """Return the file as the Hub and the catalogue describe it.

    Raises DownloadError if they disagree.
    """
    if known.name not in described:
        raise DownloadError(
            f"{repository} has no {known.name}, but should have; is {shown(endpoint)} a Hub?",
            url=shown(endpoint),
        )
    file = described[known.name]()
    told = file.digests.get("sha256")
    other_hash = verify and known.sha256 is not None and told is not None and told != known.sha256
    if other_hash or (known.size is not None and known.size != file.size):
        raise DownloadError(
            f"{known.name} of {repository} is not the published file: found {file.size:,} bytes, "
            f"sha256 {told or 'unknown'}; expected {known.size or file.size:,} bytes, "
            f"sha256 {known.sha256}. To take it as it is now, add: --revision main",
            url=file.url,
        )
    digests = {**file.digests, **({"sha256": known.sha256} if known.sha256 else {})}
    return RemoteFile(name=file.name, url=file.url, size=file.size, digests=digests)
