"""A folder with a model and its card, put into a repository of the user's on the Hub.

Every failure is a DownloadError, as it is when a model is fetched.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from gpt2kit.errors import ConfigError, DownloadError
from gpt2kit.store.folders import CARD_FILE, HUB_FILES
from gpt2kit.store.hub import HUB_URL, token_of_user
from gpt2kit.store.lookup import HUB_ID
from gpt2kit.store.retries import Patience, plainly, shown
from gpt2kit.store.sources import advice_on_failure, base_address


@dataclass(frozen=True)
class Pushed:
    """Where a model is now."""

    url: str
    kept_card: bool  # whether the repository had a README.md, which was left as it is


def check_repository(repository: str) -> None:
    """Raise ConfigError unless this is the name of a repository with its owner: user/name."""
    if not HUB_ID.fullmatch(repository):
        raise ConfigError(
            f"the repository is {repository!r}, expected USER/NAME in letters, digits, and . _ -; "
            "`hf auth whoami` prints your user name"
        )


def require_token() -> str:
    """Return the token of the user; raise DownloadError, which says how to log in, if none."""
    token = token_of_user(Patience())
    if token is None:
        raise DownloadError("pushing needs a token of the Hub; set HF_TOKEN, or run: hf auth login")
    return token


def push_folder(
    folder: Path, repository: str, *, public: bool = False, replace_card: bool = False
) -> Pushed:
    """Upload a folder, and delete what an earlier model in the repository has beside it.

    - `public`: make a new repository public. Nothing is pushed to a repository that exists with
      another visibility.
    - `replace_card`: replace a README.md that the repository has

    Raises ConfigError for a name that is not of the form user/name, DownloadError for the rest.
    """
    from huggingface_hub import HfApi

    check_repository(repository)
    endpoint = base_address(os.environ.get("HF_ENDPOINT") or HUB_URL, "HF_ENDPOINT")
    api = HfApi(endpoint=endpoint, token=require_token(), library_name="gpt2kit")
    url = f"{shown(endpoint).rstrip('/')}/{repository}"
    with _one_line(repository, endpoint):
        api.create_repo(repository, private=not public, exist_ok=True)
        info = api.model_info(repository)
        _check_visibility(info, repository, url, public)
        has_card = any(each.rfilename == CARD_FILE for each in info.siblings or ())
        is_kept = has_card and not replace_card
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            commit_message="Upload a model with gpt2kit",
            ignore_patterns=[CARD_FILE] if is_kept else None,
            # They would be read together with the new model.
            delete_patterns=list(HUB_FILES),
        )
    return Pushed(url, is_kept)


def _check_visibility(info: Any, repository: str, url: str, public: bool) -> None:
    """Raise DownloadError if a repository that existed before is not as private as asked."""
    if info.private is None or info.private != public:
        return
    if public:
        raise DownloadError(
            f"{repository} exists and is private, so nothing was pushed; leave out --public, or "
            f"make it public at {url}/settings"
        )
    raise DownloadError(
        f"{repository} exists and is public, so nothing was pushed; add --public to push there, "
        "or name another repository"
    )


@contextlib.contextmanager
def _one_line(repository: str, endpoint: str) -> Iterator[None]:
    """Translate errors of huggingface_hub into a DownloadError that says what to do."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except HfHubHTTPError as error:
        raise DownloadError(_refusal(error.response.status_code, repository)) from error
    except OfflineModeIsEnabled as error:
        raise DownloadError(
            f"{repository} was not pushed: HF_HUB_OFFLINE forbids the network; unset it"
        ) from error
    except HFValidationError as error:
        raise DownloadError(" ".join(str(error).split())) from error
    except (ValueError, KeyError, TypeError) as error:
        raise DownloadError(
            f"{shown(endpoint)} answered with something else than a Hub does, so {repository} may "
            "be incomplete: is there a proxy or login page in between?"
        ) from error
    except (httpx2.HTTPError, OSError, RuntimeError) as error:  # RuntimeError: of hf_xet
        advice = advice_on_failure(endpoint, "HF_ENDPOINT", "", unreachable=True)
        raise DownloadError(
            f"{repository} was not pushed to {shown(endpoint)}: {plainly(error)}. {advice}"
        ) from error


def _refusal(status: int, repository: str) -> str:
    """Say what a status of 400 or above means and what to do."""
    who = f"the Hub answered {status}: "
    if status == 401:
        return f"{who}the token was not accepted; check HF_TOKEN, or run: hf auth login"
    if status in (403, 404):
        owner = repository.partition("/")[0]
        return (
            f"{who}this token may not write to {repository}; it must have the role `write`, and "
            f"{owner} must be you or an organization of yours (see: hf auth whoami)"
        )
    return f"{who}{repository} was not pushed; try again later"
