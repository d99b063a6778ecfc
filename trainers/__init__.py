"""Training: the loop, the methods, and what builds, resumes and records a run. Importing it imports nothing else."""
