"""Every format of weights, in and out."""
