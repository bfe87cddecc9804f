"""Federated distillation, in processes of their own."""
