"""The text that every Python carries."""

import subprocess
import sys

from language_model.standard_library import MODULES, corpus_digest, documents


def test_every_module_of_the_list_is_found_once() -> None:
    names = [name for name, _ in documents()]
    assert len(names) == len(set(names)) > 300
    assert {name.split("/")[0].removesuffix(".py") for name in names} == set(MODULES)
    assert not [name for name in names if "/test" in name]


def test_the_digest_is_the_same_in_another_process() -> None:
    code = "from language_model.standard_library import corpus_digest; print(corpus_digest())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == corpus_digest()
