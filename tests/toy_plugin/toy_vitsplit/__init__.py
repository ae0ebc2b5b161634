"""A backbone, a method and a task for vitsplit."""
