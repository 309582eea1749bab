"""Classify sequences with Hugging Face's Trainer: a tiny BERT with random weights."""

import argparse

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=1e-3)
parser.add_argument("--epochs", type=int, default=3)
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()


class Sequences(torch.utils.data.Dataset):
    """Sequences of twelve tokens; the label is whether the first is in the upper half."""

    def __init__(self, rows: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(32, (rows, 12), generator=generator)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index):
        tokens = self.tokens[index]
        return {"input_ids": tokens, "labels": (tokens[0] >= 16).long()}


def accuracy(predicted):
    return {"accuracy": float((predicted.predictions.argmax(-1) == predicted.label_ids).mean())}


torch.manual_seed(options.seed)
config = BertConfig(
    vocab_size=32, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
)
model = BertForSequenceClassification(config)
arguments = TrainingArguments(
    "output",
    learning_rate=options.lr,
    num_train_epochs=options.epochs,
    per_device_train_batch_size=32,
    per_device_eval_batch_size=64,
    eval_strategy="epoch",
    weight_decay=0.01,
    seed=options.seed,
    use_cpu=True,
)
trainer = Trainer(
    model,
    arguments,
    train_dataset=Sequences(128, seed=0),
    eval_dataset=Sequences(64, seed=1),
    compute_metrics=accuracy,
)
trainer.train()
