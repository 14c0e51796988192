"""Errors of the Hub's client, explained in one sentence each."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

# httpx's base class of request errors, taken from whichever distribution of httpx the client uses
HTTPError = HfHubHTTPError.__mro__[1]


@contextmanager
def explain_hub_errors(repo_id: str) -> Iterator[None]:
    """Turns the client's errors into an `OSError` that says what happened to `repo_id` and what to
    do.

    Raises:
        FileNotFoundError: If the repository, the revision or a file does not exist on the Hub or,
            offline, in the cache.
        PermissionError: If the token is not accepted or lacks the permission.
        ConnectionError: If the connection broke or the Hub cannot be reached.
        OSError: If the Hub refused for another reason.
    """
    try:
        yield
    except GatedRepoError as error:
        raise PermissionError(
            f"Access to {repo_id} must be requested on its page; then log in with `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no folder {repo_id} here, and no repository {repo_id} on the Hub, or it is private "
            "and the token gives no access: check the name, or log in with `hf auth login` or pass `token`."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"The repository {repo_id} has no such revision: {reason(error)}"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise FileNotFoundError(
            f"There is no folder {repo_id} here, and the repository {repo_id} is not in the cache, or only in "
            "part, while the Hub is unreachable or disabled (`HF_HUB_OFFLINE`, `local_files_only`): check the "
            "name, or load it once with a connection."
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"A file is missing in the repository {repo_id}: {reason(error)}"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status == 401:
            raise PermissionError(
                f"The Hub does not accept the token for {repo_id} (status {status}): log in with "
                f"`hf auth login` or pass another `token`. The Hub says: {reason(error)}"
            ) from error
        if status == 403:
            raise PermissionError(
                f"The token gives no permission for this on {repo_id} (status {status}): use a "
                f"token that may write there. The Hub says: {reason(error)}"
            ) from error
        raise OSError(
            f"The Hub refused a request for {repo_id} (status {status}): {reason(error)}"
        ) from error
    except (HTTPError, ConnectionError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "uploading" not in str(
            error
        ):  # the client's word for a cut upload
            raise
        raise ConnectionError(
            f"The connection to the Hub broke at {repo_id} ({type(error).__name__}: "
            f"{first_line(error)}). Uploads are atomic and downloads resume: try again."
        ) from error


@contextmanager
def explain_loading_errors(path: str | Path | None) -> Iterator[None]:
    """Same as `explain_hub_errors`, for client errors that transformers or diffusers wrapped in
    their own."""
    try:
        yield
    except (OSError, HTTPError) as error:
        cause = client_error(error)
        if cause is None or path is None or Path(path).is_dir():
            raise
        with explain_hub_errors(str(path)):
            raise cause from None


def client_error(error: BaseException | None) -> BaseException | None:
    """Finds the client's error in an error's chain of causes; None if there is none."""
    seen = []
    while error is not None and error not in seen:
        if isinstance(error, HTTPError | LocalEntryNotFoundError | OfflineModeIsEnabled):
            return error
        seen.append(error)
        error = error.__cause__ or error.__context__
    return None


def reason(error: HfHubHTTPError) -> str:
    """Returns the missing file, or the Hub's message."""
    if isinstance(error, EntryNotFoundError):
        return unquote(error.response.url.path.partition("/resolve/")[2].partition("/")[2])
    return " ".join((error.server_message or first_line(error)).split())


def first_line(error: Exception) -> str:
    """Returns the first non-empty line of an error's message, or its type."""
    return next(
        (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
    )
