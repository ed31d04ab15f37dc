"""Engines behind HTTP: Text Generation Inference and vLLM."""
