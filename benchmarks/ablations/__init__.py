"""What each choice of the default is worth: every variant trained over three seeds for the same number of answers."""
