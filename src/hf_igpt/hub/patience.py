"""Waiting for the Hub: so many times, so long, and then an error that says what to do."""

import json
import logging
import time
from collections.abc import Callable
from typing import Any, TypeVar

from hf_igpt.redaction import redact


T = TypeVar("T")
logger = logging.getLogger(__name__)

TRIES, FIRST_WAIT, LONGEST_WAIT = 5, 1.0, 60.0
# Seconds without a byte from the Hub; huggingface_hub's own limit is none.
SILENCE = 120.0
_CONFLICT, _LATER = 412, (408, 429, 500, 502, 503, 504)


class PublishingError(OSError):
    """The Hub refused, could not be reached, or holds something else than was sent. Nothing is half done."""


def limit_waiting() -> None:
    """
    Bounds what huggingface_hub waits for, in this process from now on: it has no time-out, and where an answer is 429
    or 503 it waits for as long as the Hub asks.
    """
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import get_session

    session = get_session()
    make, hooks = type(session), session.event_hooks
    if _refuse_long_waits in hooks["response"]:
        return
    hooks = {"request": hooks["request"], "response": [*hooks["response"], _refuse_long_waits]}
    set_client_factory(lambda: make(event_hooks=hooks, follow_redirects=True, timeout=SILENCE))


def patiently(call: Callable[[], T]) -> T:
    """Calls the Hub, again where it was busy or the connection broke. Only for what may be done twice."""
    for wait in waits():
        try:
            return call()
        except Exception as error:
            explain_or_wait(error, wait)
    raise AssertionError("the last wait is None, which raises")


def waits() -> list[float | None]:
    """Seconds between tries; None after the last."""
    return [*(min(LONGEST_WAIT, FIRST_WAIT * 2**index) for index in range(TRIES - 1)), None]


def explain_or_wait(error: Exception, wait: float | None, repo_id: str | None = None) -> None:
    """
    Waits if trying again may help; raises otherwise.

    Args:
        wait: seconds; None if this was the last try.
        repo_id: of a commit that was tried.

    Raises:
        PublishingError: with what the Hub said and what to do.
        Exception: the error itself, if it isn't about the connection to the Hub.
    """
    if (cause := _network_error(error)) is None:
        raise error
    response = getattr(cause, "response", None)
    status = None if response is None else response.status_code
    text = " ".join(redact(str(cause) or type(cause).__name__).split()).rstrip(".")
    if status == _CONFLICT and repo_id is not None:
        raise PublishingError(
            f"Somebody else pushed to {repo_id} meanwhile. Nothing was overwritten. Look at what is there now, then "
            f"publish again with its newest commit as `--parent_commit`. ({text})"
        ) from error
    if status is not None and status not in _LATER:
        raise PublishingError(f"The Hub refused: {text}") from error
    if wait is None:
        raise PublishingError(
            f"The Hub could not be reached or was busy, {TRIES} times: {text}. Nothing is half done: run the same "
            "command again."
        ) from error
    seconds = _asked_wait(response) or wait
    logger.warning("The Hub did not answer as it should (%s). Next try in %.0f s.", text, seconds)
    time.sleep(seconds)


def _network_error(error: BaseException) -> BaseException | None:
    """
    The error of the HTTP library behind an exception of huggingface_hub, which wraps some in others; or of reading an
    answer that is no JSON, such as a proxy's page.
    """
    # huggingface_hub's own name for its HTTP library's base class: the library has changed with its versions.
    from huggingface_hub.errors import HTTPError

    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (HTTPError, json.JSONDecodeError)) and not isinstance(seen, PublishingError):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _asked_wait(response: Any) -> float | None:
    """The seconds that the Hub asks to wait, up to a limit."""
    asked = "" if response is None else response.headers.get("Retry-After", "")
    return min(LONGEST_WAIT, float(asked)) if asked.isdigit() else None


def _refuse_long_waits(response: Any) -> None:
    asked = response.headers.get("Retry-After", "")
    if response.status_code in _LATER and asked.isdigit() and int(asked) > LONGEST_WAIT:
        raise PublishingError(f"The Hub is busy and asks to wait {asked} s. Nothing is half done: try again then.")
