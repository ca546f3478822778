"""LoRA adapters in PEFT's format, in and out."""
