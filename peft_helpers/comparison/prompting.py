"""What a language model answers to a prompt, without training."""

import numpy as np
import torch
from datasets import DatasetDict
from scipy.special import log_softmax, logsumexp
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from peft_helpers.arguments import Arguments
from peft_helpers.batches import batch_by_tokens
from peft_helpers.columns import join_texts
from peft_helpers.distributed import best_device
from peft_helpers.modeling import model_arguments, prepare_model

CONTENT_FREE = ("N/A", "", "[MASK]")  # as Zhao et al. 2021 take them
QUESTION = "\n\nThe text above is about"  # the best of 5 on BBC News\' validation examples, second on SST-2


def classify_with_prompts(
    dataset: DatasetDict, tokenizer: PreTrainedTokenizerBase, args: Arguments
) -> tuple[EvalPrediction, int]:
    """Return how likely the language model finds the name of each label after each test text and `QUESTION`; and 0.

    The scores are log-probabilities in nats, minus those that inputs without content get on average: contextual
    calibration (Zhao et al. 2021, arXiv 2102.09690). Names such as 0 and LABEL_1 mean nothing to it: it can only guess.
    """
    names, test = dataset["test"].features["label"].names, dataset["test"]
    arguments = model_arguments(args.model) | {"dtype": args.training.dtype}
    model = AutoModelForCausalLM.from_pretrained(args.model.model_name_or_path, **arguments).to(best_device())
    prepare_model(model, tokenizer)
    words = [QUESTION, *(f" {name}" for name in names)]
    question, *answers = tokenizer(words, add_special_tokens=False)["input_ids"]
    texts = tokenizer([*CONTENT_FREE, *join_texts(test[:])], truncation=True)["input_ids"]
    pairs = [([*text, *question], answer) for text in texts for answer in answers]
    scores = score_answers(model, tokenizer, pairs, args.training.eval_batch_size).reshape(len(texts), -1)
    free, scores = np.split(log_softmax(scores, axis=-1), [len(CONTENT_FREE)])
    return EvalPrediction(scores - logsumexp(free, axis=0), np.asarray(test["label"][:])), 0


@torch.inference_mode()
def score_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: list[tuple[list[int], list[int]]], max_rows: int
) -> np.ndarray:
    """Return the log-probability, in nats, of each answer after its prompt, both as token ids, shape (pairs,)."""
    last = getattr(model.config, "max_position_embeddings", None) or 0  # of a prompt too long for the model, the end
    rows = [
        {"input_ids": [*prompt, *answer][-last:], "labels": [*[-100] * len(prompt), *answer][-last:]}
        for prompt, answer in pairs
    ]
    lengths, scores, collate = np.array([len(row["labels"]) for row in rows]), [], DataCollatorForSeq2Seq(tokenizer)
    order = np.argsort(-lengths)
    for batch in batch_by_tokens(lengths[order].tolist(), max_rows):
        inputs = collate([rows[number] for number in order[batch]]).to(model.device)
        labels = inputs.pop("labels")
        kept = labels.shape[1] - (labels >= 0).int().argmax(1).min() + 1  # from the end of the shortest prompt on
        logits = model(**inputs, logits_to_keep=int(kept)).logits[:, :-1].float().transpose(1, 2)
        losses = torch.nn.functional.cross_entropy(logits, labels[:, 1 - kept :], reduction="none")
        scores.append(-losses.sum(1).cpu())
    return torch.cat(scores).numpy()[np.argsort(order)]
