"""The processes of a run: which this one is, how they meet, what each computes on."""
