"""Receipts: what is needed to write a text again, and to say why it came out otherwise."""
