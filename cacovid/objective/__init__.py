"""What the learner minimises: records in, loss and metrics out."""
