"""Selection methods side by side: accuracy, evidence recall and question-awareness."""
