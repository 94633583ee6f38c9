"""What is forgotten and what is retained: the facts, an invented corpus, and how well a model knows them."""
