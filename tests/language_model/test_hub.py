"""A hub that does not answer is asked once."""

from pathlib import Path

import datasets
import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from harvest.hub import hub_texts
from harvest.text import BadText
from harvest.text_config import HubText
from language_model.hub import asking_hub, hub_answers
from language_model.load import ModelUnavailable, resolve
from tests.hub_server import hub, point_libraries_at, silent_hub

CLOSED = "http://127.0.0.1:9"
"""Nothing listens on the discard port."""
TEXT = HubText(kind="hub", dataset="someone/stories", config="default", revision="0" * 40, split="train", column="text")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable forbids to ask, a third of a second is enough, and nobody waits for another try."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("language_model.hub.ANSWER_SECONDS", 0.3)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: pytest.fail("waits for another try"))


def test_a_closed_port_is_found_out_without_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_libraries_at(CLOSED, tmp_path, monkeypatch)
    assert not hub_answers()
    with pytest.raises(ModelUnavailable, match=r"could not be fetched: the hub could not be reached at"):
        resolve("google/gemma-2-2b", "main")
    with pytest.raises(BadText, match=r"could not read the hub data set 'someone/stories'.*the hub could not be"):
        list(hub_texts(TEXT))


def test_a_server_that_never_answers_is_asked_once_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_hub() as (address, connections):
        point_libraries_at(address, tmp_path, monkeypatch)
        with pytest.raises(ModelUnavailable, match=r"could not be fetched: the hub could not be reached at"):
            resolve("google/gemma-2-2b", "main")
        assert len(connections) == 1
        with pytest.raises(BadText, match=r"could not read the hub data set 'someone/stories'.*the hub could not be"):
            list(hub_texts(TEXT))
        assert len(connections) == 2


def test_libraries_are_offline_inside_only_and_only_where_the_hub_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point_libraries_at(CLOSED, tmp_path, monkeypatch)
    with asking_hub():
        assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (True, True)
        with pytest.raises(LocalEntryNotFoundError):
            huggingface_hub.snapshot_download("google/gemma-2-2b")
    assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (False, False)
    with hub(tmp_path) as address:
        point_libraries_at(address, tmp_path, monkeypatch)
        assert hub_answers()  # with 404, which is an answer
        with asking_hub():
            assert (constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE) == (False, False)


def test_a_variable_that_forbids_to_ask_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with silent_hub() as (address, connections):
        point_libraries_at(address, tmp_path, monkeypatch)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with asking_hub():
            pass
        assert not connections
