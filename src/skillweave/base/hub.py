"""Download from the Hugging Face hub, with its errors as one plain sentence each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from skillweave.errors import UserError


def download(
    name: str, parts: Sequence[str], *, revision: str | None = None, what: str, forms: str, offline: str
) -> Path:
    """The folder of a hub repository, with its files that match ``parts``. A downloaded one is found offline too.

    Args:
        name: ``owner/name``.
        parts: Patterns of file names.
        revision: A branch, tag or commit; None is the default branch.
        what: What the repository is, for messages ("model").
        forms: The ways to name such a thing, for messages.
        offline: What else to name without a network, for messages.

    Raises :class:`UserError` if the repository cannot be downloaded.
    """
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(parts)))
    except GatedRepoError as error:
        raise UserError(
            f"the hub asks you to accept the terms of '{name}' first: do so on its page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(
            f"the hub has no {what} '{name}', and there is no such folder in {Path.cwd()}: name {forms}"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"--revision {revision}: the hub's repository '{name}' has no such branch, tag or commit"
        ) from error
    except HFValidationError as error:
        raise UserError(
            f"there is no folder '{name}' in {Path.cwd()}, and the hub allows no such name: name {forms}"
        ) from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"there is no folder '{name}' in {Path.cwd()}, and the hub cannot be reached ({type(error).__name__}). "
            f"Correct the path; without a network, name {offline}."
        ) from error
