"""The Rust extension: read, normalize and lint pairs; encode; share the prompt; store; deal; pack."""

from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any, Protocol, Self, final

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BrokenPlanError",
    "ChatRenderer",
    "DataError",
    "Encoder",
    "EngineError",
    "Pairs",
    "Preparation",
    "Store",
    "UnsupportedTemplateError",
    "deal_step",
    "deal_steps",
    "epoch_order",
    "pack_bins",
    "read_pairs",
]

class DataError(ValueError):
    """Data that cannot be used, named by file and row, with what to do."""

class UnsupportedTemplateError(ValueError):
    """A chat template, or a conversation with it, that is not certain to be rendered exactly: transformers can."""

class BrokenPlanError(ValueError):
    """A plan for a chat template that did not hold: render everything again with the option `plan` off."""

@final
class ChatRenderer:
    """Renders groups as `grmlight.data.render.Renderer` does, without transformers.

    Options, all of them optional:
        text_rows: "auto", "chat" or "plain" (default "auto").
        paper_mask: score from the end of the first user message on (default False).
        name: what messages call the tokenizer.
        now: what `strftime_now` prints, from `datetime.isoformat` (default: such templates are unsupported).
        plan: join up conversations by plans found for the template (default True).
    """

    def __new__(cls, template: str | None, special_tokens: Mapping[str, Any], options: Mapping[str, Any]) -> Self:
        """A renderer for a tokenizer's `chat_template` and `special_tokens_map`.

        Errors: UnsupportedTemplateError, and ValueError for options.
        """

    def render(
        self,
        prompt: Sequence[Mapping[str, str]] | str,
        responses: Sequence[Sequence[Mapping[str, str]] | str],
        row: int = 0,
    ) -> tuple[list[str], list[int]] | str:
        """The texts of a group and the characters at which their scored responses begin, or the template's refusal.

        row: the row's number, which chooses the rows that prove plans.

        Errors: UnsupportedTemplateError, BrokenPlanError, and ValueError for rows that do not go with the options.
        """

class EngineError(DataError):
    """The fast engine gave other ids than the reference: all that was encoded must be encoded again, with the reference."""

