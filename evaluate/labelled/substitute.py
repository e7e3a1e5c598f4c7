"""Gives labelled data sets to sae-bench's code, which knows its own by name only."""

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from evaluate.labelled.config import HubLabels, Labels
from evaluate.labelled.hub import loading
from evaluate.labelled.texts import LabelledTexts
from evaluate.substituted import attribute, entry, unchecked_shapes


def classes_of(labels: Labels, texts: LabelledTexts | None) -> list[str]:
    """The classes of a data set: sae-bench's choice of its own, all of others."""
    if texts is not None:
        return list(texts.train)
    from sae_bench.sae_bench_utils import dataset_info

    return list(dataset_info.chosen_classes_per_dataset[labels.name])


@contextlib.contextmanager
def known_to_sae_bench(labels: Labels, texts: LabelledTexts | None, *, classes: Sequence[str]) -> Iterator[None]:
    """Inside, sae-bench's functions find the data set under its name. Everything is as before afterwards.

    Args:
        labels: which one.
        texts: of one that is on this machine; None where all that is needed of it was kept, or the hub has it.
        classes: its classes.
    """
    from sae_bench.evals.scr_and_tpp import dataset_creation, main
    from sae_bench.sae_bench_utils import dataset_info, dataset_utils

    def read(name: str, *_: Any) -> tuple[dict[str, list[str]], dict[str, list[str]]]:  # noqa: ANN401 - sizes and seed
        if texts is None or name != labels.name:
            raise ValueError(f"expected sae-bench to ask for no texts of {name}: all of its set-up is kept")
        return dict(texts.train), dict(texts.test)

    with contextlib.ExitStack() as stack:
        stack.enter_context(unchecked_shapes())
        stack.enter_context(attribute(main, "pickle", SafeProbes))
        if isinstance(labels, HubLabels):
            for module in (dataset_utils, dataset_creation):
                stack.enter_context(attribute(module, "load_dataset", loading(labels.revision)))
        else:
            stack.enter_context(entry(dataset_info.chosen_classes_per_dataset, labels.name, list(classes)))
            stack.enter_context(attribute(dataset_utils, "get_multi_label_train_test_data", read))
            stack.enter_context(entry(main.COLUMN2_VALS_LOOKUP, labels.name, None))
        yield


class SafeProbes:
    """What sae-bench's tpp and scr call `pickle`: probes as safetensors, so that no file can run code."""

    @staticmethod
    def dump(value: dict[str, Any], file: BinaryIO) -> None:
        """Probes (Linear layers) by class, and their accuracies."""
        from safetensors.torch import save

        tensors = {
            f"{name}\n{key}": tensor.contiguous()
            for name, probe in value["llm_probes"].items()
            for key, tensor in probe.state_dict().items()
        }
        file.write(save(tensors, metadata={"llm_test_accuracies": json.dumps(value["llm_test_accuracies"])}))

    @staticmethod
    def load(file: BinaryIO) -> dict[str, Any]:
        """What `dump` wrote."""
        import struct

        from sae_bench.evals.sparse_probing.probe_training import Probe
        from safetensors.torch import load

        data = file.read()
        (size,) = struct.unpack("<Q", data[:8])
        accuracies = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["llm_test_accuracies"])
        states: dict[str, dict[str, Any]] = {}
        for name, tensor in load(data).items():
            probe, key = name.split("\n")
            states.setdefault(probe, {})[key] = tensor
        probes = {}
        for name in accuracies:
            if name not in states:
                continue  # scr's accuracies of one probe on another's data
            weight = states[name]["net.weight"]
            probes[name] = Probe(weight.shape[1], weight.dtype)
            probes[name].load_state_dict(states[name])
        return {"llm_probes": probes, "llm_test_accuracies": accuracies}
