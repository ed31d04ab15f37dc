"""Triton: the model repository, the embedded server and the client of both kinds of server."""
