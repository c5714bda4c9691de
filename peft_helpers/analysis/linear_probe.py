"""What the hidden states of a model tell before it is trained: features, and a head for the training to start from."""

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from peft_helpers.arguments import Arguments
from peft_helpers.batches import EVALUATION_SHARE, batch_by_tokens, count_steps, examples_per_update, longest_first
from peft_helpers.distributed import hold_in_bfloat16

SHORT_RUN = 100  # steps; the benchmarks' page has a race of 63
STRENGTH = 0.01  # scikit-learn's C, chosen by cross-validation on phrases of SST-2 (no script of it here)


def fit_head(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, train: Dataset | IterableDataset, args: Arguments
) -> None:
    """Before a run of fewer than `SHORT_RUN` steps, set the head's last layer to logistic regression on what it reads.

    A few steps from a random head go into finding one, and distort the features meanwhile (Kumar et al. 2022, arXiv
    2202.10054). ``train`` is from `tokenize_dataset`; as many examples count as the run takes. A head with a label that
    none of them has stays random.
    """
    steps = count_steps(train, args.training)
    if steps >= SHORT_RUN:
        return
    rows = steps * examples_per_update(args.training)
    if isinstance(train, IterableDataset):
        train = Dataset.from_list([*train.take(rows)])
    train = train.shuffle(seed=args.training.seed).select(range(min(rows, train.num_rows)))
    labels = np.array(train["labels"][:])
    if len(np.unique(labels)) < model.config.num_labels:
        return
    if not args.training.disable_tqdm:
        print(f"{steps} steps are few for a random head: it starts as logistic regression on the frozen features.")
    layer = [each for each in model.modules() if isinstance(each, torch.nn.Linear) and each.weight.requires_grad][-1]
    states = _read_states(model, layer, tokenizer, train, args)
    scale = StandardScaler(with_mean=False).fit(states).scale_
    options = {"fit_intercept": layer.bias is not None, "class_weight": args.training.class_weights}
    probe = LogisticRegression(C=STRENGTH, max_iter=1000, **options).fit(states / scale, labels)
    fitted = {"weight": torch.from_numpy(probe.coef_ / scale), "bias": torch.from_numpy(probe.intercept_)}
    if len(probe.coef_) == 1:  # of two labels: how much the second one is ahead
        fitted = {name: torch.cat([-values, values]) / 2 for name, values in fitted.items()}
    layer.load_state_dict(fitted, strict=False)  # it may have no bias


def count_in_steps(steps: int) -> float:
    """Return the number of training steps that a run takes as long as, `fit_head` included."""
    return steps * (1 + EVALUATION_SHARE) if steps < SHORT_RUN else steps


def mean_hidden_states(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, args: Arguments
) -> np.ndarray:
    """Return the mean last hidden state of each text, of chunks the mean of theirs, shape (texts, hidden size)."""
    means = _read_states(model, model.base_model, tokenizer, dataset, args)
    starts = np.flatnonzero(dataset["is_first"])
    return np.add.reduceat(means, starts) / np.diff(starts, append=dataset.num_rows)[:, None]


@torch.no_grad()  # what is converted here is trained with later
def _read_states(
    model: PreTrainedModel, layer: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, split: Dataset, args: Arguments
) -> np.ndarray:
    """Return, of each example without padding, the mean state out of the model, or the last state into the head."""
    order, found, collate = longest_first(split), [], DataCollatorWithPadding(tokenizer)
    known = [name for name in tokenizer.model_input_names if name in split.column_names]
    rows = split.select_columns(known).select(order)
    lengths = np.array(split["length"][:])[order].tolist()
    device, dtype = args.training.device, args.training.dtype
    model.eval().to(device)
    if dtype == torch.bfloat16:
        hold_in_bfloat16(model)
    is_base, read = layer is model.base_model, []
    hook = layer.register_forward_hook(lambda _, inputs, output: read.append(output[0] if is_base else inputs[0]))
    with hook, torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        for batch in batch_by_tokens(lengths, args.training.eval_batch_size):
            model(**collate([*rows.select(batch)]).to(device))
            for number, states in zip(batch, read.pop(), strict=True):
                states = states[: lengths[number]] if states.ndim == 2 else states[None]  # or pooled before
                found.append((states.mean(0) if is_base else states[-1]).float().cpu())
    return torch.stack(found).numpy()[np.argsort(order)]
