"""How families of vision-language models want their inputs, found by calling a processor and a model."""
