"""Text that a language model generates from a prompt."""

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed


def first_words(documents: Dataset) -> list[str]:
    """Return the first eight words (of scripts without spaces, 100 characters) of three documents, as prompts."""
    return [" ".join(text.split()[:8])[:100] for text in documents[:3]["text"]]


def generate_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], seed: int
) -> list[str]:
    """Return each prompt with up to 40 tokens more, drawn from the model's most probable 90 % (top-p)."""
    # On the left, since new tokens follow the last one of a row.
    inputs = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt", verbose=False).to(model.device)
    set_seed(seed)
    # The cache is of what each layer has computed; `prepare_model` has turned it off for training.
    options = {"max_new_tokens": 40, "do_sample": True, "top_p": 0.9, "use_cache": True}
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    output = model.eval().generate(input_ids=ids, attention_mask=mask, pad_token_id=tokenizer.pad_token_id, **options)
    return tokenizer.batch_decode(output, skip_special_tokens=True)
