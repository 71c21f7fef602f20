"""The DeepSpeed learner of the compression policy."""
