"""Fine-tuning of Wan2.2's experts: what is learnt, and the weights that learn it."""
