"""Data: sources of examples, their order, augmented views, and batches by the step."""
