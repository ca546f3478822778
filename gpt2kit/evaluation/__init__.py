"""How good a model is: surprisal, perplexity, tasks, comparison, originality, verification."""
