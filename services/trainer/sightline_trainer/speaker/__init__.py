"""Speaker: a language model, with or without eyes, that is asked something about a picture or a text."""
