"""The Rust extension: read, normalize and lint pairs; encode; share the prompt; store; deal; pack."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "DataError",
    "Pairs",
    "Store",
    "StoreWriter",
    "deal_step",
    "deal_steps",
    "epoch_order",
    "pack_bins",
    "read_pairs",
]

class DataError(ValueError):
    """Data that cannot be used, named by file and row, with what to do."""

@final
class Pairs:
    """Rows read, normalized and linted: the usable groups, and what was refused and why."""

    @property
    def rows(self) -> int:
        """Rows seen in the input; blank lines are none, but count as row numbers."""

    @property
    def skipped(self) -> int:
        """Usable rows left out by the stride."""

    @property
    def refused(self) -> dict[str, list[int]]:
        """Reason to row numbers (1-based) of rows that are not used.

        Reasons: invalid_json, unknown_columns, non_string, empty, identical, response_count, prompt_differs,
        role_order, tie, ranking_differs, bad_number, duplicate, contradiction. A store adds over_length, identical (as
        tokens), identical_after_truncation, template, empty_response_tokens.
        """

    @property
    def noted(self) -> dict[str, list[int]]:
        """Finding to row numbers of rows that are used nevertheless (duplicate, contradiction, tie: its ties are not)."""

    def __len__(self) -> int:
        """Usable groups."""

    def group(self, index: int) -> tuple[list[dict[str, str]] | str, list[list[dict[str, str]] | str]]:
        """The prompt and its responses, a pair's chosen one first: messages for chats, text for plain groups."""

    def row(self, index: int) -> int:
        """The source row (1-based) of a group."""

    def id(self, index: int) -> str:
        """The `id` of a group (a whole number as text), or its row as text."""

    def category(self, index: int) -> str | None:
        """The `category` of a group."""

def read_pairs(source: str | bytes, options: Mapping[str, Any]) -> Pairs:
    """Read JSON lines from a path (plain or gz) or from bytes.

    Row formats, by columns:
        prompt, chosen, rejected: text or messages, mixed as well. If the prompt is text and both responses are whole
            conversations, the prompt column is passed over.
        chosen, rejected: whole conversations (prompt: all but the last message), raw transcripts of hh-rlhf, or whole
            texts (the prompt stays empty).
        conv_A, conv_B, conv_A_rating, conv_B_rating: the higher rating is chosen, margin is the difference.
        prompt, responses, and ratings (higher is better, margins are the differences) or ranks (1 is the best), a number a
            response: a group of 2 to 256 responses with a comparison of each two; ratings and ranks must agree.
        Also used where present: id, source, category, capability (pairs of different ones repeat nothing), margin,
            weight (1), soft_label (1), and chosen_score with rejected_score, whose difference is the margin. A column
            that is null counts as absent. Margins belong to the side that the label prefers.

    Options, all of them optional:
        name: what messages call the input (default: the path).
        first_row: number of the first row, for input that comes in parts (default 1).
        stride: keep every stride-th usable row, counted after ties and refused rows (default 1).
        flip: fraction of pairs whose sides are swapped, and of rankings that are turned around, drawn per row from
            (flip_seed, row) (default 0).
        flip_seed: its seed (default 0).
        paper_text: prefix the summarize instruction as the GRM authors do (default False).
        on_tie: "drop" or "keep" equal ratings or ranks, with a label of one half (default "drop").
        on_bad_row: "drop" or "raise" (default "drop").
        on_duplicate: "keep", "drop" or "raise" (default "keep").
        on_contradiction: "keep", "drop" or "raise" (default "keep").

    Errors: OSError for a file that cannot be read or breaks off, DataError for a first row of no pair format, for "raise"
    and for unknown options.
    """

