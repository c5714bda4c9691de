"""Causal language modeling with the same helpers."""
