"""Another value in the place of one of a library, for a while; and a library that keeps still."""

import contextlib
import io
import warnings
from collections.abc import Iterator, MutableMapping
from typing import Any


@contextlib.contextmanager
def attribute(owner: Any, name: str, value: object) -> Iterator[None]:  # noqa: ANN401 - a module or an object
    """`owner.name` is `value` inside, and what it was before afterwards."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """sae-bench prints every probe that it trains, and a bar for each batch; libraries warn of what it does."""
    silent = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with silent[0], silent[1], warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", UserWarning)
        yield


@contextlib.contextmanager
def unchecked_shapes() -> Iterator[None]:
    """Inside, jaxtyping compares no shapes: sae-bench 0.6.0 gives one name to two sizes (probe_training.py), which the
    versions that it was written with did not notice."""
    from jaxtyping import config

    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", before)


@contextlib.contextmanager
def entry(owner: MutableMapping[Any, Any], key: object, value: object) -> Iterator[None]:
    """`owner[key]` is `value` inside, and what it was before, or missing again, afterwards."""
    was_there, before = key in owner, owner.get(key)
    owner[key] = value
    try:
        yield
    finally:
        if was_there:
            owner[key] = before
        else:
            del owner[key]
