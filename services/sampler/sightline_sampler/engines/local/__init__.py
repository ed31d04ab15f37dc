"""The engine in this process: any image-text-to-text model of transformers, with a decode loop of its own."""
