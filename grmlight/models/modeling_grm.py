"""GRM's sequence classifier for transformers: a causal LM's decoder and the reward head on the last token's state.

This file is shipped with exported models. It needs torch and transformers alone:

    AutoModelForSequenceClassification.from_pretrained(FOLDER, trust_remote_code=True)(**inputs).logits  # [B, 1]

The reward is read at each row's last attended token; without a mask, at the last one that is not the pad token.
Shape suffixes: B rows, T tokens, H hidden size.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING as CONFIG_MAPPING
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutputWithPast


class GRMHead(nn.Module):
    """An MLP, or a linear layer, with one output; computed in float32."""

    def __init__(self, config: Any, hidden_size: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        size, width = hidden_size, config.vhead_num_neurons
        for _ in range(config.vhead_num_layers):
            blocks += [nn.Linear(size, width), nn.ReLU()]
            size = width
        is_linear = config.vhead_layer_type == "linear"
        self.summary = nn.Linear(hidden_size, 1) if is_linear else nn.Sequential(*blocks, nn.Linear(size, 1))

    def forward(self, hidden_BH: torch.Tensor) -> torch.Tensor:
        """One reward a row, [B, 1]."""
        with torch.autocast(hidden_BH.device.type, enabled=False):
            return self.summary(hidden_BH.to(next(self.parameters()).dtype))


class GRMForSequenceClassification(PreTrainedModel):
    """A decoder of any architecture that transformers knows, with GRM's reward head as its classifier."""

    _keep_in_fp32_modules_strict = ["v_head"]  # noqa: RUF012 - transformers wants a list
    # It is there to stop readers that do not run this class.
    _keys_to_ignore_on_load_unexpected = [r"^score\.weight$"]  # noqa: RUF012 - transformers wants a list
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        # Before this class has chosen: which attention a decoder can run is known to the decoder alone.
        own = copy.deepcopy(config)
        super().__init__(config)
        self.num_labels = 1
        # The decoder has the name that it has in its causal LM, so that both read the same tensors.
        causal_lm: Any = AutoModelForCausalLM._model_mapping[type(config)]
        self.base_model_prefix = causal_lm.base_model_prefix
        setattr(self, self.base_model_prefix, AutoModel.from_config(own))
        self.v_head = GRMHead(config, config.get_text_config(decoder=True).hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        **options: object,
    ) -> SequenceClassifierOutputWithPast:
        """Rewards as `logits`, [B, 1]. Rows may be padded on either side."""
        mask = attention_mask
        if mask is None:
            pad = self.config.get_text_config(decoder=True).pad_token_id
            mask = torch.ones_like(input_ids) if pad is None else (input_ids != pad).long()
        if position_ids is None:
            position_ids = (mask.long().cumsum(-1) - 1).clamp(min=0)
        options.pop("token_type_ids", None)
        output = getattr(self, self.base_model_prefix)(
            input_ids, attention_mask=mask, position_ids=position_ids, use_cache=False
        )
        places_T = torch.arange(input_ids.shape[1], device=input_ids.device)
        last_B = (places_T * mask.long()).argmax(-1)
        rows_B = torch.arange(len(input_ids), device=input_ids.device)
        rewards_B1 = self.v_head(output.last_hidden_state[rows_B, last_B])
        return SequenceClassifierOutputWithPast(logits=rewards_B1)
