"""Records: the data that stages of the loop pass on."""
