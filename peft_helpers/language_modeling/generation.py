"""Text that a language model generates from a prompt."""

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from peft_helpers.tokenization import check_texts


def first_words(documents: Dataset) -> list[str]:
    """Return the first eight words (of scripts without spaces, 100 characters) of three documents, as prompts."""
    return [" ".join(text.split()[:8])[:100] for text in documents[:3]["text"]]


def generate_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    seed: int,
    max_new_tokens: int = 40,
) -> list[str]:
    """Return each prompt with up to ``max_new_tokens`` tokens drawn from the model's most probable 90 % (top-p).

    Raises:
        ValueError: a prompt has no token, or with the new ones more than the model has positions; see `check_texts`.
    """
    prompts = check_texts(prompts)
    # On the left, since new tokens follow the last one of a row.
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", verbose=False).to(model.device)
    if empty := [prompt for prompt, mask in zip(prompts, inputs["attention_mask"], strict=True) if not mask.any()]:
        raise ValueError(f"The prompt {empty[0]!r} has no token to go on from; expected some text.")
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    tokens = inputs["input_ids"].shape[1]
    if positions is not None and tokens + max_new_tokens > positions:
        raise ValueError(
            f"The longest prompt has {tokens} tokens; with {max_new_tokens} new ones that is more than the model's "
            f"{positions} positions. Shorten the prompt, or generate less."
        )
    set_seed(seed)
    output = model.eval().generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=max_new_tokens,
        do_sample=True,
        top_p=0.9,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,  # of what each layer has computed; `prepare_model` has turned it off for training
    )
    return tokenizer.batch_decode(output, skip_special_tokens=True)
