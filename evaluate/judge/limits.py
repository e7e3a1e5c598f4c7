"""What the replies of a judge may cost: requests, tokens, and money where prices are known."""

from dataclasses import dataclass


@dataclass(frozen=True)
class JudgeLimits:
    """What all replies of one judge together may cost. None is no limit."""

    max_requests: int | None = None
    max_tokens: int | None = None
    """In and out together."""
    max_cost: float | None = None
    """In the currency of the prices."""
    input_price: float | None = None
    """Of a million tokens."""
    output_price: float | None = None

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.input_price is None and self.output_price is None:
            raise ValueError(
                "expected prices beside --judge-max-cost, got none. Give --judge-input-price and --judge-output-price "
                "(of a million tokens), or limit tokens with --judge-max-tokens"
            )

    def cost(self, usage: "Usage") -> float | None:
        """Money; None where no price is known."""
        if self.input_price is None and self.output_price is None:
            return None
        spent = usage.input_tokens * (self.input_price or 0.0) + usage.output_tokens * (self.output_price or 0.0)
        return spent / 1e6

    def exceeded_by(self, usage: "Usage") -> str | None:
        """Which limit `usage` exceeds, in words."""
        cost = self.cost(usage)
        tokens = usage.input_tokens + usage.output_tokens
        if self.max_requests is not None and usage.requests > self.max_requests:
            return f"{self.max_requests:,} requests (--judge-max-requests)"
        if self.max_tokens is not None and tokens > self.max_tokens:
            return f"{self.max_tokens:,} tokens (--judge-max-tokens)"
        if self.max_cost is not None and cost is not None and cost > self.max_cost:
            return f"a cost of {self.max_cost:g} (--judge-max-cost)"
        return None


@dataclass(frozen=True)
class Usage:
    """Requests and their tokens."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
        )

    def __sub__(self, other: "Usage") -> "Usage":
        return self + Usage(-other.requests, -other.input_tokens, -other.output_tokens)


def in_words(usage: Usage, limits: JudgeLimits) -> str:
    """Requests, tokens, and money where prices are known."""
    cost = limits.cost(usage)
    money = "" if cost is None else f", a cost of {cost:.3g}"
    return f"{usage.requests:,} requests, {usage.input_tokens:,} tokens in and {usage.output_tokens:,} out{money}"
