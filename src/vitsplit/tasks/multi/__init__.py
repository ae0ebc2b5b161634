"""Several tasks trained in one run, on the same images and one pass of one backbone."""
