"""What proves things about the product: the rendered world, training, benchmarks, studies."""
