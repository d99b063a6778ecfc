"""Training methods: what each adds to the loop."""
