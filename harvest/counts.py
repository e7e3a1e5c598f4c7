"""What becomes of one part of a text, counted while it is packed."""

from dataclasses import dataclass, field
from typing import Self

from store.cache.split import SPLITS, Split
from store.cache.text_account import PartAccount


@dataclass
class PartCount:
    """As a PartAccount, while it is counted."""

    num_documents: int = 0
    num_characters: int = 0
    num_tokens: int = 0
    num_filtered_documents: int = 0
    num_empty_documents: int = 0
    documents: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    tokens: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    total: int = 0
    """Documents that the part has; 0 until its last one is read."""

    @classmethod
    def of(cls, part: PartAccount, *, total: int) -> Self:
        """What was counted by the time of an account."""
        return cls(
            num_documents=part.num_documents,
            num_characters=part.num_characters,
            num_tokens=part.num_tokens,
            num_filtered_documents=part.num_filtered_documents,
            num_empty_documents=part.num_empty_documents,
            documents={"training": part.num_training_documents, "held_out": part.num_held_out_documents},
            tokens={"training": part.num_training_tokens, "held_out": part.num_held_out_tokens},
            total=total,
        )

    def account(self, *, name: str, source: int) -> PartAccount:
        """What was counted so far."""
        return PartAccount(
            name=name,
            source=source,
            num_documents=self.num_documents,
            num_characters=self.num_characters,
            num_tokens=self.num_tokens,
            num_training_documents=self.documents["training"],
            num_training_tokens=self.tokens["training"],
            num_held_out_documents=self.documents["held_out"],
            num_held_out_tokens=self.tokens["held_out"],
            num_filtered_documents=self.num_filtered_documents,
            num_empty_documents=self.num_empty_documents,
            was_read_to_its_end=0 < self.total == self.num_documents,
        )
