"""The HTTP server: many heads behind one pass of the backbone (extra ``serve``)."""
