"""sae-bench's own data sets, from the hub: read by its code, and never by code of their authors."""

from collections.abc import Callable
from typing import Any


class HubUnreachable(ValueError):
    """The hub does not give a data set."""


def loading(revision: str | None) -> Callable[..., Any]:
    """`datasets.load_dataset` at the wanted revision, without the running of code; errors in words."""

    def load_dataset(name: str, *arguments: Any, **keywords: Any) -> Any:  # noqa: ANN401 - as datasets has it
        import datasets
        from huggingface_hub.errors import HfHubHTTPError

        if keywords.pop("trust_remote_code", False):
            raise HubUnreachable(
                f"expected a data set of plain files, but {name} runs code of its author. Leave it out"
            )
        try:
            return datasets.load_dataset(name, *arguments, revision=revision, **keywords)
        except (HfHubHTTPError, ConnectionError, FileNotFoundError, datasets.exceptions.DatasetsError) as error:
            first = str(error).strip().splitlines()
            raise HubUnreachable(
                f"expected the data set {name}{f' at {revision}' if revision else ''} from the hub, but "
                f"it does not give it ({first[0] if first else type(error).__name__}). Give it "
                "network access or a filled hub cache (HF_HOME), and a token in HF_TOKEN where it is gated"
            ) from error

    return load_dataset
