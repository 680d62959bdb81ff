"""What a user may decide about the preparation of a data set."""

from __future__ import annotations

import dataclasses
from typing import Literal

from grmlight.data.render import TextRows

Policy = Literal["keep", "drop", "raise"]


@dataclasses.dataclass(frozen=True)
class PrepareOptions:
    """How pairs become tokens. A changed option makes a new store.

    Attributes:
        max_length: longest prompt + response, in tokens; None for no limit.
        on_overlong: for a longer pair: "drop" it, "truncate_prompt" at its beginning, or "raise".
        on_bad_row: for a row that is no usable pair (empty, identical sides, broken roles, ...): "drop" or "raise".
        on_duplicate: for a pair seen before.
        on_contradiction: for a pair seen before with its sides swapped.
        on_tie: equal ratings or ranks: "drop" them, or "keep" them with a label of one half.
        stride: keep every stride-th usable pair; 2, 20 and 100 are the paper's 400K and 40K, and an 8K subset.
        offset: leave out the first `offset` pairs after that.
        limit: keep the first `limit` pairs after that; None for all.
        flip: fraction of pairs whose sides are swapped (rankings are turned around), as label noise.
        flip_seed: the noise's own seed.
        text_rows: prompts and responses given as plain text: "chat" makes messages of them, "plain" joins them as they
            are, "auto" takes "chat" if the tokenizer has a chat template.
        chat_template: a file with a Jinja template to use instead of the tokenizer's.
        paper_text: the GRM authors' text: a summarize instruction before summarization prompts, and a doubled BOS.
        paper_mask: the GRM authors' mask: everything after the first user message is in the language-model loss.
    """

    max_length: int | None = 1024
    on_overlong: Literal["drop", "truncate_prompt", "raise"] = "drop"
    on_bad_row: Literal["drop", "raise"] = "drop"
    on_duplicate: Policy = "keep"
    on_contradiction: Policy = "keep"
    on_tie: Literal["keep", "drop"] = "drop"
    stride: int = 1
    offset: int = 0
    limit: int | None = None
    flip: float = 0.0
    flip_seed: int = 0
    text_rows: TextRows = "auto"
    chat_template: str | None = None
    paper_text: bool = False
    paper_mask: bool = False

    def __post_init__(self) -> None:
        for name in ("max_length", "stride", "limit"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.offset < 0:
            raise ValueError(f"offset must be at least 0, got {self.offset}")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip is a fraction between 0 and 1, got {self.flip}")
