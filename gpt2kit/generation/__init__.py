"""Tokens, then text: the loop, sampling, drafts."""
