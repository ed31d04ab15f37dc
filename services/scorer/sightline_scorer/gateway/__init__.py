"""The scorer over HTTP, for teams without gRPC: JSON with OpenAPI, and OpenRLHF's `/get_reward`.

`sightline serve scorer-http --set scorer.target=127.0.0.1:50051`. It holds no model: it speaks gRPC to a scorer.
"""
