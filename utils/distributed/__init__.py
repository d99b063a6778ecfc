"""The processes of a run: ranks, devices, rendezvous, and each rank's slice of a batch."""
