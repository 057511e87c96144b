"""The report of a sweep: what its runs reached, as the paper's tables show it, and how far that can be trusted."""
