"""The page of a run: one HTML file that shows every problem, and the tree of its search."""

from skillweave.reason.page.write import write_page

__all__ = ["write_page"]
