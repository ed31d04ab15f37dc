"""The scorer over HTTP, for teams without gRPC: JSON with OpenAPI, and OpenRLHF's `/get_reward`.

`sightline serve scorer-http --set scorer.target=127.0.0.1:50051`. It has no model: it calls a scorer by gRPC.
"""
