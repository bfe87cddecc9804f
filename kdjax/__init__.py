"""Knowledge distillation in JAX, from two arrays of logits to a deployed student."""