@final
class StoreWriter:
    """Writes a store under a temporary name; `finish` renames it into place.

    Options, all of them optional:
        max_length: longest prompt + response, in tokens (default: no limit).
        on_overlong: "drop", "truncate_prompt" (cut the prompt's beginning behind a leading special token, by the same
            count for all responses) or "raise" (default "drop").
        on_bad_row: "drop" or "raise" (default "drop").
        add_special_tokens: let the tokenizer's post-processor add its tokens (default False).
        append_token: id to append to each response that does not end with it (default: none).
    """

    def __new__(cls, directory: str, tokenizer_json: str, options: Mapping[str, Any]) -> Self:
        """Start a store.

        directory: where it will be; its parent is made.
        tokenizer_json: the text of a tokenizer.json, or its path. Truncation and padding in it are switched off.
        """

    def append(
        self, pairs: Pairs, start: int, texts: Sequence[Sequence[str] | str], boundaries: Sequence[Sequence[int]]
    ) -> None:
        """Encode groups start, start + 1, ... of `pairs`; groups of one reading come in ascending order.

        texts: for each group the rendered conversations, one a response; or a string: the reason why it could not be
            rendered, which refuses the row under the reason "template".
        boundaries: for each group and response the character at which the scored response begins.
        """

    def finish(self, manifest: Mapping[str, Any]) -> str:
        """Write the manifest (with these entries added), rename into place, and return the report as JSON.

        If a store with an equal manifest is there already, that one stays; anything else there is a DataError.

        The report: rows, used, skipped, refused {reason: [row]}, noted {finding: [row]}, flipped, comparisons, ties (a
        label of one half), tokens, shared_tokens, max_tokens, template_errors {row: message}. `rows` is `used` +
        `skipped` + all refused; groups that were never appended count as skipped, and only used rows are noted.
        """

@final
class Store:
    """A prepared data set on disk, memory-mapped."""

    def __new__(cls, directory: str) -> Self:
        """Open and verify. DataError names a file that is missing, cut off or changed."""

    def __len__(self) -> int:
        """Groups."""

    @property
    def manifest(self) -> str:
        """The manifest as JSON."""

    @property
    def costs(self) -> NDArray[np.int64]:
        """Tokens of each group, the shared prompt counted once."""

    def rows(self) -> list[dict[str, Any]]:
        """For each group: row, id, source, category, flipped."""

    def pack(self, groups: NDArray[np.int64], counts: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        """Lay groups end to end: the arrays of GroupBatch.from_arrays (int64, and float32 for labels, margins, weights)."""

def epoch_order(groups: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation of the groups: a pure function of its arguments (0 to 2**64 - 1), the same on every machine."""

def deal_step(
    costs: NDArray[np.int64], ranks: int, accumulate: int
) -> list[list[tuple[NDArray[np.int64], NDArray[np.float32]]]]:
    """Deal one step's groups to ranks, and each share into `accumulate` packs, balanced by cost.

    Returns for each rank and pack: positions into `costs`, and counts (1, or 0 for a group repeated to fill an empty share).
    """

def deal_steps(
    costs: NDArray[np.int64], groups_per_step: int, ranks: int, accumulate: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
    """Deal many steps at once, each as `deal_step` does; the last one may be short.

    Args:
        costs: of the groups in the order of the epoch, each from 0 to 2**32 - 1.
        groups_per_step: groups of a step.
        ranks: their number.
        accumulate: packs of each rank in a step.

    Returns positions into `costs`, pack after pack; a count for each; and where each pack begins, with the end of the last
    one. Pack p of rank r in step s is number (s * ranks + r) * accumulate + p.
    """

def pack_bins(
    costs: NDArray[np.int64], tokens_per_pack: int, window: int, seed: int, epoch: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Fill bins with groups, best fit decreasing within each window of the order, and shuffle the bins.

    Args:
        costs: tokens of the groups in the order of the epoch.
        tokens_per_pack: tokens of a bin, at most; no group may have more.
        window: groups packed together.
        seed: of the order of bins.
        epoch: likewise.

    Returns positions into `costs`, bin after bin, ascending within each; and where each bin begins, with the last one's end.
    """
