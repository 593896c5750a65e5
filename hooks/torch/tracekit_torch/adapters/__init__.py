"""How kinds of models are run: where their sequences begin, what their positions are, which tokens they choose."""
