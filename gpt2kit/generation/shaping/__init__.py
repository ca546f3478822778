"""Which tokens may come next: bans, n-grams, minimum lengths, processors of the caller's own."""
