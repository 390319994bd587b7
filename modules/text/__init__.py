"""Report texts: cleaning, tokenizers, labels and labelers."""
