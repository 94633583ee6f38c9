"""The searches: MATSIR's tree search, and the methods it is compared with, in one frame with one budget."""
