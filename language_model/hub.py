"""A hub that does not answer, found out in seconds.

The hub's libraries ask again and again: for 25 seconds where nothing listens, for minutes where something listens and
is silent. So one question is asked first, with a limit; without an answer the libraries take what they have here.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Final

import httpx2
from huggingface_hub import constants, get_session

ANSWER_SECONDS: Final = 5.0
"""For a first answer, unless HF_HUB_ETAG_TIMEOUT, the libraries' own variable, allows more."""
_SWITCH = "HF_HUB_OFFLINE"
"""Of both libraries, read each time that they would ask."""
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")


@contextlib.contextmanager
def asking_hub() -> Iterator[None]:
    """While the block runs, the hub's libraries ask a hub that answers, and are offline where it does not.

    They then give what is in their caches, and raise at once for what is not: see `hub_problem`.
    """
    if _forbidding() or hub_answers():
        yield
        return
    modules = [constants, *(sys.modules[name] for name in ("datasets.config",) if name in sys.modules)]
    before = [getattr(module, _SWITCH) for module in modules]
    try:
        for module in modules:
            setattr(module, _SWITCH, True)
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            setattr(module, _SWITCH, value)


def hub_answers() -> bool:
    """Whether the hub gives any answer, whatever it says."""
    seconds = ANSWER_SECONDS
    if constants.HF_HUB_ETAG_TIMEOUT != constants.DEFAULT_ETAG_TIMEOUT:
        seconds = constants.HF_HUB_ETAG_TIMEOUT
    try:
        get_session().head(constants.ENDPOINT, timeout=seconds)
    except httpx2.HTTPError:
        return False
    return True


def hub_problem(error: Exception) -> str:
    """Why the hub gave nothing, in words: who forbids to ask it, what it answered, or that nothing answered."""
    if forbidding := _forbidding():
        return f"{', '.join(forbidding)} forbids to ask the hub: unset it where the hub can be reached"
    where = os.environ.get("HF_ENDPOINT") or "huggingface.co"
    response = getattr(error, "response", None)
    if response is not None:
        return f"the hub at {where} answered with status {response.status_code}"
    return f"the hub could not be reached at {where} from this machine: no connection, a proxy, or it is down"


def _forbidding() -> list[str]:
    """The variables that forbid to ask."""
    return [name for name in _OFFLINE_VARIABLES if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
