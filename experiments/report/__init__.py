"""The report of a sweep: results of its runs in the layout of the paper's tables, with their uncertainty."""
