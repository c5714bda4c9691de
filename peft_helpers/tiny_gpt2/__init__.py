"""A tiny GPT-2 that needs no network: its weights, its tokenizer and the script that made both."""
