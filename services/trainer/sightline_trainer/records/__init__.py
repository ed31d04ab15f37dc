"""Records: what passes between the stages of the loop."""
