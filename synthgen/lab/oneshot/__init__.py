"""How well parts are found from few examples, where the truth is known."""
