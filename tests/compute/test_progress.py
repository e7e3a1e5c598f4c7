"""What a command says while it works: phases first, counts within a batch, and lines where there is no terminal."""

import io
import threading

import pytest
import torch
from torch import nn

import compute.progress
from compute.progress import amount, counting_layers, duration, phase, progress, say


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compute.progress.EVERY_SECONDS", 0.02)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_phase_is_said_before_it_begins(capsys: pytest.CaptureFixture[str]) -> None:
    with phase("harvest", "loading the language model"):
        assert capsys.readouterr().err == "harvest: loading the language model ...\n"
    assert capsys.readouterr().err == ""  # it took no time


def test_a_long_phase_is_said_to_go_on_and_how_long_it_took(
    ticks: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compute.progress._WORTH_SAYING_SECONDS", 0.01)
    with phase("harvest", "compiling"):
        threading.Event().wait(0.2)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "harvest: compiling ..."
    assert said[1].startswith("harvest: still compiling (0.")
    assert said[-1].startswith("harvest: compiling took 0.")


def test_without_a_terminal_a_count_is_lines_that_come_whether_or_not_it_moves(
    ticks: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("harvest", total=200, unit="row", done=100) as count:
        count.update(20)
        threading.Event().wait(0.15)
    said = capsys.readouterr().err
    assert "\r" not in said
    lines = said.splitlines()
    assert len(lines) >= 3
    assert lines[0].startswith("harvest: 120 of 200 rows (60%), ")
    assert lines[-1].startswith("harvest: 120 rows in 0.")


def test_a_short_count_says_nothing_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("harvest", total=2, unit="row") as count:
        count.update(2)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_count_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    with progress("harvest", total=4000, unit="row", done=1000) as count:
        count.update(3000)
        count.detail("EV 0.9")
    assert "harvest: 100%" in terminal.getvalue()
    assert "4.00k/4.00k" in terminal.getvalue()


def test_a_count_moves_within_a_batch_and_is_exact_behind_it(capsys: pytest.CaptureFixture[str]) -> None:
    layers = [nn.Linear(2, 2) for _ in range(4)]
    seen = []
    with progress("harvest", total=200, unit="row") as count:
        layers[-1].register_forward_hook(lambda *_: seen.append(count.line().split(",")[0]))
        with counting_layers(layers, count.within, per_sequence=50.0), torch.inference_mode():
            for layer in layers:
                layer(torch.zeros(2, 3, 2))
                seen.append(count.line().split(",")[0])
        count.update(100)
        assert count.done == 100
        assert count.line().startswith("100 of 200 rows (50%)")
        layers[0](torch.zeros(1, 2))  # nobody counts any more
        assert count.line().startswith("100 of 200 rows (50%)")
    assert seen == [
        f"{rows} of 200 rows ({share}%)" for rows, share in ((25, 12), (50, 25), (75, 38), (75, 38), (100, 50))
    ]


def test_a_smaller_last_batch_counts_for_what_it_is() -> None:
    layers = [nn.Linear(2, 2), nn.Identity()]
    with progress("harvest", total=300, unit="row") as count:
        with counting_layers(layers, count.within, per_sequence=100.0), torch.inference_mode():
            for number_of_sequences in (2, 1):
                for layer in layers:
                    layer(torch.zeros(number_of_sequences, 3, 2))
                if number_of_sequences == 2:
                    count.update(200)
        assert count.line().startswith("300 of 300 rows (100%)")


def test_a_count_that_is_looked_up_never_goes_back() -> None:
    with progress("train", total=None, unit="SAE-token") as count:
        count.reach(50)
        count.reach(20)
        assert count.done == 50
        assert count.line().startswith("50 SAE-tokens, ")


def test_numbers_and_times_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    numbers = [0.5, 7, 999, 1000, 12_345, 999_900, 50_000_000, 2.3e12]
    assert [amount(n) for n in numbers] == ["0.5", "7", "999", "1k", "12.3k", "1M", "50M", "2.3T"]
    seconds = [0.04, 9.9, 12, 59.8, 200, 3599.9, 22_320, 86_399, 187_200]
    assert [duration(s) for s in seconds] == [
        "0.0 s", "9.9 s", "12 s", "1 min 0 s", "3 min 20 s", "1 h 0 min", "6 h 12 min", "1 d 0 h", "2 d 4 h",
    ]  # fmt: skip
    say("harvest", "a word")
    assert capsys.readouterr().err == "harvest: a word\n"
    assert compute.progress.EVERY_SECONDS == 30.0
