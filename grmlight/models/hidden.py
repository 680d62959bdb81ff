"""The backbone's hidden states of a batch, read at the places that matter, however they were computed."""

from __future__ import annotations

import dataclasses

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig

from grmlight.data.batch import GroupBatch, send
from grmlight.models.attention import layout_mask

SKIPPED_TOKEN = "vhead_skips_token"  # noqa: S105
"""Entry of a config: the token that this model's own engine takes for padding, at a sequence's end too."""


@dataclasses.dataclass(frozen=True)
class HiddenStates:
    """Hidden states with two look-ups (shape suffixes: R rows, H hidden size, N responses, L scored tokens).

    Attributes:
        states_RH: hidden states after the final norm, in an order of the maker's choice.
        last_N: the row of each response's last token.
        source_L: the row that predicts each scored token.
    """

    states_RH: Float[Tensor, "R H"]
    last_N: Int[Tensor, " N"]
    source_L: Int[Tensor, " L"]

    def at_last(self) -> Float[Tensor, "N H"]:
        """The states that rewards are read from."""
        return self.states_RH.index_select(0, self.last_N)

    def at_source(self, chosen_L: Int[Tensor, " l"] | None = None) -> Float[Tensor, "l H"]:
        """The states that predict the scored tokens, or the chosen ones among them."""
        source = self.source_L if chosen_L is None else self.source_L.index_select(0, chosen_L)
        return self.states_RH.index_select(0, source)


def packed_states(decoder: nn.Module, batch: GroupBatch) -> HiddenStates:
    """Run a pack as it is: one row, every prompt once. The decoder must use the packed attention."""
    output = decoder(
        input_ids=batch.input_ids_T[None],
        position_ids=batch.positions_T[None],
        attention_mask=layout_mask(batch.layout),
        use_cache=False,
    )
    return HiddenStates(output.last_hidden_state[0], batch.last_N, batch.source_L)


def before_skipped(batch: GroupBatch, token: int) -> GroupBatch:
    """The batch with each reward read at the last token that is not `token`, as transformers' classifiers read it.

    A model that was trained with its padding equal to its end-of-text token learned its rewards there.
    """
    device, layout = batch.last_N.device, batch.layout
    prompts = [layout.prefix[response] for response in layout.responses]
    start_N = send(torch.tensor([layout.bounds[response] for response in layout.responses]), device)
    first_N = send(torch.tensor([layout.bounds[prompt] for prompt in prompts]), device)
    prompt_N = send(torch.tensor([layout.bounds[prompt + 1] - 1 for prompt in prompts]), device)
    places_T = torch.arange(len(batch.input_ids_T), device=device)
    kept_T = places_T.where(batch.input_ids_T != token, -1).cummax(0).values
    # A response of nothing else is read at its prompt's end; a text of nothing else at its last token.
    own_N, before_N = kept_T[batch.last_N], kept_T[prompt_N.clamp(min=0)]
    found_N = own_N.where(own_N >= start_N, before_N)
    return dataclasses.replace(batch, last_N=found_N.where(found_N >= first_N, batch.last_N))


def rotary_limit(config: PretrainedConfig) -> int | None:
    """Tokens up to which a sequence leaves the rotary table of the others alone; None if it does at any length.

    With "dynamic" and "longrope" scaling one sequence beyond this length changes the positions of all others in its
    batch, and their rewards with them.
    """
    text = config.get_text_config(decoder=True)
    entries = getattr(text, "rope_parameters", None) or {}
    tables = [table for table in (entries, *entries.values()) if isinstance(table, dict)]
    limits = [
        table.get("original_max_position_embeddings") or text.max_position_embeddings
        for table in tables
        if table.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(limits, default=None)
