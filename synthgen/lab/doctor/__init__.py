"""What is wrong with this machine (`install`), and what a card does on it (`examine`)."""
