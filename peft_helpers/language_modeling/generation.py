"""Text that a language model writes on from a prompt."""

import torch
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase, set_seed

NEW_TOKENS = 40


def encode_prompts(
    prompts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    max_new_tokens: int = NEW_TOKENS,
) -> BatchEncoding:
    """Return ``input_ids`` and ``attention_mask`` of the prompts on the model's device, padded on the left.

    What is generated follows the last token of a row, so that must not be padding.

    Raises:
        ValueError: there is no prompt, one has no token, or with ``max_new_tokens`` it exceeds the model's positions.
    """
    if isinstance(prompts, str) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError(f"Expected a list of prompts, each a string; found {prompts!r}.")
    encoded = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", verbose=False)
    if empty := [prompt for prompt, mask in zip(prompts, encoded["attention_mask"], strict=True) if not mask.any()]:
        raise ValueError(f"The prompt {empty[0]!r} has no token to go on from; expected some text.")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokens = encoded["input_ids"].shape[1]
    if positions is not None and tokens + max_new_tokens > positions:
        raise ValueError(
            f"The longest prompt has {tokens} tokens; with {max_new_tokens} new ones that is more than the model's "
            f"{positions} positions. Shorten the prompt, or generate less."
        )
    return encoded.to(model.device)


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    seed: int,
    max_new_tokens: int = NEW_TOKENS,
) -> list[str]:
    """Return each prompt with up to ``max_new_tokens`` tokens drawn from the model's most probable 90 % (top-p).

    Raises:
        ValueError: see `encode_prompts`.
    """
    inputs = encode_prompts(prompts, tokenizer, model, max_new_tokens)
    set_seed(seed)
    with torch.inference_mode():
        output = model.eval().generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=max_new_tokens,
            do_sample=True,
            top_p=0.9,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=True,  # of what each layer has computed; the tiny GPT-2's configuration says False
        )
    return tokenizer.batch_decode(output, skip_special_tokens=True)
