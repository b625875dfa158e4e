"""What is wrong with this machine, and what it can do: `install` looks, `machine` tries."""
