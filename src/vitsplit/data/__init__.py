"""What tasks share about data: reading images safely, classes, folders and splits, and the check of a data set."""