@final
class Encoder:
    """Text to token ids, as a store is written.

    Two engines give the same ids, those of the Python package `tokenizers`: the reference, which defines them, and a fast
    one, which is used where the tokenizer allows it, and checked on probe texts, on the first groups of the data and on a
    sample that their text draws. Nothing but the tokenizer and the data decides the result.
    """

    def __new__(cls, tokenizer_json: str, options: Mapping[str, Any]) -> Self:
        """Load a tokenizer.

        tokenizer_json, options: as `Preparation.begin` takes them (`write`).
        """

    @property
    def engine(self) -> str:
        """What makes ids of text: "tokenizers 1.0" (fast) or "tokenizers 0.23" (the reference)."""

    @property
    def why_reference(self) -> str | None:
        """Why that is the slow reference, if it is."""

    @property
    def prompt_once(self) -> bool:
        """Whether what the conversations of a group begin with is encoded once."""

    def encode(self, texts: Sequence[str]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The ids of texts end to end, and where each text's end; without what a post-processor adds."""

    def encode_groups(
        self, texts: Sequence[Sequence[str] | str], boundaries: Sequence[Sequence[int]], place: int
    ) -> list[tuple[int, list[tuple[NDArray[np.int32], int]]] | str]:
        """The groups as tokens: (shared tokens, [(tokens, first scored one) of each response]), or why one is refused.

        texts, boundaries: as `Preparation.advance` is given them.
        place: the number of the first group in the data, which decides what is checked.

        Errors: EngineError where a check fails.
        """

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

    def comparisons(self, index: int) -> list[tuple[int, int]]:
        """For each comparison of a group the places of the better and the worse response."""

    def category(self, index: int) -> str | None:
        """The `category` of a group."""

class _ArrowStream(Protocol):
    """Tables through Arrow's C stream interface, as pyarrow, polars and many others give them."""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """A capsule of the stream."""

def read_pairs(source: _Source, options: Mapping[str, Any]) -> Pairs:
    """Read rows into memory.

    Source: a path of JSON lines (plain or gz), their bytes, the paths of Parquet files, whose rows count on from one file
        to the next, or Arrow tables. Columns that no format has are not read.

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

    Errors: OSError for a file that cannot be read or breaks off, DataError for a broken table, for a first row of no pair
    format, for "raise" (which names file, row, and the byte of a broken line or the column) and for unknown options.
    """

_Source = str | bytes | Sequence[str] | _ArrowStream
_Text = list[dict[str, str]] | str

@final
class Preparation:
    """A store that is being prepared, window by window: read, lint, render, encode, share, write.

    One window is in memory at a time. Until `finish` nothing is at the store's place; what was prepared so far lies in a
    folder beside it, and the next preparation of the same identity goes on there. One that is killed may be begun again
    at once. The store is the same, byte by byte, whatever the windows, threads and interruptions.
    """

    @staticmethod
    def begin(
        source: _Source | Callable[[], _Source],
        directory: str | PathLike[str],
        identity: str,
        tokenizer_json: str,
        settings: Mapping[str, Any],
    ) -> Preparation | None:
        """Start, or go on with an interrupted one. None if another one is at work, or the store is there already.

        source: as `read_pairs` takes it, or a function that gives it.
        directory: where the store will be; its parent is made.
        identity: names what goes into the store; of another one's folder nothing is used, and it is removed unless
            somebody works there.
        tokenizer_json: the text of a tokenizer.json, or its path. Truncation and padding in it are switched off.

        Settings, all of them optional:
            read: the options of `read_pairs`.
            write: max_length (longest prompt + response in tokens; default: no limit), on_overlong ("drop",
                "truncate_prompt": cut the prompt's beginning behind a leading special token, by the same count for all
                responses, or "raise"; default "drop"), on_bad_row ("drop" or "raise"), add_special_tokens (let the
                tokenizer's post-processor add its tokens; default False), append_token (id to append to each response
                that does not end with it; default: none), engine ("auto" or "reference", see `Encoder`) and threads
                (default: RAYON_NUM_THREADS, or as many as there are cores), which are no part of what the store is.
            chat: template, special_tokens and options of a `ChatRenderer`; without it `render` renders every group.
            careful: take no fast way that is checked on the go. Kept by those who go on (default False).
            offset: usable groups left out at the beginning (default 0).
            limit: groups used after that (default: all).
            window: lines of a window (default 1000).

        Errors: OSError and DataError for what cannot be read or written, for what is no tokenizer, for unknown settings,
        and for something else in the store's place.
        """

    @property
    def resumed(self) -> bool:
        """Whether it goes on with what an interrupted one left."""

    @property
    def progress(self) -> tuple[int, int, int]:
        """Rows read and groups stored so far, and where the next row begins.

        That is the bytes from the beginning, as they are once inflated, or rows of tables.
        """

    @property
    def left(self) -> str | None:
        """Why groups are left to `render` although there is `chat`, if some were."""

    def report(self) -> str:
        """What was found so far as JSON, see `finish`."""

    def advance(self, render: Callable[[_Text, list[_Text]], tuple[Sequence[str], Sequence[int]] | str]) -> bool:
        """Prepare the next window; whether there was one.

        render: gives, where this is not done here, for a group's prompt and responses, the whole conversations, one a response, with for each the
            character at which its scored response begins; or a string: the reason why it could not be rendered, which
            refuses the row under the reason "template".

        Errors: DataError for rows that policies stop at, OSError; what `render` raises; KeyboardInterrupt within a second;
        EngineError and BrokenPlanError where nothing can be kept: discard it and begin again with `careful`. After an error only `discard` and `close` are left.
        """

    def finish(self, manifest: Mapping[str, Any]) -> str:
        """Write the manifest (with these entries added), rename into place, and return the report as JSON.

        Anything that is in its place is a DataError.

        The report: rows, used, skipped, refused {reason: [row]}, noted {finding: [row]}, flipped, comparisons, ties (a
        label of one half), tokens, shared_tokens, max_tokens, template_errors {row: message}. `rows` is `used` +
        `skipped` + all refused; groups left out by offset and limit are skipped, and only used rows are noted.
        """

    def discard(self) -> None:
        """Remove what was prepared so far."""

    def close(self) -> None:
        """Let go of it; what was prepared so far stays for the next one."""

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

    def lengths(self) -> dict[str, Any]:
        """Lengths in tokens.

        prompt_G: what each group's first response follows; better_C, worse_C: the scored tokens of each comparison's two
        responses (int64); unshared: all responses with their prompts, as they would be without sharing.
        """

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
