"""The engine in this process: any image-text-to-text model of transformers, with its own decode loop."""
