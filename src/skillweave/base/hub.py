"""Download from the Hugging Face hub; what goes wrong there is told in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from skillweave.errors import UserError


def download(
    name: str, parts: Sequence[str], *, revision: str | None = None, what: str, forms: str, offline: str
) -> Path:
    """The folder of a hub repository, with its files that match ``parts``; what was downloaded is found offline too.

    For the messages: ``what`` the repository is, the ``forms`` in which a person can name one, and what else to name
    without a network (``offline``). Raises :class:`UserError`.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(parts)))
    except GatedRepoError as error:
        raise UserError(
            f"the hub asks you to accept the terms of '{name}' first: do so on its page, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise UserError(f"the hub has no {what} '{name}', and there is no such folder here: name {forms}") from error
    except RevisionNotFoundError as error:
        raise UserError(
            f"--revision {revision}: the hub's repository '{name}' has no such branch, tag or commit"
        ) from error
    except HFValidationError as error:
        raise UserError(f"'{name}' is no folder here and no name that the hub allows: name {forms}") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise UserError(
            f"'{name}' is no folder here, and the hub cannot be reached ({type(error).__name__}). "
            f"Without a network, name {offline}."
        ) from error
