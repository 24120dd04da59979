"""`load_pipeline` against plain diffusers: the same files, the same image, byte for byte."""
