"""What families of vision-language models need of their inputs, found by asking a processor and a model."""
