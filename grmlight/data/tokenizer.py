"""Loading a tokenizer, once and with one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from grmlight.data.names import resolve


def load_tokenizer(name: str, chat_template: str | None = None) -> Any:
    """A fast Hugging Face tokenizer from a hub name, a folder, or `package:MODULE/PATH`.

    Errors: ValueError in one line where it cannot be loaded, has no tokenizer.json, or the template file is missing.
    """
    from transformers import AutoTokenizer

    path = resolve(name, "tokenizer")
    if Path(path).is_dir() and not any(
        found for kind in ("tokenizer*", "vocab*", "*.model") for found in Path(path).glob(kind)
    ):
        raise ValueError(f"{name}: holds no tokenizer; copy the tokenizer.json that its model was trained with")
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"tokenizer {name!r} cannot be loaded ({reason}); give another folder or hub name, or copy it again"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"tokenizer {name!r} has no tokenizer.json; convert it to a fast tokenizer first")
    if chat_template is not None:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"chat_template {chat_template!r} cannot be read ({error.strerror})") from error
    return tokenizer
