"""The training engine: from a task, a frozen backbone and a head to a run folder with bundles."""
