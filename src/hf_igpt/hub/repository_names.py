"""Names of repositories on the Hub."""

from pathlib import Path


def is_repository(name: str) -> bool:
    """Whether a text has the form OWNER/NAME of a repository on the Hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def checked_repository(name: str) -> str:
    """The name, if it is a repository's. Raises ValueError otherwise."""
    if not is_repository(name):
        raise ValueError(f"`repo_id` must be OWNER/NAME, as on the Hub, got {name!r}.")
    return name


def hub_name(name: str | None) -> str | None:
    """A name, if it has the form of a repository's and is no path here; otherwise None."""
    return name if name and is_repository(name) and not Path(name).exists() else None
