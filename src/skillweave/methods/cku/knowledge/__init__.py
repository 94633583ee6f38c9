"""What is forgotten and what is kept: facts and their sets, the corpora, and how well a model knows them."""
