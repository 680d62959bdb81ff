"""Tiny random twins of released reward models, as the real libraries write them, or by hand in the published layout.

Each maker writes a folder. What such a folder scores is computed beside it by `expected_*`, with plain transformers.
"""

from __future__ import annotations

import json

import datasets
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
)

VOCABULARY = 320
WIDTH = 12
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj"]

SEQUENCES = [[5, 9, 77, 30, 8, 1], [5, 9, 77, 44, 61, 62, 90, 1], [12, 13, 14]]
"""Two end with the tokenizer's end-of-text token, one does not."""


def llama_config(**entries) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2, bos_token_id=None,
        **{"pad_token_id": 0, "eos_token_id": 1, **entries},
    )  # fmt: skip


def base_lm(folder, tokenizer, seed=0, **entries):
    torch.manual_seed(seed)
    LlamaForCausalLM(llama_config(**entries)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder


def value_head(hidden=32, layers=1, linear=False) -> nn.Module:
    if linear:
        return nn.Linear(hidden, 1)
    blocks = [part for n in range(layers) for part in (nn.Linear(WIDTH if n else hidden, WIDTH), nn.ReLU())]
    return nn.Sequential(*blocks, nn.Linear(WIDTH, 1))


def grm(folder, tokenizer, layers=1, linear=False, binary=False, **more):
    """A released GRM: LM in bfloat16, head in float32, no dropout in the config, remote code named."""
    torch.manual_seed(3)
    lm, head = rounded(LlamaForCausalLM(llama_config())), value_head(layers=layers, linear=linear)
    tensors = {name: tensor.bfloat16() for name, tensor in lm.state_dict().items()}
    tensors |= {f"v_head.summary.{name}": tensor for name, tensor in head.state_dict().items()}
    folder.mkdir()
    if binary:
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    code = "model.AutoModelForCausalLMWithValueHead"
    entries = json.loads(lm.config.to_json_string()) | {
        "architectures": ["LlamaForCausalLM"],
        "auto_map": {"AutoModel": code, "AutoModelForSequenceClassification": code},
        "vhead_layer_type": "linear" if linear else "mlp",
        "vhead_num_layers": layers,
        "vhead_num_neurons": WIDTH,
    }
    (folder / "config.json").write_text(json.dumps(entries | more))
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return last_rewards(lm, head)


def grm_lora(folder, base, tokenizer):
    """What the GRM authors' trainer leaves of a LoRA run: only what trained, under peft's names with `default`."""
    torch.manual_seed(4)
    lm, head = AutoModelForCausalLM.from_pretrained(base), value_head()
    wrapped = woken(
        get_peft_model(
            lm, LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, task_type="SEQ_CLS", lora_dropout=0.05)
        )
    )
    folder.mkdir()
    trained = {
        name.removeprefix("base_model.model."): parameter.detach()
        for name, parameter in wrapped.named_parameters()
        if "lora_" in name
    }
    save_file(
        trained | {f"v_head.summary.{name}": tensor for name, tensor in head.state_dict().items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    settings = wrapped.peft_config["default"]
    settings.base_model_name_or_path = str(base)
    settings.save_pretrained(folder)
    entries = json.loads((base / "config.json").read_text())
    extras = {"vhead_layer_type": "mlp", "vhead_num_layers": 1, "vhead_num_neurons": WIDTH}
    (folder / "config.json").write_text(json.dumps(entries | extras))
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return last_rewards(lm, head)


def rounded(model):
    """The model with parameters that bfloat16 can hold; buffers stay."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


def woken(model):
    """Adapters whose second matrices are no longer zeros."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return model


@torch.no_grad()
def last_rewards(lm, head) -> torch.Tensor:
    """Each sequence alone, the head on the last token's state."""
    lm.eval()
    states = [lm(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0, -1] for ids in SEQUENCES]
    return torch.cat([head(state) for state in states])


def trl_pairs(count=8):
    def turns(text):
        return [{"role": "user", "content": "why"}, {"role": "assistant", "content": text}]

    rows = [{"chosen": turns(f"the cat {n}"), "rejected": turns(f"no {n}")} for n in range(count)]
    return datasets.Dataset.from_list(rows)


def trl_output(folder, base, tokenizer, lora=False):
    """Two steps of TRL's RewardTrainer from a causal LM, saved by it."""
    import trl

    options = trl.RewardConfig(
        str(folder.parent / "work"), max_steps=2, bf16=False, gradient_checkpointing=False, use_cpu=True,
        report_to="none", per_device_train_batch_size=2, disable_tqdm=True, save_strategy="no", learning_rate=0.05,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    peft = LoraConfig(r=4, target_modules=TARGETS, task_type="SEQ_CLS", modules_to_save=["score"]) if lora else None
    trainer = trl.RewardTrainer(
        model=str(base), args=options, train_dataset=trl_pairs(), processing_class=tokenizer, peft_config=peft
    )
    trainer.train()
    trainer.save_model(str(folder))


@torch.no_grad()
def classifier_rewards(folder, sequences=None, side="right", base=None, pad=None) -> torch.Tensor:
    """One padded batch through transformers' classifier; `base` and peft where the folder is an adapter."""
    model = AutoModelForSequenceClassification.from_pretrained(
        base or folder, num_labels=1, dtype=torch.float32, trust_remote_code=True
    )
    if pad is not None:
        model.config.pad_token_id = pad
    if base is not None:
        model = PeftModel.from_pretrained(model, folder)
    ids, mask = padded(sequences or SEQUENCES, model.config.get_text_config().pad_token_id, side)
    return model.eval()(input_ids=ids, attention_mask=mask).logits[:, 0]


def padded(sequences, pad, side="right"):
    width = max(map(len, sequences)) + 2
    rows = [[pad] * (width - len(ids)) for ids in sequences]
    if side == "right":
        ids = [own + fill for own, fill in zip(sequences, rows, strict=True)]
        mask = [[1] * len(own) + [0] * len(fill) for own, fill in zip(sequences, rows, strict=True)]
    else:
        ids = [fill + own for own, fill in zip(sequences, rows, strict=True)]
        mask = [[0] * len(fill) + [1] * len(own) for own, fill in zip(sequences, rows, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def openrlhf(folder, tokenizer, called="score", normalize=False):
    """OpenRLHF's saved class: a decoder and a head without bias in bfloat16, mean and std in the config."""
    torch.manual_seed(5)
    decoder, head = rounded(LlamaModel(llama_config())).eval(), rounded(nn.Linear(32, 1, bias=False))
    tensors = {f"model.{name}": tensor.bfloat16() for name, tensor in decoder.state_dict().items()}
    folder.mkdir()
    save_file(
        tensors | {f"{called}.weight": head.weight.detach().bfloat16()}, folder / "model.safetensors", {"format": "pt"}
    )
    entries = json.loads(decoder.config.to_json_string()) | {
        "architectures": ["RewardModel"], "normalize_reward": normalize, "mean": 0.75, "std": 2.5,
        "value_head_prefix": called,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(entries))
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    with torch.no_grad():
        states = [decoder(torch.tensor([ids])).last_hidden_state[0, -1] for ids in SEQUENCES]
        rewards = torch.cat([head(state) for state in states])
    return (rewards - 0.75) / 2.5 if normalize else rewards
