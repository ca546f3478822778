"""What a text may be: patterns, lists of lines, valid UTF-8; from characters to tokens"""
