"""Training methods: changes and additions to the training loop."""
