"""Speaker: a language model, with or without vision, that answers a question about a picture or a text."""
