"""The hub's refusals and the network's absence, each as one sentence. Which hub: HF_ENDPOINT says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from infra.cli import WRONG_USE, UserError


@contextlib.contextmanager
def reaching_hub(what: str) -> Iterator[None]:
    """Raises UserError for what the hub refuses (exit code 2), or if it cannot be reached (exit code 1)."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.errors import HTTPError as AnyHTTPError  # type: ignore[attr-defined]  # of its HTTP library

    try:
        yield
    except HfHubHTTPError as error:
        raise UserError(f"the hub does not give {what}: {_first_line(error)}", code=WRONG_USE) from None
    except (OSError, AnyHTTPError) as error:
        raise UserError(
            f"cannot reach the hub at {constants.ENDPOINT} for {what}: {_first_line(error)}",
            next_command="run it again, name a mirror in HF_ENDPOINT, or give a folder with a copy instead of the name",
        ) from None


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
