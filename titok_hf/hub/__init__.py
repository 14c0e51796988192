"""Access to the Hugging Face Hub: publishing with a model card, and errors in one sentence."""
