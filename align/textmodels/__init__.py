"""Models of texts, small or large: embeddings, classifiers, perplexity."""
